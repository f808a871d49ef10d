"""The positions edited are exactly those that a scope declares: every family, ragged batches, with and without cache.

Observers before and after the edit, on the module itself, see what it changed. What should have changed is derived here
from the tokens alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from thorough import mostly_slow
from torch import Tensor
from transformers import AutoModelForCausalLM, LogitsProcessor, OpenAIGPTConfig

from steerbench import Decoding, LanguageModel, Steering
from steerbench.contract import tiny
from steerbench.edits import Add, LogitsPart, PlacedEdit, Site
from steerbench.engine import generate as generation
from steerbench.engine import logits as scoring
from steerbench.engine.generate import _generate_batch
from steerbench.engine.hooks import watched
from steerbench.engine.install import steered
from steerbench.engine.logits import response_logits
from steerbench.learn import Tokens, activations
from steerbench.models.sites import SITE_NAMES
from steerbench.seeds import generator_for
from steerbench.steering.parts import Scope


@pytest.fixture(params=mostly_slow(sorted(tiny.FAMILIES), {"gpt2", "falcon", "gemma2", "phi3"}.__contains__))
def family(request: pytest.FixtureRequest) -> str:
    """Every one, always: what is checked here is what differs between families."""
    return str(request.param)


NEW = 6
RAGGED: list[tuple[int, ...]] = [(5,), (7, 8, 9, 10, 11), (20, 21), tuple(range(30, 52))]


class Shift(Add):
    """An `Add` that is never folded into a bias, which knows no positions."""

    def constant(self) -> Any:
        return None


class Same(LogitsPart, LogitsProcessor):
    """Changes nothing."""

    def processor(self, lm: LanguageModel, prompt_ids: Tensor, mask: Tensor) -> LogitsProcessor:
        return self

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores


STAYING = Steering(logits=(Same(),))
"""Rows that have ended stay in the batch where there is a logits part."""

Trace = list[list[Tensor]]
"""Of each edit, for each forward pass, which positions it changed."""


def traced(
    lm: LanguageModel, steering: Steering, run: Callable[[], Any], rows: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[Trace, Any]:
    """Run with observers on both sides of each edit; return what they saw, and what the run returns."""
    places = [lm.anatomy.place(placed.site) for placed in steering.edits]
    before: list[list[Tensor]] = [[] for _ in places]
    after: list[list[Tensor]] = [[] for _ in places]

    @contextmanager
    def observed(*args: Any, **more: Any) -> Iterator[None]:
        with ExitStack() as stack:
            for place, seen in zip(places, before, strict=True):
                stack.enter_context(watched(place, keeping(seen)))
            stack.enter_context(steered(*args, **more))
            for place, seen in zip(places, after, strict=True):
                stack.enter_context(watched(place, keeping(seen)))
            yield

    for module in (generation, scoring):
        monkeypatch.setattr(module, "steered", observed)
    result = run()
    return [changed(*seen, rows) for seen in zip(before, after, strict=True)], result


def keeping(seen: list[Tensor]) -> Callable[[Tensor], None]:
    return lambda h: seen.append(h.clone())


def changed(before: list[Tensor], after: list[Tensor], rows: int) -> list[Tensor]:
    """Return for each forward pass the positions that differ, (rows, width)."""
    return [
        (a.reshape(rows, -1, a.shape[-1]) != b.reshape(rows, -1, b.shape[-1])).any(-1)
        for a, b in zip(after, before, strict=True)
    ]


def steering_at(lm: LanguageModel, names: Sequence[str], scope: Scope) -> Steering:
    sites = [Site(name, None if name == "final" else 1) for name in names]  # type: ignore[arg-type]
    widths = [len(activations(lm, site, [Tokens((3,))], "last_prompt")[0]) for site in sites]
    edits = [PlacedEdit(s, Shift(torch.full((w,), 0.5)), scope) for s, w in zip(sites, widths, strict=True)]
    return Steering(edits=tuple(edits))


def declared(prompts: list[tuple[int, ...]], new: list[list[int]], scope: Scope, end_ids: list[int]) -> Tensor:
    """Derive from the tokens which columns of the left-padded batch a scope covers."""
    width = max(map(len, prompts))
    table = torch.zeros(len(prompts), width + max(map(len, new)), dtype=torch.bool)
    for row, (prompt, tokens) in enumerate(zip(prompts, new, strict=True)):
        stop = next((i for i, t in enumerate(tokens) if t in end_ids), len(tokens))
        first = {"all": width - len(prompt), "prompt": width - len(prompt), "response": width - 1}[scope]
        last = width if scope == "prompt" else width + stop
        table[row, first:last] = True
    return table


SITES = mostly_slow([(SITE_NAMES,), *(((name,),) for name in SITE_NAMES)], lambda case: case == (SITE_NAMES,))
"""All of them in one run, and each alone."""


@pytest.mark.parametrize("scope", ["all", "prompt", "response"])
@pytest.mark.parametrize("sites", SITES, ids="+".join)
@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "recomputed"])
def test_generation_edits_exactly_the_declared_positions(
    lm: LanguageModel, sites: tuple[str, ...], scope: Scope, use_cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    steering = steering_at(lm, sites, scope)
    batches: list[list[tuple[int, ...]]] = [RAGGED, [(9,)], [(4,), (6,)]]
    for prompts in batches:
        batch = lm.left_padded([Tokens(p) for p in prompts])
        generators = [generator_for(0, i) for i in range(len(prompts))]

        def run(batch: Any = batch, generators: Any = generators) -> list[list[int]]:
            decoding = Decoding(max_new_tokens=NEW, temperature=1.5)
            return _generate_batch(lm, batch, steering + STAYING, decoding, generators, use_cache)

        trace, new = traced(lm, steering, run, len(prompts), monkeypatch)
        expected = declared(prompts, new, scope, lm.end_ids)
        width = max(map(len, prompts))
        for site, passes in zip(sites, trace, strict=True):
            assert len(passes) == max(map(len, new))
            for i, found in enumerate(passes):
                start = width + i - found.shape[1]
                assert start == (width + i - 1 if use_cache and i else 0) or site == "final"
                # in a recomputed pass a row is finished as soon as its end token stands in the input
                assert torch.equal(found, expected[:, start : width + i]), (site, prompts, i)


@pytest.mark.parametrize("scope", ["all", "prompt", "response"])
@pytest.mark.parametrize("sites", SITES, ids="+".join)
def test_teacher_forcing_edits_exactly_the_declared_positions(
    lm: LanguageModel, sites: tuple[str, ...], scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    steering = steering_at(lm, sites, scope)
    end = lm.end_ids[0]
    sequences = [Tokens((5,), (6, 7, end)), Tokens((8, 9, 10), (11,)), Tokens((12, 13), ())]
    trace, _ = traced(lm, steering, lambda: list(response_logits(lm, sequences, steering)), 3, monkeypatch)
    order = sorted(range(3), key=lambda i: -sum(map(len, sequences[i])))
    for (found,) in trace:
        for row, i in enumerate(order):
            n_prompt, n = len(sequences[i].prompt), len(sequences[i].response)
            stop = n_prompt + n - (end in sequences[i].response)
            first = n_prompt - 1 if scope == "response" else 0
            last = n_prompt if scope == "prompt" else stop
            assert found[row].nonzero().flatten().tolist() == list(range(first, last))


def test_finished_rows_occur_in_the_trace() -> None:
    """Without a row that ends early the tests above would say nothing about finished rows."""
    finishes = []
    for family in tiny.FAMILIES:
        lm = tiny.language_model(family)
        batch = lm.left_padded([Tokens(p) for p in RAGGED])
        generators = [generator_for(0, i) for i in range(len(RAGGED))]
        decoding = Decoding(max_new_tokens=NEW, temperature=1.5)
        new = _generate_batch(lm, batch, Steering(), decoding, generators, True)
        finishes += [row[-1] in lm.end_ids and len(row) < NEW for row in new]
    assert any(finishes)


@pytest.mark.parametrize("scope", ["all", "prompt", "response"])
def test_a_model_without_a_cache_is_edited_where_declared(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-1 ignores `use_cache` and gets the whole text again at every step."""
    config = OpenAIGPTConfig(vocab_size=259, n_positions=64, n_embd=32, n_layer=3, n_head=4, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config)
    tiny._randomise(model, seed=0)
    lm = LanguageModel(model, tiny.tokenizer())
    steering = Steering(edits=(PlacedEdit(Site("resid_post", 1), Add(torch.full((32,), 0.5)), scope),))
    for prompts in (RAGGED, RAGGED[:1]):
        batch = lm.left_padded([Tokens(p) for p in prompts])
        generators = [generator_for(0, i) for i in range(len(prompts))]

        def run(batch: Any = batch, generators: Any = generators) -> list[list[int]]:
            decoding = Decoding(max_new_tokens=NEW, temperature=1.0)
            return _generate_batch(lm, batch, steering, decoding, generators, True)

        (passes,), new = traced(lm, steering, run, len(prompts), monkeypatch)
        monkeypatch.undo()
        expected = declared(prompts, new, scope, lm.end_ids)
        for found in passes:
            assert torch.equal(found, expected[:, : found.shape[1]])
