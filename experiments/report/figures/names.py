"""Where the names of points can stand, so that they hide nothing. All in pixels."""

import numpy as np

# Directions from a point to its name, side by side with it first, and distances.
_BESIDE = ((1, 0), (-1, 0), (0, 1), (0, -1))
_ASLANT = tuple((x, y) for y in (1, -1, 2, -2, 0.5, -0.5) for x in (1, -1))
_DIRECTIONS = np.array((*_BESIDE, *_ASLANT))
_DISTANCES_PT = np.array((6, 12, 20, 30, 42, 56, 72))
# Names are placed in several orders, each twice over, and the best is kept.
_NUM_ORDERS, _NUM_ROUNDS = 20, 2
_NUM_PLACES = 40
"""Along a line from a point to its name, at which it is looked at."""


# How much each thing is to be avoided: per pixel of distance between a point and its
# name, of a box that another one covers, of a box out of bounds, and of a line that
# passes through a name or past another point.
_DISTANT, _HIDDEN, _CUT_OFF, _CROSSED, _PASSED = 2, 8, 20, 100, 12


def middles(boxes: np.ndarray) -> np.ndarray:
    """Middles [A, 2] of boxes [A, 4], each x0, y0, x1, y1."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Areas [A, B] that boxes [A, 4] share with boxes [B, 4]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return np.prod(np.clip(high - low, 0, None), axis=2)


def _crossings(starts: np.ndarray, ends: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Lengths [A, B] of lines, from [A, 2] to [A, 2], that lie in boxes [B, 4]."""
    places = np.linspace(starts, ends, _NUM_PLACES)[:, :, None]
    is_inside = (boxes[:, :2] < places) & (places < boxes[:, 2:])
    lengths = np.linalg.norm(ends - starts, axis=1)
    return np.mean(np.all(is_inside, axis=3), axis=0) * lengths[:, None]


def _candidates(
    point: np.ndarray, size: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [C, 4] of a size beside a point, and how far [C] they are."""
    distances = _DISTANCES_PT[:, None, None] * scale
    shifts = (distances * _DIRECTIONS).reshape(-1, 2)
    at = point + shifts + np.sign(shifts) * size / 2
    boxes = np.concatenate([at - size / 2, at + size / 2], axis=1)
    return boxes, np.linalg.norm(shifts, axis=1)


def place_names(
    points: np.ndarray,
    bars: np.ndarray,
    sizes: np.ndarray,
    bounds: np.ndarray,
    scale: float,
) -> np.ndarray:
    """Places names near their points, where they and the lines to them hide nothing.

    Args:
        points: [N, 2].
        bars: boxes [N, 4] of the points and their error bars.
        sizes: [N, 2] of the names.
        bounds: [4], the box that they should be in.
        scale: pixels per typographic point.

    Returns:
        Boxes [N, 4] of the names.
    """
    candidates, costs = [], []
    for index, (point, size) in enumerate(zip(points, sizes, strict=True)):
        boxes, distances = _candidates(point, size, scale)
        own = _DISTANT * distances
        others = np.delete(bars, index, axis=0)
        starts = np.broadcast_to(point, (len(boxes), 2))
        own += _HIDDEN * _overlaps(boxes, bars).sum(axis=1)
        own += _CUT_OFF * (np.prod(size) - _overlaps(boxes, bounds[None])[:, 0])
        own += _PASSED * _crossings(starts, middles(boxes), others).sum(axis=1)
        candidates.append(boxes)
        costs.append(own)

    def place(order: np.ndarray) -> tuple[float, np.ndarray]:
        """Places one name after the other; returns what it costs, and the boxes."""
        chosen, paid = np.zeros((len(points), 4)), np.zeros(len(points))
        is_placed = np.zeros(len(points), bool)
        for index in np.tile(order, _NUM_ROUNDS):
            is_placed[index] = False
            names, named = chosen[is_placed], points[is_placed]
            boxes = candidates[index]
            starts = np.broadcast_to(points[index], (len(boxes), 2))
            crossed = _crossings(starts, middles(boxes), names).sum(axis=1)
            crossed += _crossings(named, middles(names), boxes).sum(axis=0)
            hidden = _overlaps(boxes, names).sum(axis=1)
            own = costs[index] + _HIDDEN * hidden + _CROSSED * crossed
            best = np.argmin(own)
            chosen[index], paid[index] = boxes[best], own[best]
            is_placed[index] = True
        return float(paid.sum()), chosen

    random = np.random.default_rng(0)
    orders = [random.permutation(len(points)) for _ in range(_NUM_ORDERS - 1)]
    orders.insert(0, np.arange(len(points)))
    return min(map(place, orders), key=lambda each: each[0])[1]
