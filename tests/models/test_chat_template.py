"""A chat template shows every word, the same on every day, to both kinds of models; or it is refused."""

import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import chat_template_utils

from steerbench import SteerbenchError
from steerbench.contract import tiny
from steerbench.data import Dialogue, Turn, user
from steerbench.models.chat_template import ChatTemplate
from steerbench.models.checkpoint import Source
from steerbench.models.prompt_format import PromptFormat
from steerbench.models.reward import RewardModel

TURN = "[{{ m['role'] }}] {{ m['content'] }};"
EACH = "{% for m in messages %}" + TURN + "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
TALK: Dialogue = (*user("Hi"), Turn("assistant", "Hey"), *user("Why?"))
SYSTEM: Dialogue = (Turn("system", "Be kind."), *user("Hi"))
LLAVA = (  # images first, then the parts that are text
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
CLOCKS = {  # Mistral Small, SmolLM 3, and one that prints what it likes
    "day": "Today is {{ strftime_now('%Y-%m-%d') }}. " + EACH,
    "set": "{% set today = strftime_now('%d %B %Y') %}{{ today | upper }}: " + EACH,
    "time": "{% if strftime_now is defined %}{{ strftime_now('%A, %-d %b, %H:%M') }} {% endif %}" + EACH,
}
FIXED = {"day": "Today is 2024-07-26. ", "set": "26 JULY 2024: ", "time": "Friday, 26 Jul, 00:00 "}


def tokenizer(template: str) -> Any:
    made = tiny.tokenizer()
    made.chat_template = template
    return made


def of_reward(template: str) -> RewardModel:
    """Return a reward model with a chat template, that only reads."""
    source = Source("reader", "sha256:0", Path())
    model = tiny.language_model().model
    return RewardModel(source, tokenizer(template), model, _zero, device=torch.device("cpu"), batch_size=2)


def _zero(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(ids))


@pytest.fixture
def tomorrow(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Clock":
            return cls(2031, 3, 4, 5, 6, tzinfo=tz)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


@pytest.mark.usefixtures("tomorrow")
@pytest.mark.parametrize("name", CLOCKS)
def test_a_template_that_reads_the_clock_is_given_a_fixed_date(name: str) -> None:
    form = PromptFormat(tokenizer(CLOCKS[name]))
    assert form.text(user("Hi")) == f"{FIXED[name]}[user] Hi;[assistant] "
    assert form.key == {"prompt_format": form.name, "prompt_date": "26 Jul 2024"}
    assert "prompt_date" not in PromptFormat(tokenizer(EACH)).key


@pytest.mark.usefixtures("tomorrow")
def test_a_reward_model_reads_the_same_date() -> None:
    model = of_reward(CLOCKS["day"])
    assert model.text(user("Hi"), "Hey") == "Today is 2024-07-26. [user] Hi;[assistant] Hey;"
    assert model.shows_date


def test_the_key_is_that_of_what_is_written() -> None:
    names = {
        template: PromptFormat(tokenizer(template)).name
        for template in (EACH, EACH.replace("'role'", '"role"'), EACH.replace(";", "."), EACH + "{# note #}")
    }
    first, same, other, noted = names.values()
    assert first == same == noted != other


def test_a_template_that_draws_is_refused() -> None:
    with pytest.raises(SteerbenchError, match="writes another prompt each time"):
        PromptFormat(tokenizer("{{ ['Hello', 'Welcome'] | random }} " + EACH))


def test_texts_are_given_in_parts_where_they_are_shown_only_so() -> None:
    form = PromptFormat(tokenizer(LLAVA))
    assert form.text(TALK) == "USER: Hi ASSISTANT: Hey USER: Why? ASSISTANT:"
    assert form.text(SYSTEM) == "SYSTEM: Be kind. USER: Hi ASSISTANT:"
    assert of_reward(LLAVA).text(user("Hi"), "Hey") == "USER: Hi ASSISTANT: Hey "


def test_texts_stay_whole_where_both_forms_are_shown() -> None:
    both = EACH.replace(
        "{{ m['content'] }}", "{{ m['content'] if m['content'] is string else m['content'][0]['text'] }}"
    )
    assert PromptFormat(tokenizer(both)).text(TALK) == PromptFormat(tokenizer(EACH)).text(TALK)


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + EACH,
        EACH.replace(TURN, "{% if m['role'] != 'system' %}" + TURN + "{% endif %}"),
        EACH.replace(TURN, "{% if m['role'] in ('user', 'assistant') %}" + TURN + "{% endif %}"),
    ],
)
def test_a_reward_model_reads_system_text_as_the_language_model_does(template: str) -> None:
    expected = "[user] Be kind.\n\nHi;[assistant] "
    assert PromptFormat(tokenizer(template)).text(SYSTEM) == expected
    model = of_reward(template)
    assert model.text(SYSTEM, "Hey") == f"{expected}Hey;"
    model.check_prompts([SYSTEM, TALK])


