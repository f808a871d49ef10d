"""Preference pairs that a model writes itself, from queries alone: step 1 of AlignEZ.

Paper: Adila et al., "Alignment, Simplified: Steering LLMs with Self-Generated Preferences", arXiv 2406.03642v2. The
model first says what a good and what a bad answer to a query should be like, then answers under each description.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from steerbench.data.dialogue import Dialogue, Turn
from steerbench.engine.generate import generate
from steerbench.errors import SteerbenchError
from steerbench.learn.context import FitContext, Pair, seed_of_draws
from steerbench.models.language_model import LanguageModel, Tokens
from steerbench.models.response import Response

DESCRIPTION_TOKENS = 50
"""Longest description of an answer, as in the authors' code."""
SHOWN = 10
"""Pairs that a record keeps."""


class Side(NamedTuple):
    """One side of the contrast: how the model is asked to be, in the words of the authors' code."""

    word: str
    persona: str
    asked: str
    """What follows the query to ask for a description."""

    def told(self, description: str) -> str:
        """Return what the model is told before it answers; without a description, to be as the word says."""
        return f"{self.persona} Your answer should {description.rstrip('.') or f'be {self.word}'}."


class Generated(NamedTuple):
    """A query with what the model wrote for it."""

    query: Dialogue
    descriptions: tuple[str, str]
    """Of a good and of a bad answer."""
    answers: tuple[Response, Response]
    pair: Pair
    """The answers after the plain query, without the personas, and without an end token."""

    def ended(self, lm: LanguageModel) -> Pair:
        """Return the pair with an end token behind both answers, where a model has read all of them."""
        if not lm.end_ids:
            raise SteerbenchError(f"{lm.name} has no end token to read answers at; leave end_token off.")
        end = (lm.end_ids[0],)
        return Pair(*(Tokens(t.prompt, t.response + end) for t in self.pair))


class SelfGenerated(NamedTuple):
    """The pairs that can be used, and why others cannot: reason -> number."""

    kept: list[Generated]
    dropped: dict[str, int]


def sides(good: str, bad: str) -> tuple[Side, Side]:
    """Return the two sides for a pair of words, such as `helpful` and `useless`."""
    positive, negative = f"You are a {good} assistant.", f"Pretend you are a {bad} assistant."
    return (
        Side(good, positive, f"{positive} Your answer to this query should:"),
        Side(bad, negative, f"{negative} Your response to this query should:"),
    )


def self_generated(
    context: FitContext, good: str = "helpful", bad: str = "useless", n_queries: int = 200
) -> SelfGenerated:
    """Return pairs for the first `n_queries` queries, written once per run and shared by all methods.

    The pairs begin with the plain query, so that what tells their sides apart is the answer. Dropped are queries that
    leave no room in the context, and pairs with an empty answer or two equal ones. The first pairs and the counts go
    into the report of the method. Raises SteerbenchError if no pair is left.
    """
    _check(n_queries)
    key = ("self-generated", good, bad, n_queries, seed_of_draws(context))
    found = context.once(key, lambda: _write(context, sides(good, bad), context.queries[:n_queries]))
    if not found.kept:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in found.dropped.items())
        raise SteerbenchError(
            f"the model wrote no pair of answers that could be used ({reasons}); use more training examples, "
            f"or other words than {good!r} and {bad!r}."
        )
    context.report["self_generated"] = {
        "words": [good, bad],
        "kept": len(found.kept),
        "dropped": found.dropped,
        "first": [_plain(pair) for pair in found.kept[:SHOWN]],
    }
    return found


def _check(n_queries: int) -> None:
    if n_queries < 1:
        raise SteerbenchError(f"n_queries={n_queries} leaves no prompt to write pairs for; give 1 or more.")


