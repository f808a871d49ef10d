"""RepE against a singular value decomposition in numpy, layer by layer."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor
from transformers import AutoModelForCausalLM

from steerbench import Example, FitContext, LanguageModel, SteerbenchError, Steering, load
from steerbench.contract import tiny
from steerbench.data import plain_text, user
from steerbench.edits import Add, Site
from steerbench.learn import Tokens, response_logits

EXAMPLES = tiny.examples()[:6]
TOKENS = [Tokens((5, 6, 7), (8, 9)), Tokens((10,), (11, 12, 13))]
EVERY_LAYER = {"first_layer": 0, "last_layer": 2}
CERTAIN: dict[str, Any] = {"swapped": False, "relative_norm": None}
"""Without chance, and as long as the coefficient."""
OF_REPLIES = {"pairs": "preferences", "pool": "last_response"}


def context(lm: LanguageModel, examples: list[Example] | None = None) -> FitContext:
    return FitContext(lm=lm, examples=EXAMPLES if examples is None else examples, reward=tiny.VowelReward())


def fit(lm: LanguageModel, *args: Any, **fields: Any) -> Steering:
    return load("methods", "repe")(**fields).fit(context(lm, *args))


def vectors(steering: Steering) -> dict[int, Tensor]:
    """Layer -> vector, strength left out."""
    found = {}
    for placed in steering.edits:
        assert isinstance(placed.edit, Add)
        assert placed.site.layer is not None
        assert placed.site == Site("resid_post", placed.site.layer)
        found[placed.site.layer] = placed.edit.vector
    return found


def logits(lm: LanguageModel, steering: Steering | None = None) -> list[Tensor]:
    found = dict(response_logits(lm, TOKENS, steering or Steering()))
    return [found[i] for i in range(len(TOKENS))]


def deep(n: int) -> LanguageModel:
    """Return a tiny Llama of this depth."""
    config = tiny.FAMILIES["llama"]()
    config.num_hidden_layers = n
    torch.manual_seed(0)
    return LanguageModel(AutoModelForCausalLM.from_config(config), tiny.tokenizer())


def block_outputs(lm: LanguageModel, text: str) -> Tensor:
    """Return what each block puts out at the last token of a text, (layers, width), read alone and unpadded."""
    seen: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda m, a, o: seen.append((o if isinstance(o, Tensor) else o[0])[0, -1].clone()))
        for block in lm.anatomy.blocks
    ]
    with torch.no_grad():
        lm.model(torch.tensor([lm.tokenizer(text)["input_ids"]]))
    for handle in handles:
        handle.remove()
    return torch.stack(seen)


def naive_states(lm: LanguageModel) -> tuple[Tensor, Tensor]:
    """Return the states of each query under both personas, (queries, layers, width)."""
    personas = ("You are a helpful assistant.", "Pretend you are a useless assistant.")
    good, bad = (
        torch.stack([block_outputs(lm, f"{persona}\n\n{plain_text(e.prompt)}") for e in EXAMPLES])
        for persona in personas
    )
    return good, bad


# The formula


@pytest.mark.parametrize("on", sorted(set(tiny.FAMILIES) - {"mistral"}))
def test_is_the_first_singular_vector_in_each_layer(on: str) -> None:
    """Not on Mistral, whose window of 16 tokens shows the end of the prompt no persona: nothing differs there."""
    lm = tiny.language_model(on)
    found = vectors(fit(lm, **EVERY_LAYER, **CERTAIN))
    good, bad = naive_states(lm)
    assert list(found) == [0, 1, 2]
    for layer, vector in found.items():
        differences = (good[:, layer] - bad[:, layer]).double().numpy()
        axis = np.linalg.svd(differences)[2][0]
        axis *= np.sign(np.mean([row @ axis for row in differences]))
        torch.testing.assert_close(vector, torch.tensor(4 * axis).float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", [0, 1])
def test_is_the_pca_of_swapped_differences(llama: LanguageModel, seed: int) -> None:
    """As published: the order inside each pair is drawn, and scikit-learn's PCA takes the mean off."""
    shared = context(llama)
    shared.seed = seed
    fields: dict[str, Any] = {**EVERY_LAYER, "relative_norm": None}
    found = vectors(load("methods", "repe")(**fields).fit(shared))
    good, bad = naive_states(llama)
    for layer, vector in found.items():
        differences = (good[:, layer] - bad[:, layer]).double().numpy()
        drawn = torch.randint(2, (len(EXAMPLES),), generator=shared.generator("repe", layer)).tolist()
        swapped = np.stack([d if one else -d for d, one in zip(differences, drawn, strict=True)])
        axis = PCA(n_components=1).fit(swapped).components_[0]
        axis *= np.sign(differences.mean(0) @ axis)
        torch.testing.assert_close(vector, torch.tensor(4 * axis).float(), rtol=1e-3, atol=1e-3)


