"""Where the letters of points go in a plot, so that they can be told apart."""

from collections.abc import Sequence
from math import cos, hypot, pi, sin
from typing import NamedTuple

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
    taken: dict[int, Place] = {}
    for i in sorted(range(len(points)), key=lambda i: (-crowd[i], points[i], i)):
        others = [_box(taken[j], texts[j]) for j in taken]
        around = [(points[i][0] + r * cos(a), points[i][1] + r * sin(a)) for r in _RADII for a in _ANGLES]
        taken[i] = min(around, key=lambda place: _cost(place, i, points, texts[i], others, frame))
    return [taken[i] for i in range(len(points))]


def _box(place: Place, text: str) -> Box:
    half = len(text) * _LETTER / 2
    return Box(place[0] - half, place[1] - _HEIGHT / 2, place[0] + half, place[1] + _HEIGHT / 2)


def _cost(place: Place, i: int, points: Sequence[Place], text: str, taken: Sequence[Box], frame: Box) -> float:
    box = _box(place, text)
    outside = box.left < frame.left or box.right > frame.right or box.bottom < frame.bottom or box.top > frame.top
    on_points = sum(_overlap(box, Box(x - _POINT, y - _POINT, x + _POINT, y + _POINT)) for x, y in points)
    on_labels = sum(_overlap(box, other) for other in taken)
    far = hypot(place[0] - points[i][0], place[1] - points[i][1])
    return round(1000.0 * outside + 60.0 * on_labels + 25.0 * on_points + far, 6)  # ties do not hang on the last bit


def _overlap(a: Box, b: Box) -> bool:
    return a.left < b.right and b.left < a.right and a.bottom < b.top and b.bottom < a.top
