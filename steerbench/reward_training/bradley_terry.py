"""Bradley-Terry on frozen states: a linear head by logistic regression on differences between two replies.

P(chosen over rejected) = sigmoid(w · (h_chosen - h_rejected)), with an L2 penalty on `w` in units of the standard
deviations of the differences. Length-neutral, the log of the replies' lengths is a covariate without a penalty:

    P = sigmoid(w · (h_chosen - h_rejected) + a · (log n_chosen - log n_rejected)),

and `a` is dropped when a reply is scored, so that `w` says what is left where length is held fixed. What is left can
still go with length, where good replies are long: `w` is held to margins that have no correlation with the difference
of log-lengths on the pairs of the fit.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression

PENALTIES: Final = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
"""scikit-learn's C: the larger, the weaker is the penalty. 1e-2 overfits some thousand pairs."""
_FREE: Final = 1e3
"""Standard deviations of the covariate beside those of the states: so a penalty does not reach it."""


class Pairs(NamedTuple):
    """Preference pairs as numbers."""

    states: Any
    """(pairs, 2, width), of the chosen reply and of the other."""
    lengths: Any
    """Tokens of the two replies, (pairs, 2)."""

    @property
    def differences(self) -> Any:
        """Chosen minus rejected, (pairs, width)."""
        return self.states[:, 0] - self.states[:, 1]

    @property
    def log_lengths(self) -> Any:
        """Log of the length of the chosen reply over that of the other, (pairs,)."""
        logs = np.log1p(self.lengths)
        return logs[:, 0] - logs[:, 1]


class Head(NamedTuple):
    """A reward that is linear in the states."""

    weight: Any
    """(width,) float64."""
    bias: float
    """Such that the replies it was fitted on have the mean 0."""
    length: float = 0.0
    """Of the covariate, which scores do without."""

    def margins(self, pairs: Pairs) -> Any:
        """Return the score of the chosen reply less that of the other, (pairs,)."""
        return pairs.differences @ self.weight

    def scores(self, states: Any) -> Any:
        """Return (...,) scores of states, (..., width)."""
        return states @ self.weight + self.bias


def fit_head(pairs: Pairs, penalty: float, *, length_neutral: bool) -> Head:
    """Fit a head without an intercept: exchanging the two replies changes the sign and nothing else.

    Length-neutral, the margins of these pairs are orthogonal to their differences of log-length: the states lose the
    one direction along which they are not, and the penalty keeps `w` out of it.
    """
    differences = pairs.differences
    scale = differences.std(axis=0)
    scale[scale == 0] = 1.0
    features = differences / scale
    spread = float(pairs.log_lengths.std()) or 1.0
    if length_neutral:
        along = features.T @ pairs.log_lengths
        along /= np.linalg.norm(along) or 1.0
        features = features - np.outer(features @ along, along)
        features = np.column_stack([features, pairs.log_lengths / spread * _FREE])
    signs = np.where(np.arange(len(features)) % 2, 1.0, -1.0)  # two classes, of the same likelihood
    # states go together so much that lbfgs takes thousands of steps where Newton's method takes three
    model = LogisticRegression(C=penalty, fit_intercept=False, solver="newton-cholesky")
    found = model.fit(features * signs[:, None], signs > 0).coef_[0]
    weight = found[: differences.shape[1]] / scale
    length = float(found[-1]) * _FREE / spread if length_neutral else 0.0
    return Head(weight, -float((pairs.states @ weight).mean()), length)


def loss(head: Head, pairs: Pairs) -> float:
    """Return the mean of -log P(chosen over rejected), the covariate included."""
    return float(np.logaddexp(0, -(head.margins(pairs) + head.length * pairs.log_lengths)).mean())


class Choice(NamedTuple):
    """What was chosen on validation, and all that was tried."""

    block: int
    penalty: float
    tried: list[dict[str, float]]


def choose(
    train: Mapping[int, Pairs], validation: Mapping[int, Pairs], *, length_neutral: bool, penalties: Sequence[float]
) -> Choice:
    """Choose block and penalty by the loss on validation pairs, of which accuracy is a much noisier measure."""
    tried = []
    for block, pairs in train.items():
        for penalty in penalties:
            head = fit_head(pairs, penalty, length_neutral=length_neutral)
            accuracy = float((head.margins(validation[block]) > 0).mean())
            of_it = {"block": block, "penalty": penalty, "loss": loss(head, validation[block]), "accuracy": accuracy}
            tried.append(of_it)
    best = min(tried, key=lambda one: one["loss"])
    return Choice(int(best["block"]), best["penalty"], tried)
