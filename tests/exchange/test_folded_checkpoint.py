"""A checkpoint with the edit in its biases says what the steered model says, in plain transformers."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from steerbench.contract import tiny
from steerbench.decoding import Decoding
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.engine.generate import generate
from steerbench.errors import SteerbenchError
from steerbench.exchange.folded_checkpoint import write_folded
from steerbench.models.language_model import LanguageModel
from steerbench.steering.steering import Steering

PROMPTS = ["How do I bake bread?", "Paint a shelf"]


def shift(site: str, scope: str = "all") -> Steering:
    vector = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(1))
    return Steering(edits=(PlacedEdit(Site.parse(site), Add(vector, 2.0), scope),))  # type: ignore[arg-type]


@pytest.mark.parametrize("site", ["resid_post.0", "attn_out.1", "z.0", "mlp_out.1"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_it_generates_token_for_token_what_the_edit_does(kind: str, site: str, tmp_path: Path) -> None:
    lm, steering = tiny.language_model(kind), shift(site)
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    write_folded(tmp_path / "folded", steering, lm)
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "folded")
    decoding = Decoding(max_new_tokens=12)
    wanted = generate(lm, PROMPTS, steering, decoding)
    assert [r.ids for r in generate(lm, PROMPTS, decoding=decoding)] != [r.ids for r in wanted]
    folded = LanguageModel(plain, lm.tokenizer)
    assert [r.ids for r in generate(folded, PROMPTS, decoding=decoding)] == [r.ids for r in wanted]


@pytest.mark.parametrize(
    ("kind", "steering", "says"),
    [
        ("llama", shift("resid_post.0", "response"), "use scope=all"),
        ("llama", shift("final"), "no bias in this model writes to final"),
        ("qwen2", shift("resid_post.0"), "no bias in this model"),
        ("gemma2", shift("resid_post.0"), "no bias in this model"),
        ("llama", Steering(), "only edits"),
    ],
)
def test_what_no_bias_can_do_is_refused(kind: str, steering: Steering, says: str, tmp_path: Path) -> None:
    with pytest.raises(SteerbenchError, match=says):
        write_folded(tmp_path / "folded", steering, tiny.language_model(kind))
    assert not (tmp_path / "folded").exists()
