"""Steering around code of the user's gives what steerbench's own `generate` gives, and leaves the model as it was."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from thorough import mostly_slow
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from steerbench import Decoding, FitContext, LanguageModel, SteerbenchError, Steering, generate, load, steered
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.edits import Add, DecodePart, Edit, PlacedEdit, PromptPart, Site
from steerbench.engine.forward_passes import CACHE, left_cache
from steerbench.engine.hooks import watched
from steerbench.engine.logits import response_logits
from steerbench.learn import Tokens, activations
from steerbench.steering.parts import Scope

NEW = 8
TEXTS = ["a", "How do I bake bread?", "Hi there", "Tell me more, please."]
SCOPES: list[Scope] = ["all", "prompt", "response"]
SITES = ["resid_post", "attn_out", "z", "mlp_out", "final"]


class Gate(Edit):
    """Adds or subtracts, as the prompt of the row says: it has a state."""

    vector: Tensor

    def __init__(self, vector: Tensor) -> None:
        super().__init__()
        self.register_buffer("vector", vector)

    def start(self, prompt: Tensor, mask: Tensor) -> Tensor:
        return (prompt * mask[..., None]).sum((1, 2), keepdim=True).sign()

    def forward(self, h: Tensor, state: Tensor) -> Tensor:
        return h + state * self.vector


def steering_at(lm: LanguageModel, name: str, scope: Scope, kind: type[Any] = Add, size: float = 2.0) -> Steering:
    site = Site(name, None if name == "final" else 1)  # type: ignore[arg-type]
    width = len(activations(lm, site, [Tokens((3,))], "last_prompt")[0])
    vector = torch.randn(width, generator=torch.Generator().manual_seed(1)) * size
    return Steering(edits=(PlacedEdit(site, kind(vector), scope),))


def inputs_of(lm: LanguageModel, texts: list[str] = TEXTS) -> dict[str, Tensor]:
    batch = lm.left_padded([lm.tokens(user(t)) for t in texts])
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


def new_tokens(lm: LanguageModel, out: Tensor, inputs: dict[str, Tensor]) -> list[tuple[int, ...]]:
    rows = out[:, inputs["input_ids"].shape[1] :].tolist()
    return [lm.cut(row).ids for row in rows]


def ours(lm: LanguageModel, steering: Steering, texts: list[str] = TEXTS) -> list[tuple[int, ...]]:
    return [r.ids for r in generate(lm, [user(t) for t in texts], steering, Decoding(max_new_tokens=NEW))]


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    def state() -> list[Any]:
        found: list[Any] = [dict(model.generation_config.to_dict()), "generate" in vars(model)]
        for module in model.modules():
            found.append((*module._forward_pre_hooks, *module._forward_hooks, module.training))
        return [*found, [(p.requires_grad, p.detach().clone()) for p in model.parameters()]]

    before = state()
    yield
    after = state()
    assert after[:-1] == before[:-1]
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in zip(before[-1], after[-1], strict=True))


def unlike(case: tuple[str, Scope]) -> bool:
    """Say whether a case runs by default: every site and every scope, but not each with each."""
    return list(SITES).index(case[0]) % len(SCOPES) == list(SCOPES).index(case[1])


EACH_SITE = pytest.mark.parametrize(("site", "scope"), mostly_slow(product(SITES, SCOPES), unlike))


@EACH_SITE
def test_generate_of_the_plain_model_gives_what_ours_gives(lm: LanguageModel, site: str, scope: Scope) -> None:
    for kind in (Add, Gate):
        steering, inputs = steering_at(lm, site, scope, kind), inputs_of(lm)
        expected = ours(lm, steering)
        for more in ({}, {"use_cache": False}):
            with unchanged(lm.model), steered(lm.model, steering):
                out = lm.model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **more)
            assert new_tokens(lm, out, inputs) == expected, more
        if kind is Add and site == "resid_post" and scope != "prompt":
            assert expected != ours(lm, Steering())


def changed(lm: LanguageModel, steering: Steering, run: Any, rows: int) -> list[Tensor]:
    """Return which positions each pass changed, (rows, columns)."""
    place = lm.anatomy.place(steering.edits[0].site)
    before: list[Tensor] = []
    after: list[Tensor] = []
    with (
        watched(place, lambda h: before.append(h.clone())),
        steered(lm.model, steering),
        watched(place, lambda h: after.append(h.clone())),
    ):
        run()
    pairs = zip(before, after, strict=True)
    return [(a.reshape(rows, -1, a.shape[-1]) != b.reshape(rows, -1, b.shape[-1])).any(-1) for a, b in pairs]


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("scope", SCOPES)
def test_plain_passes_edit_what_is_real(lm: LanguageModel, scope: Scope, padding: str) -> None:
    """Every row, no padding, the first token's position too, and decoding with the cache."""
    prompts = [Tokens((5, 6, 7)), Tokens((8,)), Tokens((9, 10))]
    batch = (lm.left_padded if padding == "left" else lm.right_padded)(prompts)
    steering = steering_at(lm, "resid_post", scope)

    @torch.no_grad()
    def run() -> None:
        for _ in range(2):  # the second begins anew
            out = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            mask = torch.cat([batch.attention_mask, torch.ones(3, 1, dtype=torch.long)], 1)
            step = torch.tensor([[11], [12], [lm.end_ids[0]]])
            lm.model(input_ids=step, attention_mask=mask, **{CACHE: left_cache(out)})

    real = batch.attention_mask.bool()
    last = torch.zeros_like(real)
    for row, end in enumerate(batch.prompt_ends if padding == "right" else [3, 3, 3]):
        last[row, end - 1] = True
    first = last if scope == "response" else real
    second = torch.tensor([[True], [True], [False]]) & (scope != "prompt")
    passes = changed(lm, steering, run, 3)
    assert [p.tolist() for p in passes] == [first.tolist(), second.tolist()] * 2


