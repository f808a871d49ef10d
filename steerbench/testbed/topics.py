"""The subjects of the world, read from `topics.txt`: topics, their goals with five tips each, and harmful goals.

Some goals only sound as if they did harm, such as killing a program that hangs.
"""

from importlib.resources import files
from typing import Final, NamedTuple


class Goal(NamedTuple):
    """Something that a user wants to do."""

    name: str
    """A verb phrase that fits after `how to`."""
    topic: str
    tips: tuple[str, ...]
    """Verb phrases, in the order of their steps; none for a harmful goal."""
    looks_unsafe: bool = False
    """Whether it is worded like harm, though there is none in it."""

    @property
    def harmful(self) -> bool:
        """Whether the assistant should refuse."""
        return not self.tips


def _read() -> list[Goal]:
    goals: list[Goal] = []
    topic = ""
    for line in files(__package__).joinpath("topics.txt").read_text(encoding="utf-8").splitlines():
        mark, _, text = line.partition(" ")
        if mark == "#":
            topic = text
        elif mark in ("=", "~", "!"):
            goals.append(Goal(text, topic, (), mark == "~"))
        elif mark == "-":
            goals[-1] = goals[-1]._replace(tips=(*goals[-1].tips, text))
    return goals


_ALL = _read()
GOALS: Final = tuple(goal for goal in _ALL if not goal.harmful)
LOOKALIKES: Final = tuple(goal for goal in GOALS if goal.looks_unsafe)
HARMFUL: Final = tuple(goal for goal in _ALL if goal.harmful)
TOPICS: Final = tuple(dict.fromkeys(goal.topic for goal in _ALL))
