"""Models that reason before they answer: what is scored and fitted on is the answer, whichever way they show it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

from steerbench import Decoding, Example, FitContext, LanguageModel, Reward, SteerbenchError, generate, testbed
from steerbench.contract import tiny
from steerbench.data import Dialogue, Turn, user
from steerbench.decoding import Thinking
from steerbench.learn.self_generation import self_generated
from steerbench.models.checkpoint import find, load_tokenizer
from steerbench.models.prompt_format import PromptFormat
from steerbench.progress import Progress, silent

HI = user("Hi")
MODES: tuple[Thinking, ...] = ("off", "strip", "keep")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FLAG = (  # SmolLM 3, GLM 4.5: shown by the flag alone
    CHATML.replace(
        "assistant\n{%",
        "assistant\n{% if enable_thinking is defined and not enable_thinking %}<think></think>\n{% endif %}{%",
    )
)
SEED = (  # Seed-OSS, Qwen 3 Thinking: tags of its own, which the prompt opens; past replies are without
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><seed:think>{% endif %}"
)
DROPS = (  # the first DeepSeek R1, QwQ: nothing is shown, and the thoughts of past replies are dropped
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'].split('</think>')[-1] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
COHERE = (  # Command R7B: the answer stands between two special tokens
    "{% for m in messages %}<|START|>{{ m['role'] }}{% if m['role'] == 'assistant' %}<|START_RESPONSE|>"
    "{{ m['content'] }}<|END_RESPONSE|>{% else %}{{ m['content'] }}{% endif %}<|END|>{% endfor %}"
    "{% if add_generation_prompt %}<|START|>assistant{% endif %}"
)
OSS = (  # gpt-oss, with its date
    "<|start|>system<|message|>Current date: {{ strftime_now('%Y-%m-%d') }}<|end|>{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m['content'] }}"
    "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}{% else %}"
    "<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
SPECIAL = {
    FLAG: ["<|im_start|>", "<|im_end|>"],
    SEED: ["<|user|>", "<|assistant|>"],
    DROPS: ["<|user|>", "<|assistant|>"],
    COHERE: [
        "<|START|>",
        "<|END|>",
        "<|START_RESPONSE|>",
        "<|END_RESPONSE|>",
        "<|START_THINKING|>",
        "<|END_THINKING|>",
    ],
    OSS: ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"],
}
NAMES = {"flag": FLAG, "seed": SEED, "drops": DROPS, "cohere": COHERE, "oss": OSS}
PROMPT = {  # where a reply follows, as the template has it
    "flag": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "seed": "<bos><|user|>Hi<eos><|assistant|><seed:think>",
    "drops": "<|user|>Hi<eos><|assistant|>",
    "cohere": "<|START|>userHi<|END|><|START|>assistant",
    "oss": "<|start|>system<|message|>Current date: 2024-07-26<|end|><|start|>user<|message|>Hi<|end|>"
    "<|start|>assistant",
}
EMPTY = {  # what an answer without a thought stands behind
    "flag": "<think></think>\n",
    "seed": "\n</seed:think>\n\n",
    "drops": "<think>\n\n</think>\n\n",
    "cohere": "<|START_RESPONSE|>",
    "oss": "<|channel|>final<|message|>",
}
THOUGHT = {  # what a model writes before its answer
    "flag": "<think>\nUser: greets.\n</think>\n\n",
    "seed": "Hello? </seed:think>",
    "drops": "<think>\nA greeting.\n</think>\n\n",
    "cohere": "<|START_THINKING|>A greeting.<|END_THINKING|><|START_RESPONSE|>",
    "oss": "<|channel|>analysis<|message|>Greets.<|end|><|start|>assistant<|channel|>final<|message|>",
}
END = {"flag": "<|im_end|>", "seed": "<eos>", "drops": "<eos>", "cohere": "<eos>", "oss": "<|return|>"}
everywhere = pytest.mark.parametrize("name", NAMES)


def tokenizer(template: str | None, special: Sequence[str] = ()) -> Any:
    made = tiny.tokenizer()
    made.add_tokens([AddedToken(token, special=True) for token in special])
    made.chat_template = template
    return made


def model(name: str, thinking: Thinking) -> LanguageModel:
    made = tokenizer(NAMES[name], SPECIAL[NAMES[name]])
    lm = tiny.language_model()
    lm.model.resize_token_embeddings(len(made), mean_resizing=False)
    return LanguageModel(lm.model, made, thinking=thinking)


def ids_of(lm: LanguageModel, text: str) -> tuple[int, ...]:
    return tuple(lm.tokenizer(text, add_special_tokens=False)["input_ids"])


def written(lm: LanguageModel, ids: Sequence[int]) -> str:
    return str(lm.tokenizer.decode(list(ids)))


def says(lm: LanguageModel, text: str) -> int:
    """Make the model say a text, whatever it is asked, and return the number of its tokens."""
    assert lm.largest_batch is None  # tried out while it still reads
    ids = ids_of(lm, text)
    steps = iter(ids * 20)

    def write(module: Any, given: Any, logits: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(logits).index_fill(-1, torch.tensor([next(steps)]), 100.0)

    lm.anatomy.head.register_forward_hook(write)
    return len(ids)


@everywhere
@pytest.mark.parametrize("thinking", MODES)
def test_fit_reads_replies_behind_an_empty_thought(name: str, thinking: Thinking) -> None:
    lm = model(name, thinking)
    assert lm.format.text(HI) == PROMPT[name] + (EMPTY[name] if thinking == "off" else "")
    pair = lm.tokens(HI, "Hello")
    assert (written(lm, pair.prompt), written(lm, pair.response)) == (PROMPT[name] + EMPTY[name], "Hello")


@everywhere
@pytest.mark.parametrize("thinking", ["off", "strip"])
def test_the_response_is_the_answer(name: str, thinking: Thinking) -> None:
    """Also where thinking was switched off, and the model thinks all the same."""
    lm = model(name, thinking)
    ids = ids_of(lm, f"{THOUGHT[name]}Hello!{END[name]}")
    response = lm.cut(ids)
    assert (response.text, response.n_tokens, written(lm, response.text_ids)) == ("Hello!", 6, "Hello!")
    assert written(lm, response.ids[: response.thought]) == THOUGHT[name]
    assert response.ids == ids[: len(response.ids)]


@everywhere
def test_a_reply_that_never_leaves_its_thought_is_empty_and_truncated(name: str) -> None:
    lm = model(name, "strip")
    ids = ids_of(lm, THOUGHT[name])[:-18]
    response = lm.cut(ids)
    assert (response.text, response.finish, response.n_tokens) == ("", "length", 0)
    assert response.ids == ids
    ended = lm.cut([*ids, *ids_of(lm, END[name])])
    assert (ended.text, ended.finish, ended.n_tokens) == ("", "end", 0)


@everywhere
def test_a_reply_without_a_thought_is_all_answer(name: str) -> None:
    lm = model(name, "off")
    response = lm.cut(ids_of(lm, f"Hello!{END[name]}"))
    assert (response.text, response.finish, response.thought) == ("Hello!", "end", 0)


def test_kept_thoughts_are_a_part_of_the_response() -> None:
    lm = model("flag", "keep")
    response = lm.cut(ids_of(lm, f"{THOUGHT['flag']}Hello!<|im_end|>"))
    assert (response.text, response.thought) == ("<think>\nUser: greets.\n</think>\n\nHello!", 0)


@pytest.mark.parametrize(
    ("name", "reply", "text", "finish"),
    [
        ("flag", "<think>a</think> b <think>c</think> d<|im_end|>", "d", "end"),
        ("flag", "<think>a</think> b <think>c", "b", "turn"),
        ("flag", "<think>a</think>\n<think>c", "", "length"),
        ("flag", "<think>a</think>\n", "", "length"),
        ("flag", "<think>a</think> Write </think> behind it.<|im_end|>", "Write </think> behind it.", "end"),
        ("flag", "Write </think> behind it.<|im_end|>", "Write </think> behind it.", "end"),
        ("flag", "Write <think>a</think> b.<|im_end|>", "Write <think>a</think> b.", "end"),
        ("seed", "a</seed:think> b</seed:think> c<eos>", "b</seed:think> c", "end"),
        (
            "oss",
            "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>{}",
            "{}",
            "length",
        ),
        (
            "oss",
            f"{THOUGHT['oss']}Bake it.<|end|><|start|>assistant<|channel|>analysis<|message|>x",
            "Bake it.",
            "turn",
        ),
        (
            "oss",
            "<|channel|>commentary<|message|>Wait.<|end|><|start|>assistant<|channel|>final<|message|>Ok",
            "Ok",
            "length",
        ),
    ],
)
def test_what_comes_behind_an_answer_is_no_part_of_it(name: str, reply: str, text: str, finish: str) -> None:
    lm = model(name, "strip")
    response = lm.cut(ids_of(lm, reply))
    assert (response.text, response.finish) == (text, finish)
    assert written(lm, response.ids[response.thought :]).strip().startswith(text)


def test_what_ends_a_channel_ends_no_reply() -> None:
    """A template may end the last message like all others; then the checkpoint alone says what ends a reply."""
    assert [written(model("oss", "strip"), [i]) for i in model("oss", "strip").format.end_of_turn_ids] == ["<|return|>"]
    same = OSS.replace("<|return|>", "<|end|>")
    form = PromptFormat(tokenizer(same, SPECIAL[OSS]), "strip")
    assert form.thought is not None
    assert form.end_of_turn_ids == []


def test_a_closer_that_shares_a_token_with_the_answer() -> None:
    """Byte-level tokens seldom do; those of other vocabularies may."""

    class Words:
        def decode(self, ids: Sequence[int], **_: Any) -> str:
            return "".join(["<think>", "hm", "</think", ">(Yes", ") Sure."][i - 10] for i in ids)

    lm = model("flag", "strip")
    lm.tokenizer = Words()
    assert lm.cut([10, 11, 12, 13, 14]).text == "(Yes) Sure."


@pytest.mark.parametrize(
    "template", [None, CHATML, CHATML.replace("assistant\n{%", "assistant\n[reply]{%"), "<b>" + CHATML]
)
def test_a_model_without_thoughts_is_the_same_in_every_mode(template: str | None) -> None:
    forms = [PromptFormat(tokenizer(template, ["<|im_start|>", "<|im_end|>"]), mode) for mode in MODES]
    assert [form.thought for form in forms] == [None] * 3
    assert len({json.dumps(form.key) for form in forms}) == 1
    assert len({form.text(HI) for form in forms}) == 1
    assert "thinking" not in forms[0].key


@everywhere
def test_the_key_says_what_becomes_of_thoughts(name: str) -> None:
    keys = [model(name, mode).format.key for mode in MODES]
    assert [key["thinking"] for key in keys] == list(MODES)


def test_records_of_the_testbed_are_found_under_the_name_they_have() -> None:
    protocol = json.loads((Path(__file__).parents[2] / "results" / "testbed" / "protocol.json").read_text())
    form = PromptFormat(load_tokenizer(find(testbed.NAME + "/lm")))
    assert json.dumps(form.key)[1:-1] in json.dumps(protocol)


class Listener(Reward):
    """Keeps what it is given."""

    name, revision = "listener", "1"

    def __init__(self) -> None:
        self.heard: list[str] = []

    def score(
        self, dialogues: Sequence[Dialogue], responses: Sequence[str], progress: Progress = silent
    ) -> torch.Tensor:
        self.heard += responses
        return torch.ones(len(responses))


@pytest.mark.parametrize("name", ["flag", "seed", "oss"])
def test_rollouts_are_scored_and_read_without_their_thoughts(name: str) -> None:
    lm, reward = model(name, "strip"), Listener()
    new = says(lm, f"{THOUGHT[name]}Hello!{END[name]}")
    context = FitContext(
        lm=lm, examples=[Example("0", "0", HI, "Good", "Bad")], reward=reward, decoding=Decoding(max_new_tokens=new)
    )
    (rollout,) = context.rollouts()
    assert reward.heard == ["Hello!"]
    assert written(lm, rollout.tokens.prompt) == PROMPT[name] + THOUGHT[name]
    assert written(lm, rollout.tokens.response) == f"Hello!{END[name]}"


def test_pairs_that_a_model_writes_are_read_like_those_of_the_data() -> None:
    """The thought is about the persona, which is not in the pair."""
    lm = model("flag", "strip")
    texts = [f"<think>{i}</think>{i}{i}<|im_end|>" for i in "abcd"]
    new = says(lm, "".join(texts)) // 4
    examples = [Example("0", "0", HI, "Good", "Bad")]
    context = FitContext(lm=lm, examples=examples, reward=Listener(), decoding=Decoding(max_new_tokens=new))
    (generated,) = self_generated(context).kept
    assert [answer.text for answer in generated.answers] == ["cc", "dd"]
    good, bad = generated.pair
    assert good.prompt == bad.prompt == lm.tokens(HI, "Good").prompt
    assert (written(lm, good.response), written(lm, bad.response)) == ("cc", "dd")


def test_generation_goes_on_behind_a_channel() -> None:
    lm = model("oss", "strip")
    new = says(lm, f"{THOUGHT['oss']}Bake it.<|return|>")
    (response,) = generate(lm, [HI], decoding=Decoding(max_new_tokens=new))
    assert (response.text, response.finish) == ("Bake it.", "end")


def test_past_replies_stay_as_the_template_shows_them() -> None:
    talk = (*HI, Turn("assistant", "Hey"), *user("Why?"))
    text = model("seed", "off").format.text(talk)
    assert (
        text == "<bos><|user|>Hi<eos><|assistant|>Hey<eos><|user|>Why?<eos><|assistant|><seed:think>\n</seed:think>\n\n"
    )


def test_an_unknown_mode_is_a_users_mistake() -> None:
    with pytest.raises(SteerbenchError, match=r"unknown thinking 'on'\. .*Known: keep, off, strip\."):
        PromptFormat(tokenizer(None), "on")  # type: ignore[arg-type]
