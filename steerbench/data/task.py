"""What a task is: a source of prompts and preference pairs. One file in `tasks/` is one task."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from steerbench.data.dialogue import Dialogue
from steerbench.plugins.plugin import Kind, Plugin


class Choices(NamedTuple):
    """Answers to the prompt of an example, whose likelihood is measured."""

    name: str
    """What the score is called, such as `mc1`."""
    texts: tuple[str, ...]
    """Each answer, as a reply would give it."""
    right: tuple[bool, ...]
    """Which of them are true, or match; at least one is and one is not."""
    prompt: Dialogue | None = None
    """What they answer, where that is another prompt than the example's, such as one with its answers in another order.
    Choices of one name in an example are averaged."""


@dataclass(frozen=True)
class Example:
    """A prompt with the preferred and the other reply of the data set."""

    id: str
    """Stable name of the record, equal in every run."""
    group: str
    """What must not be split: the post, or the opening of the dialogue. Splits are disjoint by it."""
    prompt: Dialogue
    """All that the model sees before it replies; `user(text)` makes one of a question."""
    chosen: str
    """The preferred reply."""
    rejected: str
    """The other reply."""
    choices: tuple[Choices, ...] = ()
    """What is scored by likelihood; empty where only what is generated counts."""


class Unusable(Exception):
    """A record that cannot be used; the message is the reason under which it is counted."""


@dataclass(frozen=True, kw_only=True)
class Task(Plugin):
    """A task: subclass it in a file named like the task, and say how one row becomes an example."""

    kind: ClassVar[Kind] = "tasks"
    """What it is in `steerbench list`."""
    version: ClassVar[int]
    """Raised whenever a change moves any number; part of the protocol."""
    hub: ClassVar[str] = ""
    """Data set on the Hub, `org/name`, which is read where `--data` names no file; empty: there is none."""
    hub_revision: ClassVar[str] = ""
    """The pinned commit of the data set, 40 hexadecimal digits."""
    hub_config: ClassVar[str] = ""
    """The configuration of the data set, where it has several."""
    needs_reward: ClassVar[bool] = True
    """Whether replies to it are told apart by a reward model alone. Not where given answers or words are scored."""
    group_word: ClassVar[str] = "group"
    """What `Example.group` stands for, in one word: it appears in reports of skipped records."""
    one_per_group: ClassVar[bool] = False
    """Keep one example of each group only, as for a post with many pairs of replies."""
    csv_columns: ClassVar[tuple[str, ...]] = ()
    """Names of the columns of a CSV whose first line is a row already; empty: the first line names them."""

    @abstractmethod
    def parse(self, row: Mapping[str, Any]) -> Example:
        """Turn one row in the original schema into an example. Raises `Unusable` with a short reason."""

    def reads(self, name: str) -> bool:
        """Tell whether a file is one of this task, by its path in the folder without an ending; by default all are."""
        return True

    def hub_folders(self) -> Sequence[str]:
        """Return the folders of the data set on the Hub that are read; by default none, which is all of it."""
        return ()

    def scored_half(self) -> int | None:
        """Return which half of the groups is scored, 0 or 1, the other one being learned from; None: no halves."""
        return None


@dataclass(frozen=True)
class TaskData:
    """The three splits of a task, disjoint by group, and what was left out."""

    train: tuple[Example, ...]
    """What methods learn from."""
    validation: tuple[Example, ...]
    """What tuning scores on."""
    test: tuple[Example, ...]
    """What the tables are of."""
    revision: str
    """`repository@commit` for the Hub, `sha256:...` of the files otherwise."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Reason -> number of records left out."""


def field_of(row: Mapping[str, Any], name: str) -> Any:
    """Return a field of a row. Raises `Unusable` if it is missing, null or NaN."""
    value = row.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):  # pandas writes NaN for null
        raise Unusable(f"missing field {name}")
    return value


def text_field(row: Mapping[str, Any], name: str) -> str:
    """Return the text of a field, stripped. Raises `Unusable` if it is missing or not text."""
    value = field_of(row, name)
    if not isinstance(value, str):
        raise Unusable("wrong type")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which no file and no tokenizer takes
        raise Unusable("broken text") from error
    return value.strip()
