"""Generation gives one result however it is run; teacher forcing agrees with it; sampling draws from the right law."""

import copy
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest
import torch
from scipy.stats import chisquare
from thorough import mostly_slow
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessor

from steerbench import Decoding, LanguageModel, Reward, SteerbenchError, Steering, generate
from steerbench.contract import tiny
from steerbench.data import Dialogue, Turn, user
from steerbench.edits import Add, DecodePart, Edit, LogitsPart, PlacedEdit, PromptPart, Site
from steerbench.engine.activations import activations
from steerbench.engine.generate import generate_fixed
from steerbench.engine.sampling import drawn, uniforms, warpers
from steerbench.learn import Tokens, log_probs, response_logits
from steerbench.models.sites import SITE_NAMES
from steerbench.progress import Progress, silent
from steerbench.seeds import generator_for
from steerbench.steering.parts import Scope

RAGGED: list[Dialogue] = [
    user("Hi"),
    user("How do I bake a cake, and what do I need for it?"),
    user("日本語 🎂 naïve"),
    (Turn("system", "Be brief."), *user("Hello"), Turn("assistant", "Hey"), *user("")),
    user("x"),
]
SCOPES: tuple[Scope, ...] = get_args(Scope)
GREEDY = Decoding(max_new_tokens=6)
SAMPLED = Decoding(max_new_tokens=6, temperature=1.0)


class Bias(LogitsPart):
    """Adds a constant to the logit of a token, and keeps what it was called with."""

    calls: ClassVar[list[tuple[Tensor, Tensor]]] = []

    def __init__(self, token: int, bias: float) -> None:
        self.token, self.bias = token, bias

    def processor(self, lm: LanguageModel, prompt_ids: Tensor, mask: Tensor) -> LogitsProcessor:
        self.calls.append((prompt_ids, mask))
        part = self

        class Processor(LogitsProcessor):
            def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
                scores = scores.clone()
                scores[:, part.token] += part.bias
                return scores

        return Processor()


class Record(LogitsPart):
    """Keeps the logits of every step of a generation."""

    steps: ClassVar[list[Tensor]] = []

    def processor(self, lm: LanguageModel, prompt_ids: Tensor, mask: Tensor) -> LogitsProcessor:
        self.steps.clear()

        class Processor(LogitsProcessor):
            def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
                Record.steps.append(scores.clone())
                return scores

        return Processor()


class LongestOf(DecodePart):
    seen: ClassVar[list[list[str]]] = []

    def __init__(self, candidates: int) -> None:
        self.candidates = candidates

    def choose(self, dialogue: Dialogue, candidates: Sequence[str], reward: Reward) -> int:
        self.seen.append(list(candidates))
        return int(reward.score([dialogue] * len(candidates), candidates).argmax())


class Last(Reward):
    """Prefers the text that is last in the alphabet."""

    name, revision = "last", "1"

    def score(self, dialogues: Sequence[Dialogue], responses: Sequence[str], progress: Progress = silent) -> Tensor:
        return torch.tensor([float(sorted(responses).index(r)) for r in responses])


class BreakRow(Edit):
    """NaN in the row whose prompt is shortest, the others untouched."""

    def start(self, prompt: Tensor, mask: Tensor) -> Tensor:
        shortest = mask.sum(1) == mask.sum(1).min()
        return torch.where(shortest, torch.nan, 0.0)[:, None, None]

    def forward(self, h: Tensor, state: Any) -> Tensor:
        edited: Tensor = h + state
        return edited


def add(lm: LanguageModel, site: str = "resid_post", scope: Scope = "response", size: float = 2.0) -> Steering:
    place = Site(site, None if site == "final" else 1)  # type: ignore[arg-type]
    width = len(activations(lm, place, [Tokens((3,))], "last_prompt")[0])
    return Steering(edits=(PlacedEdit(place, Add(torch.linspace(-size, size, width)), scope),))