def test_the_report_has_the_cosine_with_the_difference_of_means(llama: LanguageModel) -> None:
    shared = context(llama)
    steering = load("methods", "repe")(**EVERY_LAYER).fit(shared)
    good, bad = naive_states(llama)
    cosines = shared.report["cosine_with_difference_of_means"]
    assert list(cosines) == ["0", "1", "2"]
    for layer, vector in vectors(steering).items():
        mean = (good[:, layer] - bad[:, layer]).mean(0)
        assert cosines[str(layer)] == pytest.approx(float(torch.cosine_similarity(vector, mean, dim=0)), abs=1e-4)
        assert 0 <= cosines[str(layer)] <= 1


def test_swapped_labels_turn_every_vector(llama: LanguageModel) -> None:
    swapped = [Example(e.id, e.group, e.prompt, e.rejected, e.chosen) for e in EXAMPLES]
    there = vectors(fit(llama, **EVERY_LAYER, **OF_REPLIES))
    back = vectors(fit(llama, swapped, **EVERY_LAYER, **OF_REPLIES))
    for layer, vector in there.items():
        torch.testing.assert_close(back[layer], -vector, rtol=1e-4, atol=1e-5)


def test_the_order_of_the_pairs_does_not_matter(llama: LanguageModel) -> None:
    there, back = (vectors(fit(llama, e, **EVERY_LAYER, **CERTAIN)) for e in (EXAMPLES, EXAMPLES[::-1]))
    for layer, vector in there.items():
        torch.testing.assert_close(back[layer], vector, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("swapped", [True, False])
def test_the_mean_that_a_pca_subtracts_is_what_it_finds(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch, swapped: bool
) -> None:
    """Differences of 5 along one axis, with a spread of 2 along another: the PCA of a library finds the other."""
    draw = torch.Generator().manual_seed(0)
    examples = [Example(str(i), str(i), user(f"Q{i}"), "Yes", "No") for i in range(200)]
    shared = context(llama, examples)
    differences = 0.1 * torch.randn(200, 32, generator=draw)
    differences[:, 3] += 5
    differences[:, 7] += 2 * torch.randn(200, generator=draw)
    rows = {pair.chosen: difference for pair, difference in zip(shared.pairs(), differences, strict=True)}

    def read(sites: list[Site], tokens: list[Tokens], pool: str) -> dict[Site, list[Tensor]]:
        return {site: [rows.get(t, torch.zeros(32)) for t in tokens] for site in sites}

    monkeypatch.setattr(shared, "activations_at", read)
    fields: dict[str, Any] = {**OF_REPLIES, "swapped": swapped, "relative_norm": None}
    steering = load("methods", "repe")(**fields).fit(shared)
    (vector,) = vectors(steering).values()
    centred = PCA(n_components=1).fit(differences.numpy()).components_[0]
    assert float(vector[3]) > 0.99 * 4
    assert abs(centred[3]) < 0.2
    assert abs(centred[7]) > 0.9


# The band


@pytest.mark.parametrize(
    ("n", "expected"),
    [(1, [0]), (2, [1]), (3, [1]), (12, [4, 5]), (32, [10, 11, 12, 13, 14]), (40, list(range(12, 19)))],
)
def test_the_band_is_at_the_published_depth(n: int, expected: list[int]) -> None:
    """10 to 14 of 32; the nearest layers in other models, and of two the even one: 12.5 to 17.5 of 40."""
    steering = load("methods", "repe")(**OF_REPLIES).fit(context(deep(n), EXAMPLES[:2]))
    assert list(vectors(steering)) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"first_layer": 0}, [0]),
        ({"first_layer": 0.4}, [1, 2]),
        ({"first_layer": 0.9}, [2]),
        ({"last_layer": 2}, [1, 2]),
        (EVERY_LAYER, [0, 1, 2]),
        ({"first_layer": 2, "last_layer": 2}, [2]),
    ],
)
def test_either_end_of_the_band_can_be_given(llama: LanguageModel, fields: Any, expected: list[int]) -> None:
    assert list(vectors(fit(llama, **fields))) == expected


