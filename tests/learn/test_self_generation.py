"""Pairs that the model writes: what it is asked, from which prompts, and what becomes of its answers."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from steerbench import Decoding, Example, FitContext, LanguageModel, Options, Protocol, SteerbenchError, generate
from steerbench.bench.setup import load_bench
from steerbench.contract import tiny
from steerbench.data import Dialogue, Turn, user
from steerbench.learn import Pair, Response, Tokens, self_generated
from steerbench.learn import self_generation as module
from steerbench.learn.pairs import pairs_from
from steerbench.learn.self_generation import personas

QUERIES = ["Hi", "How?", "Sing", "Why me?", "Tell"]
SHORT = Decoding(max_new_tokens=6)


def context(lm: LanguageModel, queries: Sequence[str | Dialogue] = QUERIES, **settings: Any) -> FitContext:
    prompts = [user(q) if isinstance(q, str) else q for q in queries]
    examples = [Example(str(i), str(i), p, f"Yes {i}.", f"No {i}!") for i, p in enumerate(prompts)]
    given: dict[str, Any] = {"decoding": SHORT, "reward": tiny.VowelReward(), "examples": examples}
    return FitContext(lm=lm, **(given | settings))


def ids(lm: LanguageModel, text: str) -> tuple[int, ...]:
    return tuple(lm.tokenizer(text)["input_ids"])


class Writer:
    """Stands in for `generate`: writes by a rule of (good side?, query), and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[Sequence[Dialogue]] = []
        self.settings: list[tuple[Decoding, int, int]] = []
        self.describe: Callable[[bool, str], str] = lambda good, query: f"be {'kind' if good else 'rude'} to {query}."
        self.answer: Callable[[bool, str], str | Response] = lambda good, query: f"{'Yes' if good else 'No'} {query}"

    def __call__(
        self,
        lm: LanguageModel,
        dialogues: Sequence[Dialogue],
        *,
        decoding: Decoding,
        seed: int,
        batch_size: int,
        engine: None,
        progress: Any,
    ) -> list[Response]:
        self.calls.append(dialogues)
        self.settings.append((decoding, seed, batch_size))
        written = [self._write(d) for d in dialogues]
        return [w if isinstance(w, Response) else Response(w, ids(lm, w), "length") for w in written]

    def _write(self, dialogue: Dialogue) -> str | Response:
        question, _, asked = dialogue[-1].text.partition("\n")
        good = "Pretend" not in (asked or dialogue[0].text)
        return self.describe(good, question) if asked else self.answer(good, question)

    @property
    def seen(self) -> str:
        return repr(self.calls)


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Writer:
    stub = Writer()
    monkeypatch.setattr(module, "generate", stub)
    return stub


# What is asked

EARLIER = (Turn("system", "Be brief."), *user("Hello"), Turn("assistant", "Good day."), *user("Why?"))


def test_the_questions_are_the_published_ones(llama: LanguageModel, writer: Writer) -> None:
    self_generated(context(llama, ["Hi", EARLIER]), "helpful", "useless")
    good, bad, answers_good, answers_bad = writer.calls
    assert good == [
        user("Hi\nYou are a helpful assistant. Your answer to this query should:"),
        (*EARLIER[:-1], *user("Why?\nYou are a helpful assistant. Your answer to this query should:")),
    ]
    assert bad == [
        user("Hi\nPretend you are a useless assistant. Your response to this query should:"),
        (*EARLIER[:-1], *user("Why?\nPretend you are a useless assistant. Your response to this query should:")),
    ]
    told = "You are a helpful assistant. Your answer should be kind to"
    assert answers_good == [
        (Turn("system", f"{told} Hi."), *user("Hi")),
        (Turn("system", f"Be brief.\n\n{told} Why?."), *EARLIER[1:]),
    ]
    told = "Pretend you are a useless assistant. Your answer should be rude to"
    assert answers_bad == [
        (Turn("system", f"{told} Hi."), *user("Hi")),
        (Turn("system", f"Be brief.\n\n{told} Why?."), *EARLIER[1:]),
    ]


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("", "Your answer should be witty."),
        (".", "Your answer should be witty."),
        ("make one laugh", "Your answer should make one laugh."),
        ("make one laugh.", "Your answer should make one laugh."),
        ("make one laugh ...", "Your answer should make one laugh ."),
    ],
)
def test_what_is_told_ends_in_one_dot_and_falls_back_on_the_word(
    llama: LanguageModel, writer: Writer, description: str, expected: str
) -> None:
    writer.describe = lambda good, query: description if good else "bore."
    found = self_generated(context(llama, ["Hi"]), "witty", "dull")
    assert writer.calls[2] == [(Turn("system", f"You are a witty assistant. {expected}"), *user("Hi"))]
    assert writer.calls[3][0][0].text == "Pretend you are a dull assistant. Your answer should bore."
    assert found.kept[0].descriptions == (description, "bore.")


