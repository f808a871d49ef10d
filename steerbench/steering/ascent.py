"""Gradient ascent on a value function, carried out where it is cheap: the edit of RE-Control.

For a ReLU network `V(x) = w · relu(W2 relu(W1 x + b1) + b2) + b3` the gradient is two masked products,
`W1' ((W2' (w * [z2 > 0])) * [z1 > 0])`, so no autograd is needed. All iterates stay in `x + span(W1')`: with
`z1 = W1 x + b1` and the Gram matrix `G = W1 W1'`, the step `x += a * gradient` is `z1 += a * G g`, where g is the
gradient with respect to z1. The way back to the state, `u = a * W1' sum(g)`, is gone once. A step costs three products,
not four; with one hidden layer one, not two.

A product `(w * mask) @ M` is cheaper still where masks hardly change from one step to the next: it moves by the rows of
M that belong to the units that flipped. That leaves two products per step, and with one hidden layer none.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from steerbench.errors import SteerbenchError
from steerbench.steering.annotations import as_floats
from steerbench.steering.parts import Edit

FLIPS_FROM = 1024
"""Hidden units from which it pays on a CPU to look for those that flipped. A GPU would have to wait for the answer."""
GRAPH_UP_TO = 256
"""Rows up to which the loop is captured on a GPU: a decoding step, not a text that is scored."""


class Ascent(Edit):
    """h + u, where u is the sum of `n_steps` steps `u += step_size * grad V(h + u)`, at each position by itself.

    V is a ReLU network of one to three linear maps: `weights[i]` is (out, in), `biases[i]` (out,), and the last map has
    one output. `step_size` is in squared units of the state per unit of value. With one map V is linear, u a constant.
    With a `target`, in units of V, no step is taken from where V has reached it.
    """

    gram: Tensor

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        step_size: float,
        n_steps: int,
        target: float | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= len(weights) <= 3 or len(weights) != len(biases):
            raise ValueError(f"a value network has 1 to 3 linear maps, not {len(weights)} with {len(biases)} biases")
        if n_steps < 0:
            raise SteerbenchError(f"n_steps={n_steps} is no number of steps; give 0 or more.")
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            self.register_buffer(f"weight_{i}", as_floats(f"weights[{i}]", weight, 2).contiguous())
            self.register_buffer(f"bias_{i}", as_floats(f"biases[{i}]", bias, 1))
        _check_chain(weights, biases)
        if len(weights) > 1:
            self.register_buffer("gram", weights[0].float() @ weights[0].float().T, persistent=False)
        self.depth, self.step_size, self.n_steps, self.target = len(weights), step_size, n_steps, target
        self._graph: _Graph | None = None

    @property
    def weights(self) -> list[Tensor]:
        """The linear maps from first to last, (out, in) each."""
        return [getattr(self, f"weight_{i}") for i in range(self.depth)]

    @property
    def biases(self) -> list[Tensor]:
        """Their biases, (out,) each."""
        return [getattr(self, f"bias_{i}") for i in range(self.depth)]

    def forward(self, h: Tensor, state: Any) -> Tensor:
        """Add u at every position."""
        if not self.n_steps or not self.step_size:
            return h
        rows = h.reshape(-1, h.shape[-1])
        if rows.is_cuda and len(rows) <= GRAPH_UP_TO:
            return h + self._captured(rows).reshape(h.shape)
        return h + self.shift(rows).reshape(h.shape)

    def shift(self, x: Tensor) -> Tensor:
        """Return u for each state; x and u are (rows, width)."""
        weights, biases = ([t.to(x.dtype) for t in tensors] for tensors in (self.weights, self.biases))
        if self.depth == 1:
            return self._steps(x, weights[0], biases[0]) * (self.step_size * weights[0])
        z = torch.addmm(biases[0], x, weights[0].T)
        climb = _one_hidden_layer if self.depth == 2 else _two_hidden_layers
        total = climb(z, self.gram.to(x.dtype), weights, biases, self.step_size, self.n_steps, self.target)
        return self.step_size * (total @ weights[0])

    def _steps(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return how many steps up a linear V are taken from each state, (rows, 1): each adds as much to V."""
        if self.target is None:
            return torch.full_like(x[:, :1], self.n_steps)
        missing = (self.target - torch.addmm(bias, x, weight.T)) / (self.step_size * weight.square().sum())
        return missing.nan_to_num(0.0).ceil().clamp(0, self.n_steps)

    def _captured(self, x: Tensor) -> Tensor:
        """Replay the loop as a CUDA graph: it is bound by memory traffic then, not by launching kernels."""
        if self._graph is None or self._graph.shape != x.shape:
            self._graph = _Graph(self.shift, x)
        return self._graph(x)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_graph": None}  # a graph belongs to one stream and cannot be copied


