"""Dialogues of a given number of tokens: so that every row of a timed batch is equally long, and none is padded."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice

import torch

from steerbench.data.dialogue import Dialogue, user
from steerbench.errors import SteerbenchError
from steerbench.models.language_model import LanguageModel
from steerbench.seeds import generator_for

_TRIES = 20
"""Texts that are begun before a length is given up."""
_ENDS = 60
"""Words that are tried as the last one of a text."""


def fixed_prompts(lm: LanguageModel, n_tokens: int, rows: int, seed: int = 0) -> list[Dialogue]:
    """Return dialogues of one user turn of random words, whose prompt has exactly `n_tokens` tokens, template included.

    The words are tokens of the model's vocabulary, drawn with a seed; the rows differ, and are the same for any number
    of rows. Raises SteerbenchError if the format alone is longer, or no text of that length is found.
    """
    words = _words(lm)
    generators = [generator_for(seed, "prompt", n_tokens, row) for row in range(rows)]
    return [_fixed(lm, n_tokens, _drawn(words, generator)) for generator in generators]


def _fixed(lm: LanguageModel, n_tokens: int, words: Iterator[str]) -> Dialogue:
    for _ in range(_TRIES):
        texts = list(islice(words, n_tokens))  # each has a token at least
        count = bisect_right(range(n_tokens), n_tokens, key=lambda k: _size(lm, " ".join(texts[: k + 1])))
        if count == 0:
            raise SteerbenchError(
                f"a prompt of {lm.name} has {_size(lm, texts[0])} tokens with a single word in it; "
                f"raise --prompt-tokens from {n_tokens}."
            )
        for end in _ends(words):
            text = " ".join(texts[:count]) + end
            if _size(lm, text) == n_tokens:
                return user(text)
    raise SteerbenchError(
        f"no prompt of exactly {n_tokens} tokens could be written with the tokenizer of {lm.name}; "
        f"give other --prompt-tokens."
    )


def _ends(words: Iterator[str]) -> Iterator[str]:
    """Yield what may fill up a text: nothing, or a word, apart from the last one or grown onto it."""
    yield ""
    for word in islice(words, _ENDS):
        yield f" {word}"
        yield word


def _words(lm: LanguageModel) -> list[str]:
    """Return the tokens of the vocabulary that consist of letters, without their blanks."""
    texts = [text.strip() for text in lm.tokenizer.batch_decode([[i] for i in range(len(lm.tokenizer))])]
    words = [text for text in texts if text.isalpha()]
    if not words:
        raise SteerbenchError(f"the tokenizer of {lm.name} has no token of letters to write prompts with.")
    return words


def _drawn(words: Sequence[str], generator: torch.Generator) -> Iterator[str]:
    """Yield words at random, without end."""
    while True:
        yield words[int(torch.randint(len(words), (1,), generator=generator))]


def _size(lm: LanguageModel, text: str) -> int:
    return len(lm.tokens(user(text)).prompt)