def test_descriptions_are_short_and_answers_as_long_as_the_protocol_says(llama: LanguageModel, writer: Writer) -> None:
    sampled = Decoding(max_new_tokens=7, temperature=0.5, top_k=3, top_p=0.9)
    self_generated(context(llama, decoding=sampled, seed=11, batch_size=3))
    lengths = [decoding.max_new_tokens for decoding, *_ in writer.settings]
    assert lengths == [50, 50, 7, 7]
    assert all((replace(d, max_new_tokens=7), seed, size) == (sampled, 11, 3) for d, seed, size in writer.settings)


def test_the_answers_are_those_of_the_model(llama: LanguageModel) -> None:
    """Naively, one question after the other."""
    found = self_generated(context(llama))
    assert [g.query for g in found.kept] == [user(q) for q in QUERIES]
    sides = ("You are a helpful assistant.", "answer"), ("Pretend you are a useless assistant.", "response")
    for generated in found.kept:
        query = generated.query[0].text
        for i, (persona, noun) in enumerate(sides):
            asked = user(f"{query}\n{persona} Your {noun} to this query should:")
            (description,) = generate(llama, [asked], decoding=Decoding(max_new_tokens=50))
            assert generated.descriptions[i] == description.text
            told = Turn("system", f"{persona} Your answer should {description.text.rstrip('.')}.")
            (answer,) = generate(llama, [(told, *user(query))], decoding=SHORT)
            assert generated.answers[i] == answer
            assert generated.pair[i] == Tokens(llama.tokens(user(query)).prompt, answer.ids)


# From which prompts


@pytest.mark.parametrize("n", [1, 3, 5, 200])
def test_the_first_queries_are_asked_and_no_others(llama: LanguageModel, writer: Writer, n: int) -> None:
    found = self_generated(context(llama), n_queries=n)
    assert [g.query for g in found.kept] == [user(q) for q in QUERIES[:n]]
    assert [len(call) for call in writer.calls] == [min(n, 5)] * 4
    assert not any(repr(q) in writer.seen for q in QUERIES[n:])


def test_replies_of_the_data_are_never_shown(llama: LanguageModel, writer: Writer) -> None:
    examples = [Example("0", "0", user("Hi"), "CHOSEN", "REJECTED")]
    for settings in ({}, {"test_queries": [user("Hello")]}):
        self_generated(context(llama, examples=examples, **settings))
    assert "CHOSEN" not in writer.seen
    assert "REJECTED" not in writer.seen


def test_test_prompts_are_asked_in_place_of_training_prompts_where_they_may_be_seen(
    llama: LanguageModel, writer: Writer
) -> None:
    test = [user("Kept back"), user("Held out")]
    found = self_generated(context(llama, test_queries=test))
    assert [g.query for g in found.kept] == test
    assert not any(q in writer.seen for q in QUERIES)


@pytest.mark.parametrize("transductive", [False, True])
def test_only_a_transductive_protocol_shows_test_prompts(
    protocol: Protocol, writer: Writer, transductive: bool
) -> None:
    bench = load_bench(replace(protocol, transductive=transductive), Options())
    self_generated(bench.context(0))
    train, test = ([e.prompt[-1].text for e in split] for split in (bench.train, bench.test))
    wanted, other = (test, train) if transductive else (train, test)
    for call in writer.calls:
        assert [d[-1].text.partition("\n")[0] for d in call] == wanted
    assert not any(text in writer.seen for text in other)


# What becomes of the answers

FATES = ["fine one", "l" * 140, "empty good", "alike", "too much said", "empty bad", "fine two", "fine three"]


def fated(writer: Writer) -> None:
    """Let each query meet what its name says."""
    writer.describe = lambda good, query: "x" * 180 if good and query == "too much said" else f"{good} about {query}"
    answers = {("empty good", True): "", ("empty bad", False): "", ("alike", True): "so", ("alike", False): "so"}
    writer.answer = lambda good, query: answers.get((query, good), f"{good} answer to {query}")


def test_query_description_and_answers_keep_together_when_others_are_dropped(
    llama: LanguageModel, writer: Writer
) -> None:
    fated(writer)
    found = self_generated(context(llama, FATES))
    fine = ["fine one", "fine two", "fine three"]
    assert [g.query for g in found.kept] == [user(q) for q in fine]
    for generated, query in zip(found.kept, fine, strict=True):
        texts = f"True answer to {query}", f"False answer to {query}"
        assert generated.descriptions == (f"True about {query}", f"False about {query}")
        assert tuple(a.text for a in generated.answers) == texts
        prompt = llama.tokens(user(query)).prompt
        assert generated.pair == Pair(*(Tokens(prompt, ids(llama, text)) for text in texts))


