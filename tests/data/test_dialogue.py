import pytest

from steerbench.data.dialogue import Turn, merge, parse_hh, plain_text, user


def test_user_is_one_turn() -> None:
    assert user("hi") == (Turn("user", "hi"),)


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("\n\nHuman: a\n\nAssistant: b", [("user", "a"), ("assistant", "b")]),
        ("Human: a\n\nAssistant: b", [("user", "a"), ("assistant", "b")]),
        ("\n\n\nHuman:a \n\n\n\nAssistant:\nb\n", [("user", "a"), ("assistant", "b")]),
        ("\n\nHuman: a\n\nb\n\nAssistant: c\nd", [("user", "a\n\nb"), ("assistant", "c\nd")]),
        ("\n\nHuman: a\n\nAssistant:", [("user", "a"), ("assistant", "")]),
        ("\n\nHuman:\n\nAssistant: b", [("user", ""), ("assistant", "b")]),
        ("\n\nHuman: ", [("user", "")]),
        ("\n\nHuman: a\n\nAssistant: b\n\nAssistant: c", [("user", "a"), ("assistant", "b"), ("assistant", "c")]),
        ("\n\nHuman: a Human: b\nAssistant: c", [("user", "a Human: b\nAssistant: c")]),
        ("\n\nHuman: a\n\nHumane: b\n\n human: c", [("user", "a\n\nHumane: b\n\n human: c")]),
        ("\r\n\r\nHuman: a\r\nb\r\n\r\nAssistant: c\r\n", [("user", "a\r\nb"), ("assistant", "c")]),
    ],
)
def test_parse_hh_turns(text: str, turns: list[tuple[str, str]]) -> None:
    assert [tuple(turn) for turn in parse_hh(text)] == turns


def test_a_marker_after_an_empty_line_always_begins_a_turn() -> None:
    """The format has no escape: a quoted marker cannot be told from a turn."""
    assert [turn.role for turn in parse_hh("\n\nHuman: it said\n\nAssistant: a\n\nHuman: b")][1:] == [
        "assistant",
        "user",
    ]


@pytest.mark.parametrize("text", ["", " \n", "a", "\n\nAssistant: a", "a\n\nHuman: b", "\nHuman: a", "Human a"])
def test_parse_hh_wants_a_human_turn_first(text: str) -> None:
    with pytest.raises(ValueError, match="human turn"):
        parse_hh(text)


def test_merge_joins_neighbours_of_one_role() -> None:
    dialogue = (Turn("user", "a"), Turn("assistant", "b"), Turn("assistant", "c"), Turn("user", "d"))
    assert merge(dialogue) == (Turn("user", "a"), Turn("assistant", "b\n\nc"), Turn("user", "d"))


def test_merge_leaves_alternating_turns_alone() -> None:
    dialogue = (Turn("system", "s"), Turn("user", "a"), Turn("assistant", "a"), Turn("user", "a"))
    assert merge(dialogue) == dialogue
    assert merge(()) == ()


def test_plain_text() -> None:
    dialogue = (Turn("system", "s"), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"))
    assert plain_text(dialogue) == "s\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    assert plain_text(dialogue[1:2], "d") == "Human: a\n\nAssistant: d"
    assert plain_text(dialogue[1:2], "") == "Human: a\n\nAssistant: "


def test_plain_text_is_the_format_that_parse_hh_reads() -> None:
    dialogue = (Turn("user", "a\n\nb"), Turn("assistant", "c"), Turn("user", "d"))
    assert parse_hh(plain_text(dialogue, "e")) == (*dialogue, Turn("assistant", "e"))
