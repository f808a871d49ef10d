"""What a testbed must reach, in the names of its manifest's figures."""

from collections.abc import Mapping
from typing import Any, Final

AT_MOST: Final = {"perplexity_ratio": 1.15, "reply_perplexity_ratio": 1.15, "random_direction": 0.25}
"""`random_direction` counts without its sign."""
AT_LEAST: Final = {
    "on_template": 0.90,
    "guide_agreement": 0.85,
    "held_out_agreement": 0.80,
    "encoder_accuracy": 0.85,
    "persona": 1.0,
    "direction": 0.5,
    "opposite_direction": 0.5,
}
_DRIFT: Final = 0.05
"""Other machines round otherwise, so that some sampled tokens differ."""


def shortfalls(figures: Mapping[str, Any]) -> list[str]:
    """Return what the figures do not reach, one sentence each."""
    values = {name: plain(figures[name]) for name in (*AT_LEAST, *AT_MOST)}
    low = {name: f"below {bound}" for name, bound in AT_LEAST.items() if not values[name] >= bound}
    high = {name: f"above {bound}" for name, bound in AT_MOST.items() if not abs(values[name]) <= bound}
    return [f"{name} is {values[name]:.3f}, {side}" for name, side in (low | high).items()]


def drift(told: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return which figures differ by more than 0.05 or 5 %, or by more than their interval is wide."""
    drifted = []
    for name in (name for name in told if name != "samples"):
        before, now = plain(told[name]), plain(found[name])
        width = told[name]["high"] - told[name]["low"] if isinstance(told[name], Mapping) else 0.0
        if abs(before - now) > max(_DRIFT * max(1.0, abs(before)), width):
            drifted.append(f"{name} was {before:.3f} and is {now:.3f}")
    return drifted


def plain(value: Any) -> float:
    """Return a figure as a number; an effect by its mean."""
    return float(value["mean"] if isinstance(value, Mapping) else value)