@pytest.mark.parametrize("over", [0, 1])
def test_descriptions_and_answers_may_fill_the_context_and_not_more(
    llama: LanguageModel, writer: Writer, over: int
) -> None:
    """The longer of both sides decides: 50 tokens of a description, or 6 of an answer, must go behind it."""
    asked = user("\nPretend you are a useless assistant. Your response to this query should:")
    query = "l" * (256 - 50 - len(llama.tokens(asked).prompt))
    told = (Turn("system", "You are a helpful assistant. Your answer should ."), *user("Hi"))
    writer.describe = lambda good, query: "x" * (256 - 6 - len(llama.tokens(told).prompt) + over if good else 1)
    dropped = {"no room in the context": over}
    if over:
        with pytest.raises(SteerbenchError, match="no room in the context: 1"):
            self_generated(context(llama, [query + "l"]))
        with pytest.raises(SteerbenchError, match="no room in the context: 1"):
            self_generated(context(llama, ["Hi"]))
    else:
        assert self_generated(context(llama, ["Hi"])).dropped == dropped
        writer.describe = lambda good, query: "short"
        assert self_generated(context(llama, [query])).dropped == dropped


def test_what_is_dropped_is_counted_and_reported(llama: LanguageModel, writer: Writer) -> None:
    fated(writer)
    own = context(llama, FATES)
    found = self_generated(own, "kind", "rude")
    assert found.dropped == {"no room in the context": 2, "empty answer": 2, "equal answers": 1}
    assert len(found.kept) + sum(found.dropped.values()) == len(FATES)
    report = own.report["self_generated"]
    assert (report["words"], report["kept"], report["dropped"]) == (["kind", "rude"], 3, found.dropped)
    assert report["first"][1] == {
        "query": "fine two",
        "good_description": "True about fine two",
        "bad_description": "False about fine two",
        "good": "True answer to fine two",
        "bad": "False answer to fine two",
    }


def test_a_report_keeps_the_first_ten_pairs(llama: LanguageModel, writer: Writer) -> None:
    own = context(llama, [f"Query {i}" for i in range(12)])
    self_generated(own)
    assert own.report["self_generated"]["kept"] == 12
    assert [pair["query"] for pair in own.report["self_generated"]["first"]] == [f"Query {i}" for i in range(10)]


@pytest.mark.parametrize("silence", [Response("", (2,), "end"), Response("", (223, 223), "length")])
def test_an_answer_without_text_is_empty(llama: LanguageModel, writer: Writer, silence: Response) -> None:
    writer.answer = lambda good, query: silence if query == "Sing" and not good else f"{good} {query}"
    found = self_generated(context(llama))
    assert [g.query[0].text for g in found.kept] == [q for q in QUERIES if q != "Sing"]
    assert found.dropped["empty answer"] == 1


def test_the_end_token_is_no_part_of_a_pair(llama: LanguageModel, writer: Writer) -> None:
    """Read at their last token, all answers that the model has ended would be alike."""
    writer.answer = lambda good, query: Response("Yes" if good else "No", (60, 61, 62, 2) if good else (50, 2), "end")
    (generated,) = self_generated(context(llama, ["Hi"])).kept
    assert [tokens.response for tokens in generated.pair] == [(60, 61, 62), (50,)]
    ended = generated.ended(llama)
    assert [tokens.response for tokens in ended] == [(60, 61, 62, 2), (50, 2)]
    assert [tokens.prompt for tokens in ended] == [tokens.prompt for tokens in generated.pair]
    llama.end_ids = []
    with pytest.raises(SteerbenchError, match="tiny-llama has no end token to read answers at; leave end_token off"):
        generated.ended(llama)


def test_where_nothing_is_left_the_words_and_the_reasons_are_told(llama: LanguageModel, writer: Writer) -> None:
    writer.answer = lambda good, query: "the same" if query == "Hi" else ""
    with pytest.raises(SteerbenchError, match=r"equal answers: 1.*other words than 'sweet' and 'sour'") as error:
        self_generated(context(llama), "sweet", "sour")
    assert "empty answer: 4" in str(error.value)
    with pytest.raises(SteerbenchError, match=r"no room in the context: 1\)"):
        self_generated(context(llama, ["l" * 250]))


# Once per run


def test_pairs_are_written_once_and_every_method_reports_them(llama: LanguageModel, writer: Writer) -> None:
    first = context(llama)
    second = replace(first, report={})
    assert self_generated(first) is self_generated(second)
    assert len(writer.calls) == 4
    assert first.report == second.report != {}
    assert pairs_from(first, "self_generated") == [g.pair for g in self_generated(first).kept]
    assert len(writer.calls) == 4