def test_rows_that_have_ended_are_edited_no_more(llama: LanguageModel) -> None:
    inputs = inputs_of(llama)
    free = new_tokens(llama, llama.model.generate(**inputs, max_new_tokens=NEW, do_sample=False), inputs)
    ends = [free[0][2], llama.end_ids[0]]
    steering = steering_at(llama, "resid_post", "response", size=1e-5)  # too little for another token

    def run() -> None:
        llama.model.generate(**inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=ends, pad_token_id=0)

    passes = changed(llama, steering, run, len(TEXTS))
    still = [[token not in ends for token in row[: len(passes) - 1]] for row in free]
    for step, now in enumerate(passes[1:]):
        assert now[:, 0].tolist() == [all(row[: step + 1]) for row in still]
    assert not all(map(all, still))


def test_many_calls_sampling_and_copies_in_one_context(llama: LanguageModel) -> None:
    steering = steering_at(llama, "resid_post", "all", Gate)
    batches = [TEXTS, TEXTS[:1], TEXTS[1:3]]
    expected = [ours(llama, steering, texts) for texts in batches]
    with steered(llama, steering):
        for texts, tokens in zip(batches, expected, strict=True):
            inputs = inputs_of(llama, texts)
            out = llama.model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
            assert new_tokens(llama, out, inputs) == tokens
        inputs = inputs_of(llama)
        copies = llama.model.generate(**inputs, max_new_tokens=4, do_sample=True, top_k=1, num_return_sequences=3)
        once = llama.model.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert torch.equal(copies, once.repeat_interleave(3, 0))
        positional = llama.model.generate(inputs["input_ids"], max_new_tokens=4, do_sample=False)  # infers the mask
        assert torch.equal(positional, once)


