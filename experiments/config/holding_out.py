"""Rows and tasks for validation, which no test sees."""

import numpy as np

from experiments.data import sources

VALIDATION = 1
"""Second part of the seeds of tasks for validation; those of the test have one part."""


def hold_out(source: sources.Source) -> sources.Source:
    """Puts a tenth of the training rows of every class in the place of the test rows.

    Which rows does not depend on any seed. A run on what is left sees no test row.
    """
    counts = np.bincount(source.train_labels, minlength=source.num_classes)
    generator = np.random.default_rng(VALIDATION)
    order = generator.permutation(len(source.train_labels))
    by_class = order[np.argsort(source.train_labels[order], kind="stable")]
    starts = np.cumsum(counts) - counts
    rank = np.arange(len(order)) - np.repeat(starts, counts)
    is_held = rank < np.repeat(-(-counts // 10), counts)
    held, kept = np.sort(by_class[is_held]), np.sort(by_class[~is_held])
    return source._replace(
        train_images=source.train_images[kept],
        train_labels=source.train_labels[kept],
        test_images=source.train_images[held],
        test_labels=source.train_labels[held],
    )
