"""One function decides where a response ends, and text and ids are cut at the same place."""

import itertools
import random

import pytest

from steerbench import LanguageModel
from steerbench.contract import tiny
from steerbench.learn import Response
from steerbench.models.response import cut_response

TOKENIZER = tiny.tokenizer()
END = TOKENIZER.eos_token_id
MARKERS = ("Human:", "Assistant:")


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER(text)["input_ids"])


def cut(text: str, *more: int) -> Response:
    return cut_response(TOKENIZER, [*ids_of(text), *more], [END], MARKERS)


def decoded(response: Response) -> str:
    return str(TOKENIZER.decode(list(response.ids), skip_special_tokens=True))


def test_length() -> None:
    response = cut(" Hello there")
    assert response == Response("Hello there", tuple(ids_of(" Hello there")), "length")
    assert response.n_tokens == len(response.ids)


def test_end_token_is_kept_in_ids_and_not_in_text() -> None:
    response = cut(" Hello", END, *ids_of("never seen"), END)
    assert response == Response("Hello", (*ids_of(" Hello"), END), "end")
    assert response.n_tokens == len(ids_of(" Hello"))


def test_first_of_several_end_tokens() -> None:
    ids = [*ids_of("a"), 9, *ids_of("b"), 8]
    assert cut_response(TOKENIZER, ids, [8, 9], ()).ids == (*ids_of("a"), 9)


def test_empty_responses() -> None:
    assert cut("") == Response("", (), "length")
    assert cut("", END) == Response("", (END,), "end")
    assert cut("", END).n_tokens == 0
    assert cut(" \n ", END).text == ""
    assert cut("Human: hi") == Response("", (), "turn")
    assert cut("\n\nHuman: hi", END) == Response("", (), "turn")


def test_an_imagined_turn_is_cut() -> None:
    response = cut(" Sure.\n\nHuman: thanks\n\nAssistant: ok", END)
    assert (response.text, response.finish) == ("Sure.", "turn")
    assert decoded(response).strip() == "Sure."
    assert response.n_tokens == len(response.ids)


@pytest.mark.parametrize("text", ["a\nHuman: x", "a\n  Assistant: x", "a\n\n\tHuman: x", "a\r\nHuman: x"])
def test_markers_at_the_beginning_of_a_line(text: str) -> None:
    assert (cut(text).text, cut(text).finish) == ("a", "turn")


@pytest.mark.parametrize(
    "text", ["the Human: x", "a\nhuman: x", "a\nHUMAN: x", "a\nHuman x", "a\n- Human: x", "aHuman:"]
)
def test_prose_about_humans_stays_whole(text: str) -> None:
    assert (cut(text).text, cut(text).finish) == (text, "length")


def test_markers_are_text_and_not_patterns() -> None:
    assert cut_response(TOKENIZER, ids_of("a\nHumanX"), [END], ("Human.", "(")).finish == "length"
    assert cut_response(TOKENIZER, ids_of("a\n(b"), [END], ("Human.", "(")).text == "a"


def test_without_markers_nothing_is_cut() -> None:
    assert cut_response(TOKENIZER, ids_of("a\nHuman: x"), [END], ()).finish == "length"


def test_a_marker_behind_the_end_token_does_not_count() -> None:
    assert cut("a", END, *ids_of("\nHuman: x")).finish == "end"


@pytest.mark.parametrize("text", ["🎂", "né", "日本", "a🎂", "👩‍👩‍👧"])
def test_ids_hold_the_whole_of_the_last_character(text: str) -> None:
    response = cut(f"{text}\n\nHuman: x")
    assert response.text == text
    assert decoded(response).strip() == text


def test_ids_of_a_cut_response_end_with_its_text() -> None:
    """The state at the last response token belongs to the last word, not to the empty line behind it."""
    assert decoded(cut(" Sure. \n\n\nHuman: thanks")) == " Sure."


def test_ids_cover_the_text_and_little_more() -> None:
    """Property: the ids decode to something that begins with the text, and one token less would not."""
    rng = random.Random(0)
    pieces = ["a", " b", "é", "🎂", "\n", "\nHuman:", "\nHuman: x", "Assistant:", " ", "日", "\n\n"]
    texts = ["".join(rng.choices(pieces, k=rng.randint(0, 8))) for _ in range(300)]
    broken = [[*ids_of("ok🎂")[:-1], *ids_of("\nHuman: x")], [240, *ids_of("x\nHuman:")], [100, 101, 102]]
    finishes = set()
    for ids in itertools.chain(map(ids_of, texts), broken):
        response = cut_response(TOKENIZER, ids, [END], MARKERS)
        finishes.add(response.finish)
        assert tuple(ids[: len(response.ids)]) == response.ids
        assert decoded(response).strip().startswith(response.text)
        if response.finish == "turn" and response.text:
            shorter = TOKENIZER.decode(list(response.ids[:-1]), skip_special_tokens=True)
            assert not shorter.strip().startswith(response.text)
    assert finishes == {"turn", "length"}


def test_a_language_model_cuts_with_its_own_markers_and_end_ids(llama: LanguageModel) -> None:
    assert llama.cut([*ids_of(" Yes."), *ids_of("\n\nHuman:")]).text == "Yes."
    assert llama.cut([*ids_of(" Yes."), llama.end_ids[0]]).finish == "end"