def test_other_words_and_another_number_are_other_pairs(llama: LanguageModel, writer: Writer) -> None:
    shared = context(llama)
    for arguments in ((), ("kind", "rude"), ("rude", "kind"), ("kind", "rude", 2)):
        self_generated(shared, *arguments)
    assert len(writer.calls) == 16


@pytest.mark.parametrize(("temperature", "calls"), [(0.0, 4), (1.0, 8)])
def test_another_seed_writes_anew_only_where_tokens_are_drawn(
    llama: LanguageModel, writer: Writer, temperature: float, calls: int
) -> None:
    first = context(llama, decoding=replace(SHORT, temperature=temperature))
    for seed in (0, 1, 0, 1):
        self_generated(replace(first, seed=seed))
    assert len(writer.calls) == calls


# Personas and the other sources


def test_personas_are_the_prompts_under_both_without_a_reply(llama: LanguageModel, writer: Writer) -> None:
    expected = [
        Pair(*(llama.tokens((Turn("system", text), *user(query))) for text in texts))
        for texts in [("You are a kind assistant.", "Pretend you are a rude assistant.")]
        for query in QUERIES[:3]
    ]
    assert personas(context(llama), "kind", "rude", 3) == expected
    assert personas(context(llama, test_queries=[user("Sing")]), "kind", "rude") == expected[2:]
    assert not writer.calls


def test_personas_that_do_not_fit_are_left_out(llama: LanguageModel) -> None:
    long = "l" * 200
    fitting = personas(context(llama, ["Hi", long, "Sing"]))
    assert fitting == personas(context(llama, ["Hi", "Sing"]))
    with pytest.raises(SteerbenchError, match="no training prompt leaves room for a persona"):
        personas(context(llama, [long]))


def test_a_source_gives_its_own_pairs(llama: LanguageModel, writer: Writer) -> None:
    own = context(llama, ["Hi"])
    prompt = llama.tokens(user("Hi")).prompt
    space = ids(llama, " ")
    given = [Tokens(prompt, space + ids(llama, reply)) for reply in ("Yes 0", "No 0!")]  # cut at 6 tokens
    assert pairs_from(own, "preferences") == [Pair(*given)]
    written = [Tokens(prompt, ids(llama, reply)) for reply in ("Yes Hi", "No Hi")]
    assert pairs_from(own, "self_generated") == [Pair(*written)]
    assert pairs_from(own, "personas") == personas(own)


def test_choices_show_both_replies_and_alternate_their_letters(llama: LanguageModel, writer: Writer) -> None:
    found = pairs_from(context(llama, ["Hi", "Sing", EARLIER]), "choices")
    for i, (pair, query) in enumerate(zip(found, ["Hi", "Sing", "Why?"], strict=True)):
        first, second = (f"Yes {i}.", f"No {i}!") if i % 2 == 0 else (f"No {i}!", f"Yes {i}.")
        prompt = llama.tokenizer.decode(pair.chosen.prompt)
        question = f"Human: {query}\n\nChoices:\n (A) {first}\n (B) {second}\n\nAssistant:"
        assert prompt.endswith(question)
        assert prompt.startswith("Be brief.") == (query == "Why?")
        assert pair.rejected.prompt == pair.chosen.prompt
        letters = [llama.tokenizer.decode(tokens.response) for tokens in pair]
        assert letters == ([" (A", " (B"] if i % 2 == 0 else [" (B", " (A"])
        assert [llama.tokenizer.decode(tokens.response[-1]) for tokens in pair] == [text[-1] for text in letters]


def test_choices_that_do_not_fit_are_left_out(llama: LanguageModel) -> None:
    queries = ["Hi", "l" * 230, "Sing"]
    found = pairs_from(context(llama, queries), "choices")
    texts = [llama.tokenizer.decode(pair.chosen.prompt) for pair in found]
    assert [text.split()[1] for text in texts] == ["Hi", "Sing"]
    assert "(A) Yes 2." in texts[1]
    with pytest.raises(SteerbenchError, match="leaves room for both replies in the context of 256"):
        pairs_from(context(llama, queries[1:2]), "choices")


def test_an_unknown_source_is_told_with_the_nearest_name(llama: LanguageModel) -> None:
    with pytest.raises(SteerbenchError, match=r"unknown source of pairs 'persona'\. Did you mean 'personas'\?"):
        pairs_from(context(llama), "persona")  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [0, -1])
def test_no_prompt_to_write_pairs_for_is_a_mistake(llama: LanguageModel, n: int) -> None:
    """As a slice, -1 would be all but one."""
    for write in (self_generated, personas):
        with pytest.raises(SteerbenchError, match=rf"^n_queries={n} leaves no prompt to write pairs for; give 1"):
            write(context(llama, ["Hi"]), n_queries=n)
