"""A model on several devices: edits, caches and what follows rows are where the states are.

No test here has two devices that compute: tensors without values stand for the other ones, and mixing them is an error.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from steerbench import LanguageModel, Steering, generate
from steerbench.contract import tiny
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.engine.install import Editor
from steerbench.engine.positions import Positions, Rearrangement
from steerbench.errors import SteerbenchError
from steerbench.models import checkpoint
from steerbench.models.language_model import Batch

IDS = torch.tensor([[3, 4, 5], [6, 7, 8]])


def test_an_edit_follows_the_states_that_come_from_another_device(llama: LanguageModel) -> None:
    site = Site("resid_pre", 1)
    positions = Positions(Batch(IDS, torch.ones_like(IDS), [3, 3]), [], cached=True)
    editor = Editor([PlacedEdit(site, Add(torch.ones(tiny.WIDTH)), "response")], positions, llama.anatomy.place(site))
    elsewhere = torch.device("meta")
    for width in (3, 1):  # the prompt, and a step, which adds a sum that was made before
        positions.advance(IDS[:, :width])
        edited = editor(torch.zeros(2, width, tiny.WIDTH, device=elsewhere))
        assert edited is not None
        assert (edited.device, edited.shape) == (elsewhere, (2, width, tiny.WIDTH))


@pytest.mark.parametrize("plain", [True, False])
def test_rows_of_a_cache_are_kept_on_its_device(plain: bool) -> None:
    with FakeTensorMode():
        rows, shifts = torch.zeros(3, dtype=torch.long, device="meta:0"), torch.ones(3, device="meta:0").long()
        change = Rearrangement(rows, shifts, width=4, plain=plain, old_rows=2)
        keys = change.of_cache(torch.zeros(2, 2, 5, 8, device="meta:1"))
        assert (keys.device, keys.shape) == (torch.device("meta:1"), (3, 2, 4, 8))
        values = change.of_columns(torch.zeros(2, 5, 8, device="meta:1"))
        assert (values.device, values.shape) == (torch.device("meta:1"), (3, 4, 8))


def test_parts_of_a_model_that_accelerate_places_are_steered_alike(world: Path) -> None:
    """Its hooks around each part, and ours: the same tokens. Both parts are on this device."""
    accelerate: Any = pytest.importorskip("accelerate", reason="the extra steerbench[large] is not installed")
    plain, parted = (LanguageModel.load(str(world / "lm")) for _ in range(2))
    parts = [name for name, _ in parted.model.model.named_children() if name != "layers"]
    layers = [f"layers.{i}" for i in range(parted.n_layers)]
    where = {f"model.{name}": "cpu" for name in [*parts, *layers]} | {"lm_head": "cpu"}
    accelerate.dispatch_model(parted.model, where, force_hooks=True)
    assert hasattr(parted.model.model.layers[0], "_hf_hook")
    vector = torch.linspace(-2, 2, plain.model.config.hidden_size)
    sites = (Site("resid_pre", 1), Site("attn_out", 0), Site("mlp_out", 1), Site("final"))
    edits = tuple(PlacedEdit(site, Add(vector, 2.0), "response") for site in sites)
    prompts = ["How do I bake bread?", "Why?"]
    found = [[r.ids for r in generate(lm, prompts, Steering(edits=edits))] for lm in (plain, parted)]
    assert found[0] == found[1] != [r.ids for r in generate(plain, prompts)]


def test_a_map_is_loaded_and_steered(world: Path) -> None:
    pytest.importorskip("accelerate", reason="the extra steerbench[large] is not installed")
    plain, mapped = LanguageModel.load(str(world / "lm")), LanguageModel.load(str(world / "lm"), device_map="auto")
    steering = Steering(edits=(PlacedEdit(Site("resid_post", 0), Add(torch.ones(tiny.WIDTH), 3.0), "response"),))
    one, other = (generate(lm, ["Why?", "How so?"], steering) for lm in (plain, mapped))
    assert [r.ids for r in one] == [r.ids for r in other]


def test_without_accelerate_the_extra_is_named(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "find_spec", lambda name: None)
    with pytest.raises(SteerbenchError, match=r"accelerate, which is not installed: pip install 'steerbench\[large\]'"):
        LanguageModel.load(str(world / "lm"), device_map="auto")
