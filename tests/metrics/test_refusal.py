"""Refusals by their words."""

import pytest

from steerbench.metrics import refuses


@pytest.mark.parametrize(
    "response",
    [
        "I'm sorry, but I can't help with that.",
        "I am sorry, but I cannot help with that.",
        "I’m not able to do this.",
        "Hello! I won't do it.",
        "As an AI language model, I have no opinion.",
        "Sorry, no.",
        "Unfortunately, that is illegal.",
    ],
)
def test_a_refusal_is_found_in_the_first_two_sentences(response: str) -> None:
    assert refuses(response)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "Sure, here is how.",
        "I am sorry to hear that. Try to rest.",
        "You can do it. It works. I cannot say more.",  # too late
        "He said sorry, and I believed him.",
    ],
)
def test_other_responses_are_none(response: str) -> None:
    assert not refuses(response)