def _check_chain(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
    """Check that each linear map takes what the one before it gives, and that the last gives one number."""
    inputs = [weight.shape[1] for weight in weights[1:]] + [1]
    for i, (weight, bias, wanted) in enumerate(zip(weights, biases, inputs, strict=True)):
        if not len(weight) == len(bias) == wanted:
            raise ValueError(f"weights[{i}] has {len(weight)} outputs and biases[{i}] {len(bias)}, not {wanted}")


def _one_hidden_layer(
    z: Tensor,
    gram: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    step_size: float,
    n_steps: int,
    target: float | None,
) -> Tensor:
    """Return the sum over all steps of the gradient with respect to z, (rows, hidden)."""
    w, total = weights[1].expand_as(z), torch.zeros_like(z)
    product = _masked_product(weights[1][0], gram, z)
    for _ in range(n_steps):
        gradient, step = _where_active(w, z), product(z)
        if target is not None:
            below = _below(target, z, weights, biases)
            gradient, step = gradient * below, step * below
        total += gradient
        z = torch.add(z, step, alpha=step_size)
    return total


def _two_hidden_layers(
    z: Tensor,
    gram: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    step_size: float,
    n_steps: int,
    target: float | None,
) -> Tensor:
    """Return the same for two hidden layers, where z belongs to the first."""
    total = torch.zeros_like(z)
    product = _masked_product(weights[2][0], weights[1], z)
    for _ in range(n_steps):
        z2 = torch.addmm(biases[1], z.relu(), weights[1].T)
        gradient = _where_active(product(z2), z)
        if target is not None:
            gradient = gradient * _below(target, z2, weights, biases)
        total += gradient
        z = torch.addmm(z, gradient, gram.T, alpha=step_size)  # symmetric; this way round is faster on a CPU
    return total


def _below(target: float, z: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Return 1 where V is below the target and 0 elsewhere, (rows, 1); `z` belongs to the last hidden layer."""
    return (torch.addmm(biases[-1], z.relu(), weights[-1].T) < target).to(z.dtype)


def _where_active(x: Tensor, z: Tensor) -> Tensor:
    """Return x where the unit is active, z > 0, and 0 elsewhere: in one kernel, the derivative of a ReLU."""
    active: Tensor = torch.ops.aten.threshold_backward(x, z, 0)
    return active


def _masked_product(w: Tensor, matrix: Tensor, z: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function z (rows, hidden) -> (w * [z > 0]) @ matrix, for a sequence of z that differ little."""
    if z.is_cuda or len(w) < FLIPS_FROM:
        return lambda z: _where_active(w.expand_as(z), z) @ matrix
    return _Flips(w, matrix)


class _Flips:
    """(w * [z > 0]) @ matrix, from the last result and the rows of units that flipped since, where these are few."""

    def __init__(self, w: Tensor, matrix: Tensor) -> None:
        self._w, self._matrix = w, matrix
        self._active: Tensor | None = None

    def __call__(self, z: Tensor) -> Tensor:
        active = z > 0
        flipped = None if self._active is None else (active ^ self._active).nonzero()
        if flipped is None or 4 * len(flipped) > len(self._w):  # a row read by its index costs about four times as much
            self._value = (self._w * active) @ self._matrix
        elif len(flipped):
            rows, units = flipped.unbind(1)
            change = torch.where(active[rows, units], self._w[units], -self._w[units])
            self._value = self._value.index_add(0, rows, self._matrix[units] * change[:, None])
        self._active = active
        return self._value


class _Graph:
    """A function of a tensor, recorded once on a GPU and replayed for tensors of the same shape."""

    def __init__(self, function: Callable[[Tensor], Tensor], example: Tensor) -> None:
        self.shape = example.shape
        self._input = example.clone()
        with torch.cuda.device(example.device):  # not always the current one: --device cuda:1, or a sharded model
            side, here = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
            side.wait_stream(here)
            with torch.cuda.stream(side):  # once without recording: libraries allocate on their first call
                function(self._input)
            here.wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=side):
                self._output = function(self._input)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the function's value, valid until the next call."""
        self._input.copy_(x)
        with torch.cuda.device(x.device):
            self._graph.replay()
        return self._output
