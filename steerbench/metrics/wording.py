r"""Words of a response, and how little it repeats itself.

`prod_{n=2..4} unique_n / (total_n + 1)` over word tokens, per response, then the mean, as in ARGS and RE-Control
(deeplearning-wisc/args:metrics.py). The + 1 keeps it below 1 and makes it depend on length: without any repetition 128
words give 0.977, 50 give 0.94, 20 give 0.85, 10 give 0.70, up to 3 give 0. Read it beside the response length.

The papers split words with NLTK's `word_tokenize`; `words` here is one regular expression. Measured against NLTK 3.10
with its sentence splitter on the 4,624 replies of HH-RLHF harmless-base/test: mean difference 0.0005 (of the means
0.00002), largest 0.40 on a reply of a few words, 0.20 among those of 20 words or more. NLTK without its sentence
splitter differs from itself ten times as much, 0.0054.
"""

import re

_WORD = re.compile(
    r"""
    \.{2,} | -- | `` | ''                                                           # ellipsis, dash, quotes
  | n't\b | '(?:s|m|d|ll|re|ve)\b                                                   # clitics: do n't, it 's
  | \b(?: can(?=not\b) | (?:gon|wan)(?=na\b) | got(?=ta\b) | (?:gim|lem)(?=me\b) )  # can not, gon na
  | \d+(?:[.,:]\d+)+                                                                # 10,000  2.5  3:15
  | (?:[^\W\d]\.){2,}                                                               # U.S.
  | \w+?(?=n't\b)                                                                   # the do of don't
  | \w+(?:(?!'(?:s|m|d|ll|re|ve)\b)[-/'.+=~]\w+)*                                   # words, self-made, and/or
  | [^\w\s]                                                                         # any other character
    """,
    re.VERBOSE | re.IGNORECASE,
)


def words(text: str) -> list[str]:
    """Split text into words and punctuation, nearly as NLTK's `word_tokenize`."""
    return _WORD.findall(text)


def length_in_words(text: str) -> int:
    """Return the number of whitespace-separated words."""
    return len(text.split())


def diversity_of(text: str) -> float:
    """Return the diversity of one response, from 0 to below 1; an empty one has 0."""
    tokens, product = words(text), 1.0
    for n in (2, 3, 4):
        ngrams = list(zip(*(tokens[i:] for i in range(n)), strict=False))
        product *= len(set(ngrams)) / (len(ngrams) + 1)
    return product