def ends_often(lm: LanguageModel) -> Steering:
    return Steering(logits=(Bias(lm.tokenizer.eos_token_id, 4.5),))


def sequences(lm: LanguageModel, steering: Steering, decoding: Decoding = SAMPLED) -> list[Tokens]:
    """Return the dialogues with what is generated under a steering."""
    responses = generate(lm, RAGGED, steering, decoding)
    return [Tokens(lm.tokens(d).prompt, r.ids) for d, r in zip(RAGGED, responses, strict=True)]


@pytest.mark.parametrize(
    ("decoding", "scope"), [(GREEDY, None), (GREEDY, "response"), (SAMPLED, None), (SAMPLED, "all")], ids=str
)
def test_a_batch_equals_single_rows_in_any_order(lm: LanguageModel, decoding: Decoding, scope: Scope | None) -> None:
    steering = add(lm, scope=scope) if scope else Steering()
    if decoding is SAMPLED:
        steering += ends_often(lm)
    together = generate(lm, RAGGED, steering, decoding)
    assert together == [generate(lm, [d], steering, decoding)[0] for d in RAGGED]
    assert together == generate(lm, RAGGED, steering, decoding, batch_size=2)
    assert together[::-1] == generate(lm, RAGGED[::-1], steering, decoding)
    assert len({r.ids for r in together}) > 1


def test_rows_of_those_batches_finish_early(family: str) -> None:
    """Without such rows the test above would say nothing about finished ones."""
    lm = tiny.language_model(family)
    lengths = {len(r.ids) for r in generate(lm, RAGGED, ends_often(lm), SAMPLED)}
    assert len(lengths) > 1


SITES = mostly_slow([(SITE_NAMES,), *(((name,),) for name in SITE_NAMES)], lambda case: case == (SITE_NAMES,))
"""All of them in one run, and each alone."""


@pytest.mark.parametrize("scope", ["all", "prompt", "response"])
@pytest.mark.parametrize("sites", SITES, ids="+".join)
def test_cached_equals_recomputed_equals_teacher_forced(
    lm: LanguageModel, sites: tuple[str, ...], scope: Scope
) -> None:
    steering = sum((add(lm, site, scope) for site in sites), Steering())
    cached = sequences(lm, steering + Steering(logits=(Record(),)))
    steps = torch.stack(Record.steps, dim=1)
    recomputed = generate(lm, RAGGED, steering, SAMPLED, use_cache=False)
    assert [r.ids for r in recomputed] == [t.response for t in cached]
    order = sorted(range(len(RAGGED)), key=lambda i: -len(cached[i].prompt))
    for i, logits in response_logits(lm, cached, steering):
        expected = steps[order.index(i)][: len(logits)]
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("site", SITE_NAMES)
def test_a_scope_matters(llama: LanguageModel, site: str) -> None:
    """The test above would hold if every scope were empty, or all of them the same."""
    fixed = [Tokens((5, 6, 7), (8, 9))]
    results = [log_probs(llama, fixed, add(llama, site, scope))[0] for scope in SCOPES]
    results.append(log_probs(llama, fixed)[0])
    if site == "final":  # only the last prompt position bears on the response
        assert torch.equal(results[0], results[2])
        assert results[1][0] == results[0][0]
        assert results[1][1] == results[3][1]
    else:
        assert len({tuple(r.tolist()) for r in results}) == 4


