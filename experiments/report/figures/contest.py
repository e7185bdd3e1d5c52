"""Old and new rows that contest one of two weights: what they want, what is learnt."""

from typing import NamedTuple

import numpy as np

INNER_STEPS, NUM_UPDATES, STEP_SIZE, STEP_SIZE_RATE = 4, 60, 0.2, 0.02
START = (-0.6, 0.0)  # where both are served on the first weight
OLD, OLD_CURVATURE = (-1.0, 0.0), (4.0, 0.0)
NEW, NEW_CURVATURE = (1.0, 1.2), (1.0, 1.0)


class Learnt(NamedTuple):
    """A stream of two parameters after ``NUM_UPDATES`` meta-updates."""

    step_sizes: np.ndarray
    """[updates + 1, 2]."""
    first: np.ndarray
    """Weights along the inner steps from the start, initial step sizes, [K + 1, 2]."""
    last: np.ndarray
    """The same with the step sizes learnt."""
