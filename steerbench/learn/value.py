"""A value function on states: trained by temporal differences on rollouts of the unsteered model.

Thousands of steps of Adam amplify rounding: states read in another batch size or on another device give another
network, as another seed would.

V(s_t) predicts the reward that the finished response will get, from the state that token t is drawn from. Source: Kong
et al. 2024, arXiv 2406.05954, section 4; Sutton and Barto, chapter 12, for TD(lambda).
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, relu
from torch.nn.utils.rnn import pad_sequence

from steerbench.data.splits import split_by_group
from steerbench.errors import SteerbenchError
from steerbench.learn.states import StateBatch, States
from steerbench.progress import AT_MOST, Progress, silent
from steerbench.steering.ascent import Ascent

STEPS = 30_000
"""Steps of Adam that end a training which still improves: the published 100 epochs of 161,000 rollouts are 31,400."""
PUBLISHED_EPOCHS = 100
RELATIVE_NORM = 0.2
"""Length of an ascent as a share of that of the state, where a method is given none: the middle of what is searched."""
Also = Callable[[Callable[[Tensor], Tensor], Sequence[int]], Tensor]
"""Takes V as a function of states (..., width), in units in which rewards have mean 0 and standard deviation 1, and the
rollouts of a mini-batch; returns a loss."""
DIVERGED = "training of the value function diverged; lower its learning rate."


class ValueFunction(NamedTuple):
    """A ReLU network with one output: `weights[i]` is (out, in), `biases[i]` (out,), in float32."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    def __call__(self, states: Tensor) -> Tensor:
        """Return the value of each state; (..., width) gives (...)."""
        layers = list(zip(self.weights, self.biases, strict=True))
        for weight, bias in layers[:-1]:
            states = relu(linear(states, weight, bias))
        return linear(states, *layers[-1])[..., 0]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a value function is trained. Units: `lr` of Adam, `batch_size` in rollouts."""

    layers: int
    """Linear maps."""
    hidden: int | None
    """Width of the hidden layers; None: 4096 as published, or the width of the state where that is less."""
    lr: float
    batch_size: int
    epochs: int | None = None
    """Most passes over the rollouts. None: until `patience` ends it, or after `STEPS` steps or 100 passes,
    whichever is more; 100 passes where there are no validation rollouts to end it by."""
    td_lambda: float = 0.0
    """0 is TD(0), 1 is Monte-Carlo."""
    terminal: Literal["last", "first"] = "last"
    """The state at which the reward is regressed; `first` is the fault of the published code."""
    detach: bool = True
    """Whether the gradient stops at the target; False is the other fault of the published code."""
    patience: int = 20
    """Epochs without progress on the validation rollouts after which training ends."""

    def most_epochs(self, split: "Split") -> int:
        """Return the number of passes after which training ends in any case."""
        if self.epochs is not None:
            return self.epochs
        steps = math.ceil(len(split.train) / self.batch_size)
        return max(PUBLISHED_EPOCHS, STEPS // steps) if split.validation else PUBLISHED_EPOCHS

    def __post_init__(self) -> None:
        ranges = {"layers": (1, 3), "hidden": (1, inf), "epochs": (1, inf), "batch_size": (1, inf), "td_lambda": (0, 1)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                fix = f"{low} or more" if high == inf else f"from {low} to {high}"
                raise SteerbenchError(f"{name}={value} of the value function is out of range; give {fix}.")
        if not 0 < self.lr < inf:
            raise SteerbenchError(f"lr={self.lr} of the value function is out of range; give a number above 0.")
        if self.terminal == "first" and self.td_lambda:
            raise SteerbenchError(f"terminal='first' knows TD(0) alone; take td_lambda=0, not {self.td_lambda}.")


class Fitted(NamedTuple):
    """A trained value function, and its mean squared error against the reward of validation rollouts, by epoch."""

    value: ValueFunction
    errors: list[float]

    @property
    def best_epoch(self) -> int:
        """The epoch, from 0, whose network was kept."""
        return _argmin(self.errors) if self.errors else -1


class Split(NamedTuple):
    """Indices of rollouts: to learn from, to choose the epoch by, and to report on."""

    train: Collection[int]
    validation: Collection[int] = ()
    report: Collection[int] = ()

    @classmethod
    def of(cls, groups: Sequence[str], generator: torch.Generator) -> "Split":
        """Split rollouts 80 to 10 to 10 by group; with fewer than ten groups all are to learn from."""
        names = sorted(set(groups))
        tenth = len(names) // 10
        if not tenth:
            return cls(range(len(groups)))
        order = [names[i] for i in torch.randperm(len(names), generator=generator).tolist()]
        report, validation, train = split_by_group(groups, order, [tenth, tenth])
        return cls(train, validation, report)


def train_value(  # noqa: PLR0913 - the settings of one call, each by name
    states: States,
    rewards: Tensor,
    split: Split,
    training: Training,
    *,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
    also: Also | None = None,
) -> Fitted:
    """Train on rollouts and keep the epoch that predicts the rewards of the validation rollouts best.

    `rewards` is (rollouts,). What `also` gives for the rollouts of a mini-batch is added to its loss. Without
    validation rollouts the last epoch is kept. Validation measures the squared error of V against the reward over all
    states, which the true value function minimises; the loss of TD(0) would not do, for a constant has a low one, too.
    Raises SteerbenchError if training diverges.
    """
    data = _Data(states, rewards, split.train, device)
    network = _fresh(data.width, training, generator, device)
    optimizer = torch.optim.Adam([*network.weights, *network.biases], lr=training.lr)
    errors: list[float] = []
    best = network
    epochs = training.most_epochs(split)
    with progress(f"value function{AT_MOST if split.validation else ''}", epochs) as advance, torch.enable_grad():
        for epoch in range(epochs):
            for batch, goals in data.batches(split.train, training.batch_size, generator):
                optimizer.zero_grad()
                total = loss(network, batch, goals, training)
                if also is not None:
                    total = total + also(lambda states: network(data.scaled(states)), batch.rows)
                torch.autograd.backward(total)
                optimizer.step()
            advance(1)
            if not split.validation:
                continue
            errors.append(_error(network, data, split.validation, training.batch_size))
            if min(errors) == errors[-1]:
                best = _copy(network)
            if epoch - _argmin(errors) >= training.patience:
                break
    if not all(bool(tensor.isfinite().all()) for tensors in best for tensor in tensors):
        raise SteerbenchError(DIVERGED)
    return Fitted(data.folded(best), [e * data.reward_scale**2 for e in errors])


def loss(network: ValueFunction, batch: StateBatch, rewards: Tensor, training: Training) -> Tensor:
    """Return the squared temporal-difference errors of some rollouts, summed over states, per rollout."""
    each = list(torch.split(network(batch.states), batch.lengths))
    values = pad_sequence(each, batch_first=True)  # (rollouts, longest)
    last = torch.tensor(batch.lengths, device=values.device)[:, None] - 1
    step = torch.arange(values.shape[1], device=values.device)
    goals = returns(values.detach() if training.detach else values, rewards, last, training.td_lambda)
    errors = (values - goals).square()
    if training.terminal == "last":
        return errors[step <= last].sum() / len(values)
    return (errors[step < last].sum() + (values[:, 0] - rewards).square().sum()) / len(values)


def returns(values: Tensor, rewards: Tensor, last: Tensor, td_lambda: float) -> Tensor:
    """Return the lambda-returns: the reward at `last`, (1 - lambda) V(s_t+1) + lambda G_t+1 before; (rollouts, steps).

    `values` is (rollouts, steps), `rewards` (rollouts,), `last` (rollouts, 1). What follows `last` has no meaning.
    Written out, G_t is a weighted sum of all later values, so that one product takes the place of a loop over tokens.
    """
    step = torch.arange(values.shape[1], device=values.device)
    ahead = step - step[:, None]  # (from, to)
    weights = torch.where(ahead > 0, (1 - td_lambda) * td_lambda ** (ahead - 1).clamp(min=0), 0.0)
    later = values.masked_fill(step > last, 0.0) @ weights.T
    return later + td_lambda ** (last - step).clamp(min=0) * rewards[:, None]


def calibration(
    value: ValueFunction, states: States, rewards: Tensor, rows: Collection[int]
) -> dict[str, float | None]:
    """Return the correlation of V with the reward at 0, 25, 50, 75 and 100 % of the response.

    None where it is not defined: fewer than two rollouts, or no variance.
    """
    shares = (0, 25, 50, 75, 100)
    found: dict[int, list[float]] = {share: [] for share in shares}
    goals: list[float] = []
    for batch in states.batches(rows, 64):
        goals += rewards[batch.rows].tolist()
        for one in torch.split(value(batch.states.to(value.weights[0].device)), batch.lengths):
            for share, values in found.items():
                values.append(float(one[round(share / 100 * (len(one) - 1))]))
    return {f"{share}%": _correlation(torch.tensor(values), torch.tensor(goals)) for share, values in found.items()}


class _Data:
    """Rollouts in units in which training does not depend on the scale of states and rewards.

    States lose their mean and are divided by one number, so that no direction is favoured; rewards get mean 0 and
    standard deviation 1. `folded` puts both into the network's first and last map.
    """

    def __init__(self, states: States, rewards: Tensor, train: Collection[int], device: torch.device | str) -> None:
        self._states, self._rewards, self._device = states, rewards.float(), device
        chosen = self._rewards[list(train)]
        self.reward_mean, spread = float(chosen.mean()), float(chosen.std(correction=0))
        # rewards that are equal up to rounding teach nothing: V is their mean, and flat
        self.reward_scale = spread if spread > 1e-6 * max(1.0, abs(self.reward_mean)) else 0.0
        total, squares, count = torch.zeros(()), 0.0, 0
        for batch in states.batches(train, 64):
            total = total + batch.states.double().sum(0)
            squares += float(batch.states.double().square().sum())
            count += len(batch.states)
        mean = total / count
        self.width = len(mean)
        self.scale = max(squares / count - float(mean.square().sum()), 1e-12) ** 0.5 / self.width**0.5
        self.mean = mean.float().to(device)

    def batches(
        self, rows: Collection[int], size: int, generator: torch.Generator | None = None
    ) -> Iterator[tuple[StateBatch, Tensor]]:
        """Yield states and rewards in training units, on the device."""
        for batch in self._states.batches(rows, size, generator):
            goals = (self._rewards[batch.rows] - self.reward_mean) / (self.reward_scale or 1.0)
            yield batch._replace(states=self.scaled(batch.states)), goals.to(self._device)

    def scaled(self, states: Tensor) -> Tensor:
        """Return states, (..., width), in training units on the device."""
        scaled: Tensor = (states.to(self._device) - self.mean) / self.scale
        return scaled

    def folded(self, network: ValueFunction) -> ValueFunction:
        """Return the network as a function of raw states, in units of the reward, on the CPU."""
        weights, biases = ([t.detach().clone() for t in tensors] for tensors in network)
        biases[0] -= weights[0] @ (self.mean / self.scale)
        weights[0] /= self.scale
        weights[-1] *= self.reward_scale
        biases[-1] = biases[-1] * self.reward_scale + self.reward_mean
        return ValueFunction(tuple(w.cpu() for w in weights), tuple(b.cpu() for b in biases))


def _fresh(width: int, training: Training, generator: torch.Generator, device: torch.device | str) -> ValueFunction:
    """Draw a network as torch's linear layers are drawn, from a generator of our own."""
    sizes = [width, *[training.hidden or min(width, 4096)] * (training.layers - 1), 1]
    weights, biases = [], []
    for inputs, outputs in pairwise(sizes):
        bound = inputs**-0.5
        weights.append(torch.empty(outputs, inputs).uniform_(-bound, bound, generator=generator))
        biases.append(torch.empty(outputs).uniform_(-bound, bound, generator=generator))
    return ValueFunction(*(tuple(t.to(device).requires_grad_() for t in tensors) for tensors in (weights, biases)))


