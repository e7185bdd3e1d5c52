"""Bytes as a bad disk or a careless hand leaves them."""

from collections.abc import Callable

import hypothesis
import hypothesis.strategies as st

# Derandomised: a failure is the same for everybody, and its example is in the report.
settings = hypothesis.settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=150,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


@st.composite
def damages(draw) -> Callable[[bytes], bytes]:
    """A function that cuts bytes off, or replaces, removes or adds some."""
    kind = draw(st.sampled_from(["cut", "replace", "remove", "insert"]))
    where = draw(st.floats(0, 1, exclude_max=True))
    new = draw(st.binary(min_size=1, max_size=8))

    def damage(data) -> bytes:
        place = int(where * len(data))
        if kind == "cut":
            return data[:place]
        after = place if kind == "insert" else place + len(new)
        return data[:place] + (b"" if kind == "remove" else new) + data[after:]

    return damage