@pytest.mark.parametrize("template", ["Hello.", "{% for m in messages %}{{ m['text'] }}{% endfor %}"])
def test_a_template_without_the_words_is_refused_at_load(template: str) -> None:
    with pytest.raises(SteerbenchError, match="the model's chat template drops the text of turn 1, user"):
        PromptFormat(tokenizer(template))
    with pytest.raises(SteerbenchError, match="of reward model 'reader' drops the text of turn 1, user"):
        of_reward(template)


def test_a_reward_template_without_the_reply_is_refused_at_load() -> None:
    dropped = EACH.replace(TURN, "{% if m['role'] == 'user' %}" + TURN + "{% endif %}")
    with pytest.raises(SteerbenchError, match="drops the text of turn 2, assistant, of a dialogue of user, assistant;"):
        of_reward(dropped)


def test_dialogues_that_would_lose_words_are_refused_one_by_one() -> None:
    """Each shape of dialogue is tried: this template takes one question and its answer."""
    first = "{{ messages[0]['content'] }};{% if messages | length > 1 %}{{ messages[1]['content'] }};{% endif %}"
    model = of_reward(first)
    model.check_prompts([user("Hi")])
    with pytest.raises(SteerbenchError, match="turn 3, user, of a dialogue of user, assistant, user, assistant"):
        model.check_prompts([user("Hi"), TALK])


def test_a_template_for_rewards_alone_need_take_no_prompt() -> None:
    strict = "{% if messages[-1]['role'] != 'assistant' %}{{ raise_exception('no reply') }}{% endif %}" + EACH
    words = (*user("Hi"), Turn("assistant", "Hey"))
    assert ChatTemplate(tokenizer(strict), "it", reply_follows=False).text(words, reply_follows=False)
    with pytest.raises(SteerbenchError, match="it refuses the dialogue: no reply"):
        ChatTemplate(tokenizer(strict), "it", reply_follows=True)


def changing(how: str) -> str:
    return EACH.replace("m['content']", f"m['content']{how}")


@pytest.mark.parametrize("how", ["[:200]", ".split('://')[0]", " | escape", " | tojson", " | replace('\"', '')"])
def test_a_template_that_cuts_or_changes_texts_is_refused_at_load(how: str) -> None:
    with pytest.raises(SteerbenchError, match="cuts or changes the text of a turn, user, that begins with 'Is 3"):
        PromptFormat(tokenizer(changing(how)))
    with pytest.raises(SteerbenchError, match="of reward model 'reader' cuts or changes"):
        of_reward(changing(how))


def test_a_template_may_strip_texts_and_join_their_lines() -> None:
    form = PromptFormat(tokenizer(changing(".replace('\\n\\n', '\\n') | trim")))
    assert form.text(user(" Hi\n\nthere ")) == "[user] Hi\nthere;[assistant] "


def test_a_question_that_would_lose_words_is_refused() -> None:
    form = PromptFormat(tokenizer(changing(" | replace('/no_think', '')")))
    assert form.text(TALK)
    with pytest.raises(SteerbenchError, match="cuts or changes the text of a turn, user, that begins with 'Say /no_"):
        form.text(user("Say /no_think."))


def test_a_template_that_turns_the_order_is_refused() -> None:
    form = PromptFormat(tokenizer(EACH.replace("messages", "messages[::-1]")))
    with pytest.raises(SteerbenchError, match="writes the turns in another order than they have; use another model"):
        form.text(TALK)


def test_a_template_without_end_is_refused() -> None:
    with pytest.raises(SteerbenchError, match="refuses the dialogue: maximum recursion depth"):
        PromptFormat(tokenizer("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}" + EACH))


def test_a_reward_model_tells_what_its_template_leaves_out_of_replies() -> None:
    model = of_reward(changing(".split('</think>')[-1]"))
    with pytest.warns(UserWarning, match="'reader' leaves out a part of 1 of 2 responses, such as their thoughts"):
        model.score([user("Hi")] * 2, ["<think>A greeting.</think>Hey", "Hey"])
