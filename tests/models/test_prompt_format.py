"""Prompts under chat templates as they are found in the wild, and without one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

from steerbench import Decoding, LanguageModel, SteerbenchError, generate
from steerbench.contract import tiny
from steerbench.data import Dialogue, Turn, user
from steerbench.models.prompt_format import PromptFormat

PLAIN = None
TALK = (  # drops a system turn without a word
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'User: ' + m['content'] + '\nBot:' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token + '\n' }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT = (  # refuses a system turn and roles that do not alternate, as Gemma's does
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<t>' + ('user' if m['role'] == 'user' else 'model') + '\n' + m['content'] | trim + '</t>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<t>model\n' }}{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + ' ' }}{% elif m['role'] == 'user' %}"
    "{{ 'USER: ' + m['content'] + ' ' }}{% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
LONG: Dialogue = (*user("Hi"), Turn("assistant", "Hey"), *user("Why?"))
SYSTEM: Dialogue = (Turn("system", "Be kind."), *LONG)


def tokenizer(template: str | None, *special: str) -> Any:
    made = tiny.tokenizer()
    made.add_tokens([AddedToken(token, special=True) for token in special])
    made.chat_template = template
    return made


def chatml() -> Any:
    return tokenizer(CHATML, "<|im_start|>", "<|im_end|>")


def model(made: Any) -> LanguageModel:
    lm = tiny.language_model()
    lm.model.resize_token_embeddings(len(made))
    return LanguageModel(lm.model, made)


def test_plain() -> None:
    form = PromptFormat(tokenizer(PLAIN))
    assert form.name == "plain-v1"
    assert form.text(SYSTEM) == "Be kind.\n\nHuman: Hi\n\nAssistant: Hey\n\nHuman: Why?\n\nAssistant:"
    assert (form.reply_prefix, form.after_reply) == (" ", "\n\nHuman: ")
    assert form.turn_markers == ("Human:", "Assistant:")
    assert form.end_of_turn_ids == []


def test_a_template_with_a_system_turn() -> None:
    form = PromptFormat(chatml())
    assert form.text(SYSTEM) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHey<|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (form.reply_prefix, form.after_reply) == ("", "<|im_end|>\n<|im_start|>user\n")
    assert form.turn_markers == ()


@pytest.mark.parametrize("template", [TALK, STRICT])
def test_system_text_is_never_lost(template: str) -> None:
    form = PromptFormat(tokenizer(template))
    text = form.text(SYSTEM)
    assert text == form.text((*user("Be kind.\n\nHi"), *LONG[1:]))
    assert text.count("Be kind.") == 1


def test_text_templates_show_their_turn_marker() -> None:
    talk, vicuna = PromptFormat(tokenizer(TALK)), PromptFormat(tokenizer(VICUNA))
    assert (talk.reply_prefix, talk.after_reply, talk.turn_markers) == (" ", "<eos>\nUser: ", ("User:",))
    assert (vicuna.reply_prefix, vicuna.after_reply, vicuna.turn_markers) == (" ", "<eos>USER: ", ("USER:",))
    assert vicuna.text(SYSTEM).startswith("Be kind. USER: Hi ASSISTANT: Hey<eos>")
    assert PromptFormat(tokenizer(STRICT)).turn_markers == ()


def test_a_refused_dialogue_is_a_users_mistake() -> None:
    with pytest.raises(SteerbenchError, match="chat template refuses the dialogue: roles must alternate"):
        PromptFormat(tokenizer(STRICT)).text((*user("a"), *user("b")))


@pytest.mark.parametrize(
    "template", ["{{ messages[0]['role'].nope() }}", "{% if %}", "{{ 1 + 'a' }}", "{{ raise_exception('x') }}"]
)
def test_a_broken_template_is_a_users_mistake(template: str) -> None:
    with pytest.raises(SteerbenchError, match="chat template refuses"):
        PromptFormat(tokenizer(template)).text(user("Hi"))


def test_a_template_without_markers_still_works() -> None:
    """It shows the last turn alone: good for single questions, and refused where turns before it would be lost."""
    form = PromptFormat(tokenizer("{{ messages[-1]['content'] }}"))
    assert form.text((Turn("system", "Be kind."), *user("Why?"))) == "Be kind.\n\nWhy?"
    assert (form.reply_prefix, form.after_reply, form.turn_markers, form.end_of_turn_ids) == ("", "", (), [])
    with pytest.raises(SteerbenchError, match="drops the text of turn 1, user, of a dialogue of user, assistant, user"):
        form.text(SYSTEM)


def test_the_name_is_that_of_the_template() -> None:
    names = [PromptFormat(tokenizer(t)).name for t in (PLAIN, TALK, CHATML, CHATML + " ")]
    assert len(set(names)) == 4
    assert names[1] == PromptFormat(tokenizer(TALK)).name


def test_the_templates_end_of_turn_ends_a_response() -> None:
    """The checkpoint declares another EOS, as base models fine-tuned on ChatML often do."""
    made = chatml()
    lm = model(made)
    end = made.convert_tokens_to_ids("<|im_end|>")
    assert lm.format.end_of_turn_ids == [end]
    assert lm.end_ids == sorted([made.eos_token_id, end])
    assert lm.cut([*made("Yes.")["input_ids"], end, 5]).finish == "end"
    wanted = torch.tensor([end])
    lm.anatomy.head.register_forward_hook(lambda m, a, o: o.index_fill(-1, wanted, 100.0))
    (response,) = generate(lm, [user("Hi")], decoding=Decoding(max_new_tokens=5))
    assert (response.text, response.ids, response.finish) == ("", (end,), "end")


def test_special_tokens_are_written_once() -> None:
    """A template writes its own BOS; a plain prompt gets that of the tokenizer."""
    lm = model(tokenizer(STRICT))
    assert lm.tokens(user("Hi")).prompt.count(lm.tokenizer.bos_token_id) == 1
    lm = model(chatml())
    ids = lm.tokens(LONG).prompt
    assert lm.tokenizer.decode(list(ids)) == lm.format.text(LONG)


@pytest.mark.parametrize("made", [tokenizer(PLAIN), tokenizer(TALK), chatml(), tokenizer(STRICT), tokenizer(VICUNA)])
@pytest.mark.parametrize("reply", ["Sure 🎂", "", " two  blanks ", "a\nUser: b"])
def test_prompt_and_reply_together_are_what_the_template_writes(made: Any, reply: str) -> None:
    """Fit reads replies where generation would have put them."""
    lm = model(made)
    tokens = lm.tokens(LONG, reply)
    assert tokens.prompt == lm.tokens(LONG).prompt
    written = lm.format.text(LONG) + lm.format.reply_prefix + reply
    assert lm.tokenizer.decode(list(tokens.prompt + tokens.response)) == written
    if made.chat_template and reply == reply.strip():
        messages = [{"role": t.role, "content": t.text} for t in (*LONG, Turn("assistant", reply))]
        assert made.apply_chat_template(messages, tokenize=False).startswith(written)


def test_the_real_chat_template(assets: Path) -> None:
    lm = LanguageModel.load(str(assets / "models" / "tinytalk-3m-chat"))
    assert lm.format.text(SYSTEM) == "User: Be kind.\n\nHi\nBot: Hey<|endoftext|>\nUser: Why?\nBot:"
    assert lm.format.turn_markers == ("User:",)
    assert lm.format.reply_prefix == " "
    assert lm.tokenizer.decode(list(lm.tokens(LONG, "Well.").response)) == " Well."


def test_a_template_that_shows_the_date_gives_the_same_prompt_every_day() -> None:
    dated = (  # as Llama 3.1 and 3.2 do
        "{% if not date_string is defined %}{% if strftime_now is defined %}{% set date_string = strftime_now('%d') %}"
        "{% else %}{% set date_string = 'never' %}{% endif %}{% endif %}Today: {{ date_string }}\n" + CHATML
    )
    form = PromptFormat(tokenizer(dated, "<|im_start|>", "<|im_end|>"))
    assert form.text(user("Hi")) == "Today: 26 Jul 2024\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