def _copy(network: ValueFunction) -> ValueFunction:
    return ValueFunction(*(tuple(t.detach().clone() for t in tensors) for tensors in network))


@torch.no_grad()
def _error(network: ValueFunction, data: _Data, rows: Collection[int], size: int) -> float:
    """Return the mean squared error of V against the reward over all states, in training units."""
    total, count = 0.0, 0
    for batch, goals in data.batches(rows, size):
        each = goals.repeat_interleave(torch.tensor(batch.lengths, device=goals.device))
        total += float((network(batch.states) - each).square().sum())
        count += len(batch.states)
    if not math.isfinite(total):
        raise SteerbenchError(DIVERGED)
    return total / count


def _argmin(errors: Sequence[float]) -> int:
    return errors.index(min(errors))


def _correlation(a: Tensor, b: Tensor) -> float | None:
    if len(a) < 2 or float(a.std()) == 0 or float(b.std()) == 0:
        return None
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


@torch.no_grad()
def step_for(value: ValueFunction, states: Tensor, n_steps: int, relative_norm: float | None = None) -> float:
    """Return the step size at which the median of |u| / |state| over states (rows, width) is `relative_norm`, or 0.2.

    Exact up to 1 %: u is nearly linear in the step size. Raises SteerbenchError where V has no gradient.
    """
    relative_norm = RELATIVE_NORM if relative_norm is None else relative_norm
    if relative_norm < 0:
        raise SteerbenchError(f"relative_norm={relative_norm} is no length; give 0 or more, such as 0.1.")
    if not relative_norm or not n_steps:
        return 0.0
    ascent = Ascent(*value, 1.0, n_steps).to(states.device)
    for _ in range(20):
        found = float((ascent.shift(states).norm(dim=-1) / states.norm(dim=-1)).median())
        if not found or not math.isfinite(found):
            raise SteerbenchError("the value function has no usable gradient at the states of the rollouts.")
        ascent.step_size *= relative_norm / found
        if abs(found / relative_norm - 1) < 0.01:
            break
    return ascent.step_size
