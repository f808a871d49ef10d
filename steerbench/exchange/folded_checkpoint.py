"""A checkpoint with the edit inside: constants become biases, so that any engine runs them at full speed."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from steerbench.engine.bias_folding import moved_bias
from steerbench.engine.logits import batch_logits
from steerbench.errors import SteerbenchError
from steerbench.models.block_trace import is_linear
from steerbench.models.checkpoint import quiet
from steerbench.models.language_model import LanguageModel, Tokens
from steerbench.models.sites import Anatomy, Site
from steerbench.steering.parts import PlacedEdit
from steerbench.steering.steering import Steering

_SWITCHES = ("mlp_bias", "attention_bias", "bias", "use_bias")
"""Fields of configurations that give linear maps a bias."""


def write_folded(folder: Path, steering: Steering, lm: LanguageModel) -> None:
    """Write a model folder that answers as the steered model does, with plain transformers and without steerbench.

    Raises SteerbenchError where an edit is no constant over all positions, or where the family's linear maps have no
    bias that a checkpoint could keep.
    """
    if steering.prompt or steering.logits or steering.decode or not steering.edits:
        raise SteerbenchError("only edits of activations can be folded into a checkpoint.")
    model = _with_biases(lm.model)
    anatomy = Anatomy(model)
    for placed in steering.edits:
        _fold(anatomy, placed)
    _check(lm, steering, model)
    with quiet():
        model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)


@torch.no_grad()
def _with_biases(own: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of the model, with a bias of zero wherever its configuration can have one."""
    config = copy.deepcopy(own.config)
    for switch in _SWITCHES:
        if getattr(config, switch, None) is False:
            setattr(config, switch, True)
    with quiet():
        model: PreTrainedModel = type(own)(config).to(own.dtype).to(own.device)
    lacking = model.load_state_dict(own.state_dict(), strict=False).missing_keys
    for name in lacking:
        if not name.endswith(".bias"):
            raise SteerbenchError(f"{type(own).__name__} cannot be copied with biases: {name} would be missing.")
        model.get_parameter(name).zero_()
    model.generation_config = copy.deepcopy(own.generation_config)
    return model.eval()


@torch.no_grad()
def _fold(anatomy: Anatomy, placed: PlacedEdit) -> None:
    """Add an edit to the bias of the linear map that writes to where it acts."""
    what, constant = f"{type(placed.edit).__name__} at {placed.site}", placed.edit.constant()
    if constant is None:
        raise SteerbenchError(f"{what} is no constant, and a bias is nothing else.")
    if placed.scope != "all":
        raise SteerbenchError(f"{what} steers the {placed.scope} alone, and a bias every position; use scope=all.")
    site, module = placed.site, _writer(anatomy, placed.site)
    if module is None or module.bias is None:
        raise SteerbenchError(f"{what} cannot be folded: no bias in this model writes to {site}.")
    moved = moved_bias(module, constant.to(module.weight.device), "input" if site.name == "z" else "output")
    module.bias.copy_(module.bias.to(moved.dtype) + moved)


def _writer(anatomy: Anatomy, site: Site) -> Any:
    """Return the linear map whose bias is added where a site is: for a block's output its feed-forward part's last."""
    if site.name not in {"resid_post", "mlp_out", "attn_out", "z"}:
        return None
    where = Site("mlp_out", site.layer) if site.name == "resid_post" else site
    module: Any = anatomy.place(where).module
    maps = [m for m in module.modules() if is_linear(m)]
    return maps[-1] if maps else None


@torch.no_grad()
def _check(lm: LanguageModel, steering: Steering, model: PreTrainedModel) -> None:
    """Refuse a checkpoint that does not answer as the steered model does: one with a norm behind the bias, say."""
    tokens = lm.text_tokens("What is a bias, and what is it good for?")
    split = Tokens(tokens.prompt[:-4], tokens.prompt[-4:])
    (wanted,) = batch_logits(lm, [split], steering)
    ids = torch.tensor([tokens.prompt], device=lm.device)
    found: Tensor = model(input_ids=ids).logits[0, -5:-1].float()
    error = float((found - wanted).abs().max() / wanted.abs().max())
    if error > (1e-4 if lm.dtype == torch.float32 else 0.05):
        raise SteerbenchError(
            f"{type(model).__name__} with the edit in its biases does not answer as the steered model does "
            f"(logits differ by {error:.1%}); it cannot be folded."
        )
