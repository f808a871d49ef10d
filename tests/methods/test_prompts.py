"""Methods that touch the prompt alone: what the model sees, and who chooses it."""

from typing import Any, ClassVar

import pytest
import torch

from steerbench import Decoding, FitContext, LanguageModel, SteerbenchError, Steering, generate, load
from steerbench.contract import tiny
from steerbench.data import Dialogue, Turn, user
from steerbench.edits import Add, AskedPart, PlacedEdit, Routed, Shown, Site
from steerbench.engine.prompting import prompted
from steerbench.learn import Tokens, label_scores, log_probs

PROMPTS: list[Dialogue] = [user("Hi"), user("How do I bake a cake?"), (Turn("system", "Be brief."), *user("Why?"))]
GREEDY = Decoding(max_new_tokens=4)
SAMPLED = Decoding(max_new_tokens=6, temperature=1.0)


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return tiny.language_model("llama")


def roomy() -> LanguageModel:
    """Return a tiny model with room for all of what is shown."""
    lm = tiny.language_model("llama")
    lm.model.config.max_position_embeddings = 4096
    return lm


def context(lm: LanguageModel) -> FitContext:
    return FitContext(lm=lm, examples=tiny.examples()[:8], reward=tiny.VowelReward(), decoding=GREEDY)


def fit(lm: LanguageModel, name: str, **fields: Any) -> Steering:
    return load("methods", name)(**fields).fit(context(lm))


# The pool


def test_every_text_of_the_pool_is_searched_and_has_its_origin_in_the_card(llama: LanguageModel) -> None:
    method = load("methods", "best_prompt")
    module = __import__(method.__module__, fromlist=["POOL"])
    assert {*method.search["text"], "none"} == set(module.POOL)
    assert len(set(module.POOL.values())) == len(module.POOL)
    for name, text in module.POOL.items():
        (system, *rest) = fit(llama, "best_prompt", text=name).apply_prompt(PROMPTS[0])
        assert (name == "none") == (not rest)
        assert name == "none" or (system == Turn("system", text) and f"`{name}`" in str(module.__doc__))


# Preferences


def test_a_meta_prompt_names_preferences_in_their_order(llama: LanguageModel) -> None:
    (system, last) = fit(llama, "meta_align", first="polite", second="none", third="honest").apply_prompt(PROMPTS[0])
    assert system.text.splitlines()[1:] == ["1. Open and close with a kind word.", "2. Say only what is true."]
    assert last == PROMPTS[0][-1]
    (system, _) = fit(llama, "meta_align", first="polite", second="polite", third="none").apply_prompt(PROMPTS[0])
    assert len(system.text.splitlines()) == 2


# Examples in the context


def test_what_is_shown_begins_every_prompt_alike_and_once() -> None:
    lm = roomy()
    steering = fit(lm, "urial")
    texts = [lm.format.text(steering.apply_prompt(p)) for p in PROMPTS[:2]]
    start = texts[0].rindex("Human: Hi")
    assert texts[0][:start] == texts[1][:start]
    assert texts[0].count("Human:") == 4
    twice = (steering + steering).apply_prompt(PROMPTS[0])
    assert twice == steering.apply_prompt(PROMPTS[0])
    assert steering.apply_prompt(PROMPTS[2])[0].text.startswith("Be brief.\n\n")


def test_no_example_leaves_the_preamble_and_the_report_says_how_many_there_are() -> None:
    none = fit(roomy(), "urial", k=0)
    assert [turn.role for turn in none.apply_prompt(PROMPTS[0])] == ["system", "user"]
    small, large = context(tiny.language_model("llama")), context(roomy())
    for each in (small, large):
        load("methods", "urial")().fit(each)
    assert (small.report["shown"], large.report["shown"]) == (0, 3)
    with pytest.raises(SteerbenchError, match="0 to 3"):
        fit(roomy(), "urial", k=4)


def test_shown_turns_stand_between_system_text_and_dialogue() -> None:
    seen = Shown(["Q"], ["R"])(PROMPTS[2])
    assert seen == (PROMPTS[2][0], Turn("user", "Q"), Turn("assistant", "R"), PROMPTS[2][1])


# The model routes


class ByLength(AskedPart):
    """Writes down the first score and the label that it belongs to."""

    asked: ClassVar[list[Dialogue]] = []

    def __init__(self, labels: list[str]) -> None:
        self.labels = labels

    def question(self, dialogue: Dialogue) -> Dialogue:
        self.asked.append(dialogue)
        return dialogue

    def answered(self, dialogue: Dialogue, scores: Any) -> Dialogue:
        return (*dialogue[:-1], Turn("user", " ".join(f"{score:.3f}" for score in scores)))


def test_scores_are_those_of_each_label_alone_and_batches_change_nothing(llama: LanguageModel) -> None:
    part = Routed("Is it bad?", ["No.", "Yes, it is."], [0.0, 0.0], ["", "Decline."])
    found = label_scores(llama, part, PROMPTS)
    for prompt, row in zip(PROMPTS, found, strict=True):
        asked = user(f"{prompt[-1].text}\n\nIs it bad?")
        alone = [float(log_probs(llama, [llama.tokens(asked, label)])[0].mean()) for label in part.labels]
        assert row == pytest.approx(alone, abs=1e-4)
    torch.testing.assert_close(torch.tensor(label_scores(llama, part, PROMPTS, 1)), torch.tensor(found))


