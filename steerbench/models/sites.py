"""Sites: named places in a decoder-only model whose activation can be read or edited, found by structure."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import torch
from torch import nn
from transformers import PreTrainedModel

from steerbench.errors import SteerbenchError, suggest
from steerbench.models.modes import evaluating

SiteName = Literal["resid_pre", "resid_post", "attn_out", "mlp_pre", "mlp_out", "z", "final"]
SITE_NAMES: tuple[str, ...] = get_args(SiteName)


@dataclass(frozen=True, order=True)
class Site:
    """A place in the network. `layer` counts blocks from 0; `final` has none.

    - `resid_pre`: input of block `layer`, the embedding at layer 0, width d_model
    - `resid_post`: output of block `layer`, width d_model
    - `attn_out`: output of the attention's output projection, before any post-norm, width d_model
    - `mlp_pre`: output of the first linear map of the feed-forward part, before its activation: the gate where there is
      one; width d_ff, and 2 * d_ff where one map makes gate and up projection, as in Phi-3
    - `mlp_out`: output of the feed-forward part, before any post-norm, width d_model
    - `z`: input of the attention's output projection, the concatenated heads, width n_heads * d_head
    - `final`: input of the LM head, after the final norm, width d_model
    """

    name: SiteName
    layer: int | None = None

    def __post_init__(self) -> None:
        if self.name not in SITE_NAMES:
            raise SteerbenchError(suggest("site", self.name, list(SITE_NAMES)))
        if (self.layer is None) != (self.name == "final"):
            needs = "takes no layer" if self.name == "final" else "needs a layer"
            raise SteerbenchError(f"site {self.name!r} {needs}.")

    def __str__(self) -> str:
        return self.name if self.layer is None else f"{self.name}.{self.layer}"

    @staticmethod
    def parse(text: str) -> "Site":
        """Read what `str(site)` wrote: `final`, `resid_post.4`."""
        name, _, layer = text.partition(".")
        if layer and not layer.isdecimal():
            raise SteerbenchError(f"{text!r} is no site: the layer must be a number, as in `resid_post.4`.")
        return Site(name, int(layer) if layer else None)  # type: ignore[arg-type]


class Place(NamedTuple):
    """Where a site is: the input or the output of a module."""

    module: nn.Module
    side: Literal["input", "output"]


class Anatomy:
    """The parts of a decoder-only model, found by structure and not by a list of class names."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks: the heaviest module list with one entry per layer of the configuration."""
        depth = self._model.config.get_text_config(decoder=True).num_hidden_layers
        lists = [m for m in self._model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
        if not lists:
            raise self._missing(f"a module list of {depth} decoder blocks")
        return max(lists, key=lambda blocks: sum(p.numel() for p in blocks.parameters()))

    @cached_property
    def head(self) -> nn.Module:
        """The LM head."""
        head = self._model.get_output_embeddings()
        if not isinstance(head, nn.Module):
            raise self._missing("the output embedding (LM head)")
        return head

    def place(self, site: Site) -> Place:
        """Find a site. Raises SteerbenchError naming the module that could not be found."""
        if site.layer is None:
            return Place(self.head, "input")
        if not 0 <= site.layer < len(self.blocks):
            raise SteerbenchError(f"layer {site.layer} of site {site} is outside 0..{len(self.blocks) - 1}.")
        return Place(self._module(site.name, site.layer), "input" if site.name in {"resid_pre", "z"} else "output")

    def _module(self, name: SiteName, layer: int) -> nn.Module:
        if name in {"resid_pre", "resid_post"}:
            return self.blocks[layer]
        if name == "mlp_pre":
            return self._first_map(layer)
        return self._mlp(layer) if name == "mlp_out" else self._projection(layer)

    def _projection(self, layer: int) -> nn.Module:
        """Return the attention's output projection: the last linear map its forward pass calls."""
        attention = self._attention(layer)
        calls = [name for name in self._calls[layer] if _below(name, attention)]
        if not calls:
            raise self._missing(f"the output projection of the attention in block {layer}")
        return self.blocks[layer].get_submodule(calls[-1])

    def _mlp(self, layer: int) -> nn.Module:
        """Return the part of the block that runs the last linear map outside the attention, or that map itself."""
        return self.blocks[layer].get_submodule(self._outside(layer)[-1].split(".")[0])

    def _first_map(self, layer: int) -> nn.Module:
        """Return the first linear map of the feed-forward part. Experts have one each, and their router is none."""
        calls = self._outside(layer)
        part = calls[-1].split(".")[0]
        calls = [name for name in calls if _below(name, part)] if part != calls[-1] else calls  # OPT has no such part
        if len(calls) < 2 or _holds_experts(self._mlp(layer)):
            raise self._missing(f"one linear map before the activation of the feed-forward part in block {layer}")
        return self.blocks[layer].get_submodule(calls[0])

    def _outside(self, layer: int) -> list[str]:
        """Return the linear maps outside the attention, in the order of their calls."""
        attention = self._attention(layer)
        calls = [name for name in self._calls[layer] if not _below(name, attention)]
        if not calls:
            raise self._missing(f"the feed-forward part of block {layer}")
        return calls

    def _attention(self, layer: int) -> str:
        """Return the name of the block's attention child: it says `attn` or `attention` and holds linear maps."""
        for name, child in self.blocks[layer].named_children():
            if ("attn" in name or "attention" in name) and any(_is_linear(m) for m in child.modules()):
                return name
        raise self._missing(f"the attention of block {layer}")

    @cached_property
    def _calls(self) -> list[list[str]]:
        """Names of the linear maps of each block, in the order in which a forward pass calls them.

        The order of registration would mislead: Phi-3 registers its output projection first.
        """
        calls: list[list[str]] = [[] for _ in self.blocks]
        handles = []
        for names, block in zip(calls, self.blocks, strict=True):
            for name, module in block.named_modules():
                if _is_linear(module):
                    handles.append(module.register_forward_pre_hook(lambda m, a, n=name, c=names: c.append(n)))
        try:
            ids = torch.zeros(1, 1, dtype=torch.long, device=self._model.device)
            with torch.no_grad(), evaluating(self._model):
                self._model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return calls

    def _missing(self, what: str) -> SteerbenchError:
        kind = type(self._model).__name__
        return SteerbenchError(f"{kind} is not supported: could not find {what}.")


def _is_linear(module: nn.Module) -> bool:
    """Tell a linear map (also transformers' Conv1D and quantised ones) from norms, embeddings and containers."""
    weight = getattr(module, "weight", None)
    leaf = not any(True for _ in module.children())
    return leaf and isinstance(weight, torch.Tensor) and weight.ndim == 2 and not isinstance(module, nn.Embedding)


def _holds_experts(part: nn.Module) -> bool:
    """Tell a mixture of experts: their weights are stacked in one parameter, or stand in a list of modules."""
    listed = any(isinstance(m, nn.ModuleList) for m in part.modules())
    return listed or any(p.ndim > 2 for p in part.parameters())


def _below(name: str, parent: str) -> bool:
    return name == parent or name.startswith(parent + ".")