@pytest.mark.parametrize(
    ("fields", "band"),
    [
        ({"last_layer": 3}, "1 to 3"),
        ({"last_layer": 0}, "1 to 0"),
        ({"first_layer": 3}, "3 to 2"),
        ({"first_layer": 10, "last_layer": 14}, "10 to 14"),
    ],
)
def test_what_is_no_band(llama: LanguageModel, fields: Any, band: str) -> None:
    with pytest.raises(SteerbenchError, match=rf"repe: layers {band} are no band of 0\.\.2; set both"):
        fit(llama, **fields)


@pytest.mark.parametrize("pool", ["last_response", "response_mean"])
def test_personas_have_no_reply_to_read(llama: LanguageModel, pool: str) -> None:
    with pytest.raises(SteerbenchError, match=f"no reply for pool='{pool}'; set pool=last_prompt"):
        fit(llama, pool=pool)


def test_prompts_that_are_the_same_have_no_axis(llama: LanguageModel) -> None:
    with pytest.raises(SteerbenchError, match="both sides of pairs='preferences' are the same; set pool=last_response"):
        fit(llama, pairs="preferences")


def test_without_pairs_the_user_is_told(llama: LanguageModel) -> None:
    with pytest.raises(SteerbenchError, match="use more training examples"):
        fit(llama, [], **OF_REPLIES)
    with pytest.raises(SteerbenchError, match="no training prompt leaves room for a persona"):
        fit(llama, [])


# Length and steering


def test_the_coefficient_is_the_length(llama: LanguageModel) -> None:
    four, nine = (vectors(fit(llama, coefficient=c, relative_norm=None, **EVERY_LAYER)) for c in (4.0, 9.0))
    for layer, vector in four.items():
        assert float(vector.norm()) == pytest.approx(4)
        torch.testing.assert_close(nine[layer], vector * 9 / 4)


def test_relative_norm_replaces_the_coefficient_layer_by_layer(llama: LanguageModel) -> None:
    plain = vectors(fit(llama, relative_norm=None, **EVERY_LAYER))
    scaled, *others = (vectors(fit(llama, relative_norm=0.3, coefficient=c, **EVERY_LAYER)) for c in (4.0, 9.0, -1, 0))
    good, bad = naive_states(llama)
    for layer, vector in scaled.items():
        lengths = [float(row.square().sum().sqrt()) for side in (good, bad) for row in side[:, layer]]
        assert float(vector.norm()) == pytest.approx(0.3 * sum(lengths) / len(lengths), rel=1e-4)
        torch.testing.assert_close(vector / vector.norm(), plain[layer] / 4, rtol=1e-4, atol=1e-5)
        assert all(torch.equal(other[layer], vector) for other in others)
    assert len({round(float(v.norm()), 2) for v in scaled.values()}) == 3


def test_it_is_a_bias_of_every_block_of_the_band(lm: LanguageModel) -> None:
    """And strength times coefficient is the length of each."""
    steering = fit(lm, strength=0.5, **EVERY_LAYER)
    steered, base = logits(lm, steering), logits(lm)
    for layer, vector in vectors(steering).items():
        bias = 0.5 * vector

        def shift(module: Any, args: Any, output: Any, bias: Tensor = bias) -> Any:
            return output + bias if isinstance(output, Tensor) else (output[0] + bias, *output[1:])

        lm.anatomy.blocks[layer].register_forward_hook(shift)
    for a, b, c in zip(steered, logits(lm), base, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(a, c, rtol=1e-2, atol=1e-2)