def test_the_label_with_the_best_score_and_bias_gives_the_instruction(llama: LanguageModel) -> None:
    ask, labels, texts = "Is it bad?", ["No.", "Yes, it is."], ["", "Decline."]
    plain = Routed(ask, labels, [0.0, 0.0], texts)
    for prompt, (no, yes) in zip(PROMPTS, label_scores(llama, plain, PROMPTS), strict=True):
        for lean, text in ((1e-2, "Decline."), (-1e-2, "")):
            part = Routed(ask, labels, [0.0, no - yes + lean], texts)
            (seen,) = prompted(llama, Steering(prompt=(part,)), [prompt])
            assert seen == (fit(llama, "static_prompt", text=text).apply_prompt(prompt))


def test_a_router_sees_what_the_parts_before_it_made_and_is_asked_in_one_batch(llama: LanguageModel) -> None:
    ByLength.asked.clear()
    before = fit(llama, "static_prompt", text="Be kind.")
    passes: list[int] = []
    handle = llama.model.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    seen = prompted(llama, before + Steering(prompt=(ByLength(["A", "B"]),)), PROMPTS[:2])
    handle.remove()
    assert ByLength.asked == [before.apply_prompt(p) for p in PROMPTS[:2]]
    assert passes == [4]
    assert all(len(dialogue[-1].text.split()) == 2 for dialogue in seen)


PUSH = PlacedEdit(Site("resid_post", 1), Add(torch.linspace(-2, 2, 32)), "all")


def parting(lm: LanguageModel) -> Steering:
    """Return a router on whose ways the prompts part."""
    scores = label_scores(lm, Routed("Is it bad?", ["No.", "Yes."], [0.0, 0.0], ["", ""]), PROMPTS)
    bias = sorted(no - yes for no, yes in scores)[1]
    router = Steering(prompt=(Routed("Is it bad?", ["No.", "Yes."], [0.0, bias + 1e-2], ["", "Decline."]),))
    routed = prompted(lm, router, PROMPTS)
    assert 0 < sum("Decline." in dialogue[0].text for dialogue in routed) < len(PROMPTS)
    return router


@pytest.mark.parametrize("batch_size", [1, 16])
def test_what_was_asked_stands_behind_a_twin_too(llama: LanguageModel, batch_size: int) -> None:
    """With scale 1, what guidance makes of a routed prompt is the model behind it and the text; steered as it is."""
    router = parting(llama)
    routed = prompted(llama, router, PROMPTS)
    edits = Steering(edits=(PUSH,))
    guided = fit(llama, "classifier_free", scale=1.0, text="Be kind.")
    text = fit(llama, "static_prompt", text="Be kind.")
    few = Decoding(max_new_tokens=6)
    for more in (Steering(), edits):
        found = generate(llama, PROMPTS, router + guided + more, few, batch_size=batch_size)
        assert found == generate(llama, PROMPTS, router + text + more, few, batch_size=batch_size)
        given = [Tokens(llama.tokens(d).prompt, r.ids) for d, r in zip(routed, found, strict=True)]
        told = [
            Tokens(llama.tokens(text.apply_prompt(d)).prompt, t.response) for d, t in zip(routed, given, strict=True)
        ]
        steered = log_probs(llama, given, router + guided + more, dialogues=PROMPTS, batch_size=batch_size)
        for row, expected in zip(steered, log_probs(llama, told, more), strict=True):
            torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-4)


def test_a_twin_of_a_choice_asks_the_model_as_it_is(llama: LanguageModel) -> None:
    """It reads along in passes of its own, and is asked for while edits are installed."""
    router, edits, choice = parting(llama), Steering(edits=(PUSH,)), fit(llama, "best_of_n", n=2)
    guided = fit(llama, "classifier_free", scale=1.0, text="Be kind.")
    text = fit(llama, "static_prompt", text="Be kind.")
    found, expected = (
        generate(llama, PROMPTS, router + one + edits + choice, SAMPLED, reward=tiny.VowelReward())
        for one in (guided, text)
    )
    assert [response.ids for response in found] == [response.ids for response in expected]


def test_prime_guard_is_calibrated_on_training_prompts(llama: LanguageModel) -> None:
    given = context(llama)
    (part,) = load("methods", "prime_guard")().fit(given).prompt
    assert isinstance(part, Routed)
    scores = torch.tensor(label_scores(llama, part, given.queries))
    torch.testing.assert_close(torch.tensor(part.biases), -scores.mean(0), rtol=1e-4, atol=1e-4)
    routed = (scores - scores.mean(0)).argmax(1).bincount(minlength=3) / len(scores)
    assert list(given.report["routed"].values()) == pytest.approx(routed.tolist())
    assert given.report["calls_per_prompt"] == 3
    (plain,) = load("methods", "prime_guard")(bias="none").fit(given).prompt  # type: ignore[call-arg]
    assert isinstance(plain, Routed)
    assert plain.biases == [0.0, 0.0, 0.0]


def test_what_asks_cannot_be_applied_without_a_model(llama: LanguageModel) -> None:
    steering = fit(llama, "prime_guard")
    with pytest.raises(SteerbenchError, match="asks the model"):
        steering.apply_prompt(PROMPTS[0])
    assert len(generate(llama, PROMPTS, steering, GREEDY)) == len(PROMPTS)
    assert fit(llama, "prime_guard", guard=False) == Steering()
