"""The model as it is: the baseline of every table.

Cost: none. Nothing is fitted and nothing is edited.

Learns from: nothing. Touches: nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from steerbench import FitContext, Steerer, Steering


@dataclass(frozen=True, kw_only=True)
class Unsteered(Steerer):
    """No steering."""

    off: ClassVar[Mapping[str, Any]] = {}

    def fit(self, context: FitContext) -> Steering:
        """Return the empty steering."""
        return Steering()
