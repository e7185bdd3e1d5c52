"""What tests of a person's own benchmarks, methods and networks share."""

from collections.abc import Iterator

import pytest


@pytest.fixture
def registries() -> Iterator[None]:
    """Forgets afterwards what a test registers."""
    from experiments import methods, networks
    from experiments.config import benchmarks
    from experiments.data import sources, targets
    from experiments.support import registry, styles

    known = [
        *(benchmarks.BENCHMARKS, benchmarks.OWN_STREAMS, sources._OWN),
        *(methods.METHODS, networks.NETWORKS),
        *(registry._OWN, styles.NAMES, styles.STYLES),
        *(targets.LOSSES, targets.METRICS),
    ]
    before = [dict(each) for each in known]
    mixed = set(styles.MIXED)
    yield
    for each, kept in zip(known, before, strict=True):
        each.clear()
        each.update(kept)
    styles.MIXED.clear()
    styles.MIXED.update(mixed)