@pytest.mark.parametrize("more", [{"cache_implementation": "static"}, {"prefill_chunk_size": 3}], ids=str)
@pytest.mark.parametrize("scope", SCOPES)
def test_static_caches_and_prompts_in_chunks(llama: LanguageModel, scope: Scope, more: dict[str, Any]) -> None:
    steering, inputs = steering_at(llama, "resid_post", scope), inputs_of(llama)
    with steered(llama.model, steering):
        out = llama.model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **more)
    assert new_tokens(llama, out, inputs) == ours(llama, steering)


def test_an_edit_that_reads_the_prompt_refuses_chunks(llama: LanguageModel) -> None:
    with (
        steered(llama.model, steering_at(llama, "resid_post", "all", Gate)),
        pytest.raises(SteerbenchError, match="Gate"),
    ):
        llama.model.generate(**inputs_of(llama), max_new_tokens=2, prefill_chunk_size=3)


def test_a_second_turn_with_the_cache_of_the_first(llama: LanguageModel) -> None:
    steering = steering_at(llama, "resid_post", "all")
    ids = llama.left_padded([llama.tokens(user("Hi there"))]).input_ids
    with steered(llama.model, steering):
        first = llama.model.generate(input_ids=ids, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        longer = torch.cat([first.sequences, torch.tensor([[9, 10, 11]])], 1)
        cached = llama.model.generate(input_ids=longer, max_new_tokens=4, do_sample=False, **{CACHE: left_cache(first)})
        assert torch.equal(cached, llama.model.generate(input_ids=longer, max_new_tokens=4, do_sample=False))


REFUSED: dict[str, Any] = {
    "num_beams": 2,
    "prompt_lookup_num_tokens": 2,
    "guidance_scale": 1.5,
    "assistant_model": object(),
    "custom_generate": lambda model: model,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_steered_right_is_refused(llama: LanguageModel, name: str) -> None:
    with steered(llama.model, steering_at(llama, "resid_post", "all")), pytest.raises(SteerbenchError, match=name):
        llama.model.generate(**inputs_of(llama), max_new_tokens=2, **{name: REFUSED[name]})
    model = copy.deepcopy(llama.model)
    if name == "num_beams":
        model.generation_config.num_beams = 2
        with steered(model, steering_at(llama, "resid_post", "all")), pytest.raises(SteerbenchError, match=name):
            model.generate(**inputs_of(llama), max_new_tokens=2)


class Polite(PromptPart):
    def __call__(self, dialogue: Any) -> Any:
        return dialogue


class First(DecodePart):
    candidates = 2

    def choose(self, dialogue: Any, candidates: Any, reward: Any) -> int:
        return 0


def test_other_parts_and_other_things_are_refused(llama: LanguageModel) -> None:
    for steering, word in ((Steering(prompt=(Polite(),)), "prompt"), (Steering(decode=First()), "decode")):
        with pytest.raises(SteerbenchError, match=rf"{word} part.*steerbench\.generate"), steered(llama, steering):
            pass
    with pytest.raises(SteerbenchError, match="Linear"), steered(torch.nn.Linear(2, 2), Steering()):
        pass
    with pytest.raises(SteerbenchError, match="str"), steered(llama, "caa"):  # type: ignore[arg-type]
        pass
    layer = Steering(edits=(PlacedEdit(Site("resid_post", 99), Add(torch.ones(32))),))
    with unchanged(llama.model), pytest.raises(SteerbenchError, match="99"), steered(llama, layer):
        pass


def test_a_cache_from_elsewhere_is_refused(llama: LanguageModel) -> None:
    ids = torch.tensor([[5, 6, 7]])
    before = left_cache(llama.model(input_ids=ids))
    with steered(llama, steering_at(llama, "resid_post", "all")):
        with pytest.raises(SteerbenchError, match="not filled in this context"):
            llama.model(input_ids=ids[:, :1], **{CACHE: before})
        out = llama.model(input_ids=ids)
        left_cache(out).crop(-1)
        with pytest.raises(SteerbenchError, match="does not continue"):
            llama.model(input_ids=ids[:, :1], **{CACHE: left_cache(out)})
        with pytest.raises(SteerbenchError, match="input_ids"):
            llama.model(inputs_embeds=torch.zeros(1, 2, 32))


def test_nothing_is_left_after_an_exception(lm: LanguageModel) -> None:
    lm.model.train()
    next(lm.model.parameters()).requires_grad_(True)
    plain = copy.deepcopy(lm.model).eval()

    def fail(steering: Steering) -> None:
        with steered(lm.model, steering):
            lm.model.generate(**inputs_of(lm), max_new_tokens=2)
            raise InterruptedError

    for scope in SCOPES:
        steering = steering_at(lm, "z", scope)
        with unchanged(lm.model), pytest.raises(InterruptedError):
            fail(steering)
    lm.model.eval()
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(lm.model(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_a_plain_pass_agrees_with_teacher_forcing(lm: LanguageModel) -> None:
    steering, tokens = steering_at(lm, "resid_post", "all"), [Tokens((5, 6), (7, 8))]
    with torch.no_grad(), steered(lm.model, steering):
        logits = lm.model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0, 1:3]
    torch.testing.assert_close(logits, dict(response_logits(lm, tokens, steering))[0])


@pytest.mark.parametrize("method", ["caa", "act_add", "re_control", "repe"])
def test_every_kind_of_edit(llama: LanguageModel, method: str) -> None:
    context = FitContext(lm=llama, examples=tiny.examples()[:16], reward=tiny.VowelReward())
    steering = load("methods", method)().fit(context)
    inputs = inputs_of(llama)
    with steered(llama, steering):
        out = llama.model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    assert new_tokens(llama, out, inputs) == ours(llama, steering)


TWO = {("z", "response"), ("resid_post", "all")}


@pytest.mark.parametrize(("site", "scope"), mostly_slow(product(SITES, SCOPES), TWO.__contains__))
def test_on_a_real_chat_model(assets: Path, site: str, scope: Scope) -> None:
    folder = str(assets / "models" / "tinytalk-3m-chat")
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    lm = LanguageModel.load(folder)
    prompts = [lm.format.text(user(t)) for t in TEXTS]
    special = not lm.format.has_template
    steering = steering_at(lm, site, scope, size=0.3)
    inputs = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=special).to(
        plain.device
    )
    inputs.pop("token_type_ids", None)
    with unchanged(plain), steered(plain, steering):
        out = plain.generate(**inputs, max_new_tokens=16, do_sample=False)
    expected = generate(lm, [user(t) for t in TEXTS], steering, Decoding(max_new_tokens=16))
    assert new_tokens(lm, out, dict(inputs)) == [r.ids for r in expected]


def test_a_subclass_with_another_forward_is_no_constant(llama: LanguageModel) -> None:
    """It inherits `constant`, which would stand in for its `forward` at every decoding step, and in a folded bias."""

    class Twice(Add):
        def forward(self, h: Tensor, state: Any) -> Tensor:
            return h + 2 * self.vector

    for site in ("resid_post", "z"):
        once, twice = (steering_at(llama, site, "all", kind, size) for kind, size in ((Twice, 1.0), (Add, 2.0)))
        assert ours(llama, once) == ours(llama, twice) != ours(llama, Steering())


@pytest.mark.parametrize("site", [Site("resid_post", 1), Site("mlp_pre", 1)])
def test_edits_of_another_width_are_refused_in_a_sentence(llama: LanguageModel, site: Site) -> None:
    narrow = PlacedEdit(site, Add(torch.ones(16), 1.0), "all")
    also = PlacedEdit(site, Add(torch.ones(24), 1.0), "all")
    for edits in ((narrow,), (also, narrow)):
        with (
            pytest.raises(SteerbenchError, match=rf"^Add does not fit {site}, whose states are \d+ wide: it was made"),
            steered(llama.model, Steering(edits=edits)),
        ):
            llama.model(torch.tensor([[5, 6]]))
