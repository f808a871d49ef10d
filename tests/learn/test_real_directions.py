"""The methods that find directions, on real preference data and a real small chat model."""

from collections import Counter
from pathlib import Path

import pytest
from thorough import mostly_slow

from steerbench import Decoding, FitContext, LanguageModel, generate
from steerbench.bench.prompt_limit import fitting
from steerbench.data import user
from steerbench.data.splits import folder_of, load_data
from steerbench.learn import RewardModel
from steerbench.plugins import registry
from steerbench.plugins.spec import build, parse

METHODS = [
    "caa:layer=0:pool=last_response:relative_norm=0.5",
    "caa:pairs=choices:pool=last_response:relative_norm=0.5",
    "iti:n_heads=8:relative_norm=0.5",
    "repe:relative_norm=0.3",
    "ablation",
    "ablation:form=affine",
    "act_add",
    "alignez:n_queries=12:max_cosine=0.95:strength=3",
    "alignez:version=1:n_queries=24:end_token=true:strength=2",
]


@pytest.fixture(scope="module")
def context(assets: Path) -> FitContext:
    """Of 32 dialogues of HH-RLHF; everything that methods share is computed once."""
    lm = LanguageModel.load(str(assets / "models" / "tinytalk-3m-chat"))
    data = load_data(registry.load("tasks", "hh_rlhf")(), folder_of("hh_rlhf", assets / "data" / "hh_rlhf"))
    reward = RewardModel.load(str(assets / "models" / "minilm-hh-reward"))

    examples = fitting(lm, data.train, 32, 60, Counter())
    return FitContext(lm=lm, examples=examples, reward=reward, decoding=Decoding(max_new_tokens=16))


@pytest.mark.parametrize("spec", mostly_slow(METHODS, lambda spec: spec.startswith("repe")))
def test_a_direction_from_real_pairs_changes_real_answers(context: FitContext, spec: str) -> None:
    prompts = [e.prompt for e in context.examples[:6]] + [user("How do I bake bread?")]
    steering = build(parse(spec)[0])[0].fit(context)
    before = generate(context.lm, prompts, decoding=context.decoding)
    after = generate(context.lm, prompts, steering, context.decoding)
    assert [r.text for r in after] != [r.text for r in before]
    assert any(r.text for r in after)
