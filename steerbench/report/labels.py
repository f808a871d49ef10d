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
    crowd = [sum(hypot(x - u, y - v) < 30 for u, v in points) for x, y in points]
    on_points = _boxes([Box(x - _POINT, y - _POINT, x + _POINT, y + _POINT) for x, y in points])
    taken: dict[int, Place] = {}
    for i in sorted(range(len(points)), key=lambda i: (-crowd[i], points[i], i)):
        others = _boxes([_box(taken[j], texts[j]) for j in taken])
        around = [(points[i][0] + r * cos(a), points[i][1] + r * sin(a)) for r in _RADII for a in _ANGLES]
        costs = _costs(around, points[i], texts[i], on_points, others, frame)
        taken[i] = around[costs.index(min(costs))]
    return [taken[i] for i in range(len(points))]


def _box(place: Place, text: str) -> Box:
    half = len(text) * _LETTER / 2
    return Box(place[0] - half, place[1] - _HEIGHT / 2, place[0] + half, place[1] + _HEIGHT / 2)


def _boxes(found: Sequence[Box]) -> Any:
    """Return boxes as an array, (boxes, 4)."""
    return np.array(found, float).reshape(-1, 4)


def _costs(around: Sequence[Place], point: Place, text: str, points: Any, taken: Any, frame: Box) -> list[float]:
    """Return what each place around a point costs; `points` and `taken` are boxes, (boxes, 4), to stay off."""
    boxes = _boxes([_box(place, text) for place in around])
    outside = (boxes < frame)[:, :2].any(axis=1) | (boxes > frame)[:, 2:].any(axis=1)
    fixed = (1000.0 * outside + 60.0 * _overlaps(boxes, taken) + 25.0 * _overlaps(boxes, points)).tolist()
    far = [hypot(x - point[0], y - point[1]) for x, y in around]
    return [round(cost + way, 6) for cost, way in zip(fixed, far, strict=True)]  # ties do not hang on the last bit


def _overlaps(boxes: Any, others: Any) -> Any:
    """Return how many of the others each box overlaps, (boxes,)."""
    a, b = boxes[:, None], others[None]
    meet = (a[..., :2] < b[..., 2:]) & (b[..., :2] < a[..., 2:])
    return np.count_nonzero(meet.all(axis=-1), axis=1)