def test_log_probs_equal_one_unpadded_pass_per_token(lm: LanguageModel) -> None:
    tokens = sequences(lm, Steering())
    naive = []
    for prompt, response in tokens:
        with torch.no_grad():
            rows = [lm.model(torch.tensor([prompt + response[:i]])).logits[0, -1] for i in range(len(response))]
        naive.append(torch.stack([row.log_softmax(-1)[t] for row, t in zip(rows, response, strict=True)]))
    for batch_size in (1, 3, 16):
        for got, expected in zip(log_probs(lm, tokens, batch_size=batch_size), naive, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_greedy_takes_the_most_likely_token(lm: LanguageModel) -> None:
    tokens = sequences(lm, Steering(), GREEDY)
    for i, logits in response_logits(lm, tokens):
        assert tuple(logits.argmax(-1).tolist()) == tokens[i].response


def test_log_probs_of_an_empty_response(llama: LanguageModel) -> None:
    assert [len(p) for p in log_probs(llama, [Tokens((5, 6)), Tokens((7,), (8,))], ends_often(llama))] == [0, 1]


LOGITS = torch.tensor([1.0, 0.2, -torch.inf, 3.0, -2.0, 2.9, 0.0, 0.5])


def law(decoding: Decoding) -> Tensor:
    """Temperature, then the k most likely, then the fewest that hold p of what is left."""
    p = (LOGITS / decoding.temperature).softmax(-1)
    order = p.argsort(descending=True).tolist()
    kept = order[: decoding.top_k or len(order)]
    mass = p[kept] / p[kept].sum()
    kept = [t for i, t in enumerate(kept) if mass[:i].sum() < decoding.top_p]
    out = torch.zeros_like(p)
    out[kept] = p[kept] / p[kept].sum()
    return out


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.7}, {"top_k": 5, "top_p": 0.8}, {"temperature": 3}])
def test_sampling_follows_its_law(settings: dict[str, Any]) -> None:
    decoding = Decoding(**{"temperature": 1.0} | settings)
    n = 20_000
    rows = LOGITS.expand(n, -1)
    for warper in warpers(decoding):
        rows = warper(torch.zeros(n, 1, dtype=torch.long), rows)
    tokens = drawn(rows, torch.cat([uniforms(generator_for(0, i), 1) for i in range(n)]))
    counts = torch.bincount(tokens, minlength=len(LOGITS)).double()
    expected = law(decoding).double() * n
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert chisquare(counts[possible], expected[possible] / expected.sum() * n).pvalue > 1e-3


def test_seeds(llama: LanguageModel) -> None:
    first = generate(llama, RAGGED, decoding=SAMPLED, seed=1)
    assert first == generate(llama, RAGGED, decoding=SAMPLED, seed=1)
    assert all(a.ids != b.ids for a, b in zip(first, generate(llama, RAGGED, decoding=SAMPLED, seed=2), strict=True))
    assert generate(llama, RAGGED, decoding=GREEDY, seed=1) == generate(llama, RAGGED, decoding=GREEDY, seed=2)


def test_sampling_leaves_the_global_generator_alone(llama: LanguageModel) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    generate(llama, RAGGED, decoding=SAMPLED)
    assert torch.equal(state, torch.get_rng_state())


class AsSystem(PromptPart):
    """Writes the same text with other turns."""

    def __call__(self, dialogue: Dialogue) -> Dialogue:
        return (Turn("system", f"Human: {dialogue[0].text}"),)


def test_steering_does_not_change_what_is_drawn(llama: LanguageModel) -> None:
    """Paired comparisons need common random numbers, also where the prompt is changed."""
    plain = generate(llama, RAGGED[:2], decoding=SAMPLED)
    assert generate(llama, RAGGED[:2], Steering(prompt=(AsSystem(),)), SAMPLED) == plain
    zero = Steering(edits=(PlacedEdit(Site("resid_post", 1), Add(torch.ones(32), 0.0)),))
    assert generate(llama, RAGGED, zero, SAMPLED) == generate(llama, RAGGED, decoding=SAMPLED)


def test_the_settings_of_a_checkpoint_do_not_leak(llama: LanguageModel) -> None:
    model = AutoModelForCausalLM.from_config(llama.model.config, attn_implementation="eager")
    model.load_state_dict(llama.model.state_dict())
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=3.0,
        top_k=2,
        repetition_penalty=5.0,
        no_repeat_ngram_size=1,
        min_length=60,
        min_new_tokens=50,
        max_length=25,
        max_new_tokens=2,
        forced_bos_token_id=9,
        forced_eos_token_id=9,
        suppress_tokens=list(range(10, 200)),
        begin_suppress_tokens=[201],
        bad_words_ids=[[202]],
        num_beams=3,
        num_return_sequences=2,
        eos_token_id=2,
        pad_token_id=7,
        use_cache=False,
        return_dict_in_generate=True,
        output_hidden_states=True,
    )
    leaky = LanguageModel(model, tiny.tokenizer())
    for decoding in (GREEDY, SAMPLED):
        steering = ends_often(llama)
        assert generate(leaky, RAGGED, steering, decoding) == generate(llama, RAGGED, steering, decoding)


