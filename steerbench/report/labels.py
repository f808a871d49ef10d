"""Where the letters of points go in a plot, so that they can be told apart."""

from collections.abc import Sequence
from math import cos, hypot, pi, sin
from typing import Any, NamedTuple

import numpy as np

Place = tuple[float, float]


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float


_RADII = (10.0, 14.0, 19.0, 25.0, 32.0, 40.0, 50.0)
_ANGLES = tuple(pi / 4 + i * pi / 6 for i in range(12))
_POINT = 4.0
_HEIGHT = 9.0
_LETTER = 7.5


def places(points: Sequence[Place], texts: Sequence[str], frame: Box) -> list[Place]:
    """Return the middle of each label, in pixels: near its point, off other points and labels, inside the frame.

    One after the other, each takes the cheapest of a few places, crowded points first.
    """
    where = np.array(points, float).reshape(-1, 2)
    crowd = [int((np.hypot(*(where - point).T) < 30).sum()) for point in where]
    on_points, labels = np.hstack([where - _POINT, where + _POINT]), np.empty((0, 4))
    found: dict[int, Place] = {}
    for i in sorted(range(len(points)), key=lambda i: (-crowd[i], points[i], i)):
        around = [(points[i][0] + r * cos(a), points[i][1] + r * sin(a)) for r in _RADII for a in _ANGLES]
        boxes = np.array([_box(place, texts[i]) for place in around])
        fixed = 60.0 * _overlaps(boxes, labels) + 25.0 * _overlaps(boxes, on_points) + 1000.0 * _outside(boxes, frame)
        far = [hypot(x - points[i][0], y - points[i][1]) for x, y in around]
        # rounded, so that ties do not hang on the last bit
        costs = [round(one + other, 6) for one, other in zip(fixed.tolist(), far, strict=True)]
        best = costs.index(min(costs))
        found[i], labels = around[best], np.vstack([labels, boxes[best]])
    return [found[i] for i in range(len(points))]


def _box(place: Place, text: str) -> Box:
    half = len(text) * _LETTER / 2
    return Box(place[0] - half, place[1] - _HEIGHT / 2, place[0] + half, place[1] + _HEIGHT / 2)


def _outside(boxes: Any, frame: Box) -> Any:
    """Return for each box, (boxes, 4), whether it is not wholly inside the frame."""
    return (boxes[:, :2] < frame[:2]).any(axis=1) | (boxes[:, 2:] > frame[2:]).any(axis=1)


def _overlaps(boxes: Any, others: Any) -> Any:
    """Return how many of the others, (others, 4), each box overlaps, (boxes,)."""
    one, other = boxes[:, None], others[None]
    return ((one[..., :2] < other[..., 2:]) & (other[..., :2] < one[..., 2:])).all(axis=2).sum(axis=1)
