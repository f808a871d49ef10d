"""Repeated n-grams: what a response that has broken down shows first."""


def repetition_of(text: str, n: int = 4) -> float:
    """Return the share of the n-grams of a text that it has had before: 1 - distinct / all, from 0 to below 1.

    This is rep-n of one sequence, seq-rep-n in Welleck et al., Neural Text Generation with Unlikelihood Training
    (arXiv:1908.04319), with words between blanks where the paper has the model's tokens: a text can then be scored
    without the model that wrote it. A text of fewer than n words repeats nothing and has 0.
    """
    words = text.split()
    ngrams = list(zip(*(words[i:] for i in range(n)), strict=False))
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