def test_end_ids_of_the_checkpoint_end_a_response(llama: LanguageModel) -> None:
    greedy = generate(llama, RAGGED[:1], decoding=GREEDY)[0]
    model = copy.deepcopy(llama.model)
    model.generation_config = GenerationConfig(eos_token_id=[2, greedy.ids[2]])
    lm = LanguageModel(model, llama.tokenizer)
    assert lm.end_ids == sorted([2, greedy.ids[2]])
    response = generate(lm, RAGGED[:1], decoding=GREEDY)[0]
    first = greedy.ids.index(greedy.ids[2])
    assert (response.ids, response.finish) == (greedy.ids[: first + 1], "end")


def test_a_prompt_fills_the_context_exactly(lm: LanguageModel) -> None:
    room = tiny.CONTEXT - len(lm.tokens(user("")).prompt)
    full = user("x" * (room - 6))
    assert len(generate(lm, [full], add(lm), GREEDY)[0].ids) in range(1, 7)
    with pytest.raises(SteerbenchError, match="251 tokens and 6 new ones do not fit the context of 256"):
        generate(lm, [RAGGED[0], user("x" * (room - 5))], decoding=GREEDY)


def test_sequences_beyond_the_context_are_refused(llama: LanguageModel) -> None:
    long = [Tokens(tuple([9] * 200), tuple([9] * 57))]
    with pytest.raises(SteerbenchError, match="257 tokens"):
        log_probs(llama, long)
    with pytest.raises(SteerbenchError, match="257 tokens"):
        activations(llama, Site("final"), long, "all")


@pytest.mark.parametrize("site", SITE_NAMES)
def test_an_edit_that_gives_nan_is_named(lm: LanguageModel, site: str) -> None:
    place = Site(site, None if site == "final" else 1)  # type: ignore[arg-type]
    width = len(activations(lm, place, [Tokens((3,))], "last_prompt")[0])
    steering = Steering(edits=(PlacedEdit(place, Add(torch.full((width,), torch.nan))),))
    few = Decoding(max_new_tokens=2)
    before = generate(lm, RAGGED, decoding=few)
    with pytest.raises(SteerbenchError, match=rf"the edit Add at {place} gave NaN or infinite logits"):
        generate(lm, RAGGED, steering, few)
    with pytest.raises(SteerbenchError, match=rf"the edit Add at {place} gave NaN or infinite logits"):
        log_probs(lm, [Tokens((5,), (6,))], steering)
    assert generate(lm, RAGGED, decoding=few) == before


def test_overflow_is_noticed(llama: LanguageModel) -> None:
    steering = Steering(edits=(PlacedEdit(Site("final"), Add(torch.full((32,), torch.inf))),))
    with pytest.raises(SteerbenchError, match="the edit Add at final gave NaN or infinite logits"):
        generate(llama, RAGGED, steering, GREEDY)


def test_nan_in_one_row_is_noticed(llama: LanguageModel) -> None:
    steering = Steering(edits=(PlacedEdit(Site("resid_post", 0), BreakRow()),))
    with pytest.raises(SteerbenchError, match=r"BreakRow at resid_post\.0"):
        generate(llama, RAGGED, steering, GREEDY)


def test_a_broken_model_is_named(llama: LanguageModel) -> None:
    llama.anatomy.head.weight.data.fill_(torch.nan)  # type: ignore[operator]
    with pytest.raises(SteerbenchError, match="the language model itself gave NaN"):
        generate(llama, RAGGED, decoding=GREEDY)


