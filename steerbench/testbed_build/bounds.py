"""What a testbed must reach, in the names of its manifest's figures."""

from collections.abc import Mapping
from typing import Any, Final

from steerbench.testbed.wrecks import WRECKS

_WRECKS: Final = tuple(kind.replace(" ", "_") for kind in WRECKS)

AT_MOST: Final = {
    "perplexity_ratio": 1.15,
    "reply_perplexity_ratio": 1.15,
    "random_direction": 0.25,
    "state_norm": 100.0,
    "negated": 0.0,
    "over_refusal": 0.75,
}
"""`random_direction` counts without its sign."""
AT_LEAST: Final = {
    "on_template": 0.90,
    "guide_agreement": 0.85,
    "held_out_agreement": 0.80,
    "encoder_accuracy": 0.85,
    "persona": 1.0,
    "direction": 0.5,
    "opposite_direction": 0.5,
    "state_norm": 5.0,
    "told": 0.5,
    "paraphrase_share": 0.5,
    "over_refusal": 0.05,
    **{f"{reward}_above_{kind}": 0.5 for reward in ("guide", "held_out") for kind in _WRECKS},
}
"""Wrecks lie so many standard deviations of the unsteered replies' reward below them."""
_DRIFT: Final = 0.05
"""Other machines round otherwise, so that some sampled tokens differ."""


def shortfalls(figures: Mapping[str, Any]) -> list[str]:
    """Return what the figures do not reach, one sentence each."""
    values = {name: plain(figures[name]) for name in (*AT_LEAST, *AT_MOST)}
    low = {name: f"below {bound}" for name, bound in AT_LEAST.items() if not values[name] >= bound}
    high = {name: f"above {bound}" for name, bound in AT_MOST.items() if not _size(name, values[name]) <= bound}
    return [f"{name} is {values[name]:.3f}, {side}" for name, side in (low | high).items()]


def _size(name: str, value: float) -> float:
    return abs(value) if name == "random_direction" else value


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
