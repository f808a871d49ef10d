"""SHP, the Stanford Human Preferences: pairs of comments on a Reddit post, the better one by its votes.

Paper: Ethayarajh, Choi and Swayamdipta 2022, "Understanding Dataset Difficulty with V-Usable Information",
https://arxiv.org/abs/2110.08420. Licence: no named one; the card asks to respect Reddit's terms of use.
Card: https://huggingface.co/datasets/stanfordnlp/SHP

One row (the words are invented, the shape is verbatim):

    {"post_id": "a1b2c3", "domain": "askbaking_test", "upvote_ratio": 0.98, "history": "Why does my rye bread crumble?",
     "c_root_id_A": "d4e5f6", "c_root_id_B": "g7h8i9", "created_at_utc_A": 1600000000, "created_at_utc_B": 1600003600,
     "score_A": 4, "score_B": 12, "human_ref_A": "Bad luck.", "human_ref_B": "Let it cool before you cut it.",
     "labels": 0, "seconds_difference": 3600.0, "score_ratio": 3.0}

Known quirks:

- `labels` is 1 if A is preferred, and follows from the scores; a row in which it does not is skipped.
- One post has many pairs: one pair of each post is kept.
- Many pairs are close: `min_ratio` keeps those whose preferred comment has at least so many times the votes of the
  other. The card calls a ratio such as 2 the stronger signal to learn from; 1, the default, keeps all.
- Posts are long: of 1,000 test posts half have more than 130 tokens (GPT-2's), 14 more than 1,024.
- Text keeps the mark-up of Reddit (`&gt;`, `&#x200B;`, links).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from steerbench.data.dialogue import user
from steerbench.data.task import Example, Task, Unusable, field_of, text_field
from steerbench.plugins.ranges import Range


@dataclass(frozen=True, kw_only=True)
class SHP(Task):
    """Posts as one user turn, with the comment that got more votes and the one that got fewer.

    - `min_ratio`: votes of the preferred comment over those of the other, at least
    """

    version = 1
    hub = "stanfordnlp/SHP"
    hub_revision = "e94b5f32602712d78ed494fe79105b1959396686"
    group_word = "post"
    one_per_group = True

    min_ratio: Annotated[float, Range(1)] = 1.0

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Take the two comments in the order of their preference."""
        ids = {name: text_field(row, name) for name in ("post_id", "c_root_id_A", "c_root_id_B")}
        post, a, b = (text_field(row, name) for name in ("history", "human_ref_A", "human_ref_B"))
        chosen, rejected = (a, b) if _prefers_a(row) else (b, a)
        if empty := [name for name, text in ids.items() if not text]:
            raise Unusable(f"missing field {empty[0]}")
        if not post:
            raise Unusable("empty post")
        if not a or not b:
            raise Unusable("empty reply")
        if a == b:
            raise Unusable("equal replies")
        lower, higher = sorted((_number(row, "score_A"), _number(row, "score_B")))
        if higher < self.min_ratio * lower:
            raise Unusable("score ratio too low")
        return Example("-".join(ids.values()), ids["post_id"], user(post), chosen, rejected)


def _prefers_a(row: Mapping[str, Any]) -> bool:
    label, a, b = (_number(row, name) for name in ("labels", "score_A", "score_B"))
    if label not in (0, 1):
        raise Unusable("label is neither 0 nor 1")
    if not (a > b if label else b > a):  # no number, NaN, is above none
        raise Unusable("label disagrees with scores")
    return label == 1


def _number(row: Mapping[str, Any], name: str) -> float:
    """Read a number that some copies of the data hold as text or as a truth value."""
    try:
        return float(field_of(row, name))
    except (TypeError, ValueError, OverflowError) as error:
        raise Unusable("wrong type") from error