@pytest.mark.parametrize("end", ["<pad>", "<eos>"])
def test_fixed_length_forbids_end_tokens_without_alarm(llama: LanguageModel, end: str) -> None:
    """Also token 0, the EOS of GPT-NeoX: a forbidden token has the logit -inf and is not a broken state."""
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = end
    lm = LanguageModel(llama.model, tokenizer)
    passes: list[int] = []
    handle = lm.model.register_forward_hook(lambda m, a, o: passes.append(1))
    generate_fixed(lm, [user("Hi")], Steering(logits=(Bias(tokenizer.eos_token_id, 50.0),)), 7)
    handle.remove()
    assert len(passes) == 7


def test_best_of_n_chooses_by_reward(llama: LanguageModel) -> None:
    LongestOf.seen.clear()
    steering = Steering(decode=LongestOf(3))
    chosen = generate(llama, RAGGED, steering, SAMPLED, reward=Last())
    order = sorted(range(len(RAGGED)), key=lambda i: -len(llama.tokens(RAGGED[i]).prompt))
    assert [chosen[i].text for i in order] == [sorted(c)[-1] for c in LongestOf.seen]
    assert all(len(set(c)) == 3 for c in LongestOf.seen)
    plain = generate(llama, RAGGED, decoding=SAMPLED)
    assert not any(plain[i].text in c for i, c in zip(order, LongestOf.seen, strict=True))  # it could not lose then
    assert chosen == generate(llama, RAGGED, steering, SAMPLED, reward=Last(), batch_size=1)


def test_best_of_n_needs_candidates_that_differ(llama: LanguageModel) -> None:
    with pytest.raises(SteerbenchError, match="greedy candidates are all alike"):
        generate(llama, RAGGED, Steering(decode=LongestOf(3)), GREEDY, reward=Last())


def test_best_of_n_needs_a_reward(llama: LanguageModel) -> None:
    with pytest.raises(SteerbenchError, match="needs a reward model"):
        generate(llama, RAGGED, Steering(decode=LongestOf(2)), SAMPLED)
    with pytest.raises(SteerbenchError, match="gives no probability"):
        log_probs(llama, [Tokens((5,), (6,))], Steering(decode=LongestOf(2)))


def test_a_logits_part_acts_alike_in_generation_and_teacher_forcing(lm: LanguageModel) -> None:
    steering = Steering(logits=(Bias(40, 3.0), Bias(50, -2.0)))
    tokens = sequences(lm, steering + Steering(logits=(Record(),)))
    steps = torch.stack(Record.steps, dim=1)
    order = sorted(range(len(RAGGED)), key=lambda i: -len(tokens[i].prompt))
    base = dict(response_logits(lm, tokens))
    for i, logits in response_logits(lm, tokens, steering):
        torch.testing.assert_close(logits, steps[order.index(i)][: len(logits)], rtol=1e-3, atol=1e-3)
        expected = base[i].clone()
        expected[:, 40] += 3.0
        expected[:, 50] -= 2.0
        assert torch.equal(logits, expected)


def test_a_logits_part_sees_the_padded_prompts(llama: LanguageModel) -> None:
    Bias.calls.clear()
    generate(llama, RAGGED[:2], Steering(logits=(Bias(3, 0.0),)), GREEDY)
    ((ids, mask),) = Bias.calls
    prompts = sorted((llama.tokens(d).prompt for d in RAGGED[:2]), key=len, reverse=True)
    assert [tuple(row[m.bool()].tolist()) for row, m in zip(ids, mask, strict=True)] == prompts
    assert mask[:, -1].all()


