"""Sites: named places in a decoder-only model whose activation can be read or edited, found by structure."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import nn
from transformers import PreTrainedModel

from steerbench.errors import SteerbenchError, suggest
from steerbench.models.block_trace import BlockTrace, called, is_linear, traced

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
    - `mlp_out`: output of the feed-forward part, of its last linear map where the part adds the residual itself, before
      any post-norm, width d_model
    - `z`: input of the attention's output projection, the concatenated heads, width n_heads * d_head
    - `final`: input of the LM head, after the final norm, width d_model
    """

    name: SiteName
    """One of the names above."""
    layer: int | None = None
    """Counted from 0; None at `final` alone."""

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
        """The decoder blocks: the module list that a text passes, with one entry per layer of the text's configuration.

        Experts may be as many and stand in lists, too, which are parts of that one: it is the heaviest.
        """
        depth = getattr(self._config, "num_hidden_layers", None)
        lists = [m for m in self._model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
        if len(lists) > 1:
            lists = called(self._model, lists)
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

    def layers(self, name: SiteName) -> list[int]:
        """Return the layers that have a site: of a hybrid, only some have an attention. Raises where none has it."""
        layers = range(len(self.blocks))
        found = [layer for layer in layers if self._has(Site(name, layer))]
        if not found:
            self.place(Site(name, 0))  # says why
        return found

    def n_heads(self, layer: int) -> int:
        """Return the number of heads that `z` consists of: of a linear attention those of its values."""
        attention = self.blocks[layer].get_submodule(self._attention(layer))
        own = (getattr(attention, name, None) for name in ("num_v_heads", "num_heads", "n_heads"))
        found = next((n for n in own if isinstance(n, int)), None)
        return int(self._config.num_attention_heads) if found is None else found  # which raises where layers differ

    def _has(self, site: Site) -> bool:
        try:
            self.place(site)
        except SteerbenchError:
            return False
        return True

    def _module(self, name: SiteName, layer: int) -> nn.Module:
        if name in _ON_THE_STREAM:
            self._check_stream(layer)
        if name in {"resid_pre", "resid_post"}:
            return self.blocks[layer]
        if name == "mlp_pre":
            return self._first_map(layer)
        return self._mlp(layer) if name == "mlp_out" else self._projection(layer)

    def _check_stream(self, layer: int) -> None:
        """Refuse a residual stream of several copies, such as Gemma 3n's: what is added to one is not a state."""
        shape = self._traces[layer].shape
        width = self._config.hidden_size
        if len(shape) != 3 or shape[-1] != width:
            copies = torch.Size(shape).numel() / width
            raise SteerbenchError(
                f"{type(self._model).__name__} has a residual stream of {copies:g} copies of its {width} values, and "
                "no one state between its blocks; use a site within them, such as `z`, or `final`."
            )

    def _projection(self, layer: int) -> nn.Module:
        """Return the attention's output projection: the last linear map its forward pass calls."""
        attention = self._attention(layer)
        maps = [name for name in self._traces[layer].maps if _below(name, attention)]
        if not maps:
            raise self._missing(f"the output projection of the attention in block {layer}")
        return self.blocks[layer].get_submodule(maps[-1])

    def _mlp(self, layer: int) -> nn.Module:
        """Return the feed-forward part, or its last map where it adds the residual itself, as in Bloom and BERT."""
        part, maps = self._feed_forward(layer)
        own = part and (self._traces[layer].given.get(part, 1) < 2 or not maps)
        return self.blocks[layer].get_submodule(part if own else maps[-1])

    def _first_map(self, layer: int) -> nn.Module:
        """Return the first linear map of the feed-forward part. Experts have one each, and their router is none."""
        part, maps = self._feed_forward(layer)
        if len(maps) < 2 or (part and _holds_experts(self.blocks[layer].get_submodule(part))):
            raise self._missing(f"one linear map before the activation of the feed-forward part in block {layer}")
        return self.blocks[layer].get_submodule(maps[0])

    def _feed_forward(self, layer: int) -> tuple[str, list[str]]:
        """Return the name of the feed-forward part, and its linear maps in the order of their calls.

        The name is empty where the maps stand in the block itself, as in OPT: then they are all outside the attention.
        """
        block, maps = self.blocks[layer], self._traces[layer].maps
        parts = [name for name, child in block.named_children() if _says(_FEED_FORWARD, name, child)]
        if len(parts) > 1:
            raise self._missing(f"one feed-forward part in block {layer}, which adds up {' and '.join(parts)}")
        if not parts:
            attention = self._attention(layer)
            outside = [name for name in maps if not _below(name, attention)]
            if not outside:
                raise self._missing(f"the feed-forward part of block {layer}")
            return "", outside
        return parts[0], [name for name in maps if _below(name, parts[0])]

    def _attention(self, layer: int) -> str:
        """Return the name of the block's attention: the child, or its class, says so, and it holds linear maps."""
        for name, child in self.blocks[layer].named_children():
            if _says(_ATTENTION, name, child):
                return name
        raise self._missing(f"the attention of block {layer}")

    @cached_property
    def _traces(self) -> list[BlockTrace]:
        return traced(self._model, self.blocks)

    @property
    def _config(self) -> Any:
        return self._model.config.get_text_config(decoder=True)

    def _missing(self, what: str) -> SteerbenchError:
        kind = type(self._model).__name__
        return SteerbenchError(f"{kind} is not supported: could not find {what}.")


_ON_THE_STREAM = {"resid_pre", "resid_post", "attn_out", "mlp_out"}
_ATTENTION = ("attn", "attention")
_FEED_FORWARD = ("mlp", "ffn", "feed_forward", "feedforward", "moe", "experts")


def _says(words: tuple[str, ...], name: str, part: nn.Module) -> bool:
    """Tell what a part of a block is by its name, or by how its class ends; the norm before it is called alike."""
    said = any(word in name.lower() for word in words) or type(part).__name__.lower().endswith(words)
    return said and (any(is_linear(m) for m in part.modules()) or _holds_experts(part))


def _holds_experts(part: nn.Module) -> bool:
    """Tell a mixture of experts: their weights are stacked in one parameter, or stand in a list of modules."""
    listed = any(isinstance(m, nn.ModuleList) for m in part.modules())
    return listed or any(p.ndim > 2 for p in part.parameters())


def _below(name: str, parent: str) -> bool:
    return name == parent or name.startswith(parent + ".")