def personas(context: FitContext, good: str = "helpful", bad: str = "useless", n_queries: int = 200) -> list[Pair]:
    """Return the prompts of the first `n_queries` queries under both personas, without a reply."""
    _check(n_queries)
    positive, negative = sides(good, bad)
    room, lm = context.lm.context_length, context.lm
    told = [[lm.tokens(under(q, side.persona)) for side in (positive, negative)] for q in context.queries[:n_queries]]
    pairs = [Pair(*both) for both in told if max(len(t.prompt) for t in both) <= room]
    if not pairs:
        raise SteerbenchError("no training prompt leaves room for a persona in the context; use shorter ones.")
    return pairs


def under(query: Dialogue, text: str) -> Dialogue:
    """Put a text in front of a dialogue, as its system turn or at the end of the one it has."""
    if query[0].role != "system":
        return (Turn("system", text), *query)
    return (Turn("system", f"{query[0].text}\n\n{text}"), *query[1:])


def behind(query: Dialogue, text: str) -> Dialogue:
    """Put a text behind a dialogue, on a line of its own in its last turn."""
    last = query[-1]
    return (*query[:-1], last._replace(text=f"{last.text}\n{text}"))


def _write(context: FitContext, both: tuple[Side, Side], queries: Sequence[Dialogue]) -> SelfGenerated:
    """Ask for descriptions, then for answers. All lists keep the index of their query throughout."""
    dropped: Counter[str] = Counter()
    asked = [[behind(q, side.asked) for side in both] for q in queries]
    rows = _fitting(context.lm, asked, DESCRIPTION_TOKENS, dropped)
    descriptions = [_answers(context, [asked[i][side] for i in rows], DESCRIPTION_TOKENS) for side in (0, 1)]
    told = [
        [under(queries[i], side.told(d.text)) for side, d in zip(both, pair, strict=True)]
        for i, pair in zip(rows, zip(*descriptions, strict=True), strict=True)
    ]
    new = context.decoding.max_new_tokens
    fitting = _fitting(context.lm, told, new, dropped)
    answers = [_answers(context, [told[k][side] for k in fitting], new) for side in (0, 1)]
    generated = []
    for k, pair in zip(fitting, zip(*answers, strict=True), strict=True):
        query = queries[rows[k]]
        prompt = context.lm.tokens(query, "").prompt
        tokens = Pair(*(Tokens(prompt, answer.text_ids) for answer in pair))
        generated.append(Generated(query, (descriptions[0][k].text, descriptions[1][k].text), pair, tokens))
    kept = [g for g in generated if _usable(g, dropped)]
    return SelfGenerated(kept, dict(dropped))


def _fitting(lm: LanguageModel, dialogues: Sequence[Sequence[Dialogue]], new: int, dropped: Counter[str]) -> list[int]:
    """Return the indices of those whose dialogues all leave room for `new` tokens; count the others."""
    room = lm.context_length - new
    rows = [i for i, both in enumerate(dialogues) if max(len(lm.tokens(d).prompt) for d in both) <= room]
    dropped["no room in the context"] += len(dialogues) - len(rows)
    return rows


def _answers(context: FitContext, dialogues: Sequence[Dialogue], new: int) -> list[Response]:
    decoding = replace(context.decoding, max_new_tokens=new)
    size, progress = context.batch_size, context.progress
    return generate(
        context.lm,
        dialogues,
        decoding=decoding,
        seed=seed_of_draws(context),
        batch_size=size,
        engine=context.engine,
        progress=progress,
    )


def _usable(generated: Generated, dropped: Counter[str]) -> bool:
    good, bad = generated.answers
    reason = "empty answer" if not (good.text and bad.text) else "equal answers" if good.text == bad.text else None
    if reason:
        dropped[reason] += 1
    return reason is None


def _plain(generated: Generated) -> dict[str, str]:
    return {
        "query": generated.query[-1].text,
        "good_description": generated.descriptions[0],
        "bad_description": generated.descriptions[1],
        "good": generated.answers[0].text,
        "bad": generated.answers[1].text,
    }