@pytest.mark.parametrize("pad", [None, "<eos>", "a"])
def test_the_pad_token_does_not_matter(family: str, pad: str | None) -> None:
    usual = tiny.language_model(family)
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = pad
    lm = LanguageModel(copy.deepcopy(usual.model), tokenizer)
    steering = add(lm, scope="all") + ends_often(lm)
    assert generate(lm, RAGGED, steering, SAMPLED) == generate(usual, RAGGED, steering, SAMPLED)
    tokens = sequences(usual, steering)
    for a, b in zip(log_probs(lm, tokens, steering), log_probs(usual, tokens, steering), strict=True):
        torch.testing.assert_close(a, b)


def test_a_tokenizer_without_any_special_token(llama: LanguageModel) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = tokenizer.bos_token = None
    model = copy.deepcopy(llama.model)
    model.generation_config = GenerationConfig()
    lm = LanguageModel(model, tokenizer)
    assert lm.end_ids == []
    responses = generate(lm, RAGGED, add(lm), SAMPLED)
    assert {(r.finish, len(r.ids)) for r in responses} <= {("length", 6), ("turn", 6)}
    assert responses == generate(lm, RAGGED, add(lm), SAMPLED, batch_size=1)


def test_nothing_to_do(llama: LanguageModel) -> None:
    assert generate(llama, []) == []
    assert generate(llama, [], Steering(decode=LongestOf(2)), SAMPLED, reward=Last()) == []
    assert log_probs(llama, []) == []
    assert activations(llama, Site("final"), [], "all") == []


def test_duplicates_get_the_same_response(llama: LanguageModel) -> None:
    one, two, three = generate(llama, [RAGGED[0], RAGGED[1], RAGGED[0]], decoding=SAMPLED, batch_size=2)
    assert one == three != two


def test_text_is_what_the_ids_say(lm: LanguageModel) -> None:
    """Also where a character is cut in the middle, as random bytes do all the time."""
    for response in generate(lm, RAGGED, decoding=Decoding(max_new_tokens=40, temperature=1.0)):
        if response.finish != "turn":
            assert response.text == lm.tokenizer.decode(list(response.ids), skip_special_tokens=True).strip()


def test_progress_counts_every_dialogue(llama: LanguageModel) -> None:
    done: list[int] = []
    totals: list[int] = []

    @contextmanager
    def counting(label: str, total: int) -> Any:
        totals.append(total)
        yield done.append

    generate(llama, RAGGED, decoding=GREEDY, batch_size=2, progress=counting)
    assert (sum(done), totals) == (len(RAGGED), [len(RAGGED)])


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
    ],
)
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(SteerbenchError, match="out of range"):
        Decoding(**settings)


REAL = ["tinytalk-3m-chat", "stories260K-llama", "tinystories-656k"]


@pytest.mark.parametrize("name", REAL)
def test_real_models_talk_and_batch(assets: Path, name: str) -> None:
    lm = LanguageModel.load(str(assets / "models" / name))
    prompts = [
        user("Hello! How are you?"),
        user("Tell me about a little dog."),
        (Turn("system", "Be kind."), *user("Hi")),
    ]
    greedy = generate(lm, prompts, decoding=Decoding(max_new_tokens=16))
    for response in greedy:
        words = response.text.split()
        assert len(words) >= 2
        assert sum(c.isalpha() or c.isspace() for c in response.text) > 0.7 * len(response.text)
    sampled = Decoding(max_new_tokens=8, temperature=1.0)
    steering = add(lm, "resid_post", "all", 1.0) + add(lm, "z", "response", 1.0)
    together = generate(lm, prompts, steering, sampled)
    assert together == [generate(lm, [p], steering, sampled)[0] for p in prompts]
    assert together == generate(lm, prompts, steering, sampled, use_cache=False)
    assert together != generate(lm, prompts, decoding=sampled)


def test_the_chat_model_ends_its_replies(assets: Path) -> None:
    lm = LanguageModel.load(str(assets / "models" / "tinytalk-3m-chat"))
    (response,) = generate(lm, [user("Hello! How are you?")], decoding=Decoding(max_new_tokens=40))
    assert response.finish == "end"
    assert response.ids[-1] in lm.end_ids
    assert response.text == "I'm doing well, thank you. How are you?"
