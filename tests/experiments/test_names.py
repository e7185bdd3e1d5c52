"""Where the names of points stand in a figure, with matplotlib's own geometry."""

import itertools

import numpy as np
import pytest
from matplotlib.path import Path
from matplotlib.transforms import Bbox

from experiments.report.figures import names

BOUNDS = np.array([0.0, 0.0, 900.0, 450.0])
# Five runs that cost nearly the same near the right edge, as on MNIST Rotations.
CROWD = np.array([[805, 390], [805, 370], [820, 366], [803, 290], [805, 284]], float)
APART = np.array([[100, 300], [100, 350], [400, 320], [300, 30]], float)


def place(points):
    sizes = np.tile([120.0, 44.0], (len(points), 1))
    reach = np.array([8.0, 14.0])
    bars = np.concatenate([points - reach, points + reach], axis=1)
    return names.place_names(points, bars, sizes, BOUNDS, scale=2.0), sizes


@pytest.mark.parametrize("points", [APART, CROWD, np.concatenate([APART, CROWD])])
def test_names_hide_and_cross_none_of_each_other(points):
    found, sizes = place(points)
    np.testing.assert_allclose(found[:, 2:] - found[:, :2], sizes)
    boxes = [Bbox(box.reshape(2, 2)) for box in found]
    for first, second in itertools.combinations(boxes, 2):
        assert Bbox.intersection(first, second) is None
    for point, middle, own in zip(points, names.middles(found), boxes, strict=True):
        line = Path([point, middle])
        for other in boxes:
            assert other is own or not line.intersects_bbox(other, filled=True)


def test_names_stay_within_bounds():
    found, _ = place(CROWD)
    assert (found[:, :2] >= BOUNDS[:2]).all() and (found[:, 2:] <= BOUNDS[2:]).all()


def test_a_lone_name_stands_side_by_side_with_its_point():
    found, _ = place(APART[-1:])
    x, y = APART[-1]
    np.testing.assert_allclose(found, [[x + 12, y - 22, x + 132, y + 22]])
