"""Which prompts a reward was trained on, by hash: a study of those prompts would measure what it has memorised."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from steerbench.data.dialogue import merge, plain_text
from steerbench.data.task import Example
from steerbench.errors import SteerbenchError
from steerbench.files import read_object

FILE = "training_prompts.json"


class TrainedOn(NamedTuple):
    """Hashes of prompts, and of the groups that hold them: another dialogue with the same opening is known, too."""

    prompts: frozenset[str]
    groups: frozenset[str]

    def seen(self, examples: Iterable[Example]) -> list[Example]:
        """Return the examples whose prompt or group is among them."""
        return [e for e in examples if _prompt(e) in self.prompts or _hash(e.group) in self.groups]

    def write(self) -> str:
        """Return the text of the file."""
        return json.dumps({name: sorted(hashes) for name, hashes in self._asdict().items()}, indent=0) + "\n"


def trained_on(examples: Iterable[Example]) -> TrainedOn:
    """Return the hashes of the examples' prompts and groups."""
    examples = list(examples)
    return TrainedOn(frozenset(map(_prompt, examples)), frozenset(_hash(e.group) for e in examples))


def read_trained_on(folder: Path) -> TrainedOn | None:
    """Return what a reward's folder says of its prompts, None where it says nothing. Raises SteerbenchError."""
    path = folder / FILE
    if not path.is_file():
        return None
    said = read_object(path)
    try:
        return TrainedOn(*(frozenset(map(str, said[name])) for name in TrainedOn._fields))
    except (KeyError, TypeError) as error:
        raise SteerbenchError(f"{path} does not list prompts and groups; train or download the reward again.") from (
            error
        )


def _prompt(example: Example) -> str:
    return _hash(plain_text(merge(example.prompt)))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
