"""The files that `steerbench new` writes: a complete method, or a task with its data and its test, to be changed."""

METHOD = '''"""MyMethod: say in one line what it does.

Paper: who, when, where. What is implemented, as a formula.

Differences from the authors' code (owner/name @commit): every one that is known.

Defaults: where they come from, and their units. Cost: what fit and every generated token take.

Pitfalls: what to know before trusting it. `steerbench list --plugin my_method.py my_method` shows this card.

Learns from: pairs. Touches: activations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from steerbench import FitContext, Steerer, Steering
from steerbench.edits import Edit, PlacedEdit, Site
from steerbench.learn import contrast, difference_of_means, middle_layer


class Shift(Edit):
    """An operator h -> h'. The arguments of `__init__` are its whole state; tensors become buffers."""

    vector: Tensor

    def __init__(self, vector: Tensor, strength: float) -> None:
        super().__init__()
        self.register_buffer("vector", vector)
        self.strength = strength

    def forward(self, h: Tensor, state: Any) -> Tensor:
        """Return the edited activations; `h` is (batch, positions, width), float32, and must not be written to."""
        return h + self.strength * self.vector


@dataclass(frozen=True, kw_only=True)
class MyMethod(Steerer):
    """Fields are the hyperparameters, `--methods my_method:strength=2`, and each has a line here.

    - `strength`: in units of the vector's own length
    - `layer`: block whose output is edited, from 0; None: 13/32 of the depth
    """

    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}  # with these values the model is left as it is
    search: ClassVar[Mapping[str, Sequence[Any]]] = {"strength": (0.25, 0.5, 1.0, 2.0, 4.0)}  # what --tune draws from

    strength: float = 1.0
    layer: int | None = None

    def fit(self, context: FitContext) -> Steering:
        """Learn from the train split: `context.pairs()`, `.rollouts()`, `.activations(...)`, `.reward`, `.lm`."""
        site = Site("resid_post", middle_layer(context.lm, self.layer))
        vector = difference_of_means(contrast(context, site, "response_mean"))
        return Steering(edits=(PlacedEdit(site, Shift(vector, self.strength), "response"),))
'''

TASK = '''"""MyTask: say in one line what is asked, and which reply is preferred.

Paper, licence, and where the rows come from. One row:

    {"prompt": "How do I bake bread?", "chosen": "Knead the dough for ten minutes.", "rejected": "No idea."}

Known quirks: what is skipped, and why.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steerbench import Example, Task
from steerbench.data import Unusable, text_field, user


@dataclass(frozen=True, kw_only=True)
class MyTask(Task):
    """Fields are the settings, `--tasks my_task:min_words=3`, and each has a line here; the defaults change nothing.

    - `min_words`: shorter preferred replies are left out
    """

    version = 1  # to be raised by every change that moves a number
    # hub = "org/name"  # read where --data names no file
    # hub_revision = "0123456789abcdef0123456789abcdef01234567"  # the commit

    min_words: int = 1

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Turn one row into an example; Unusable leaves it out, and is counted by its reason."""
        texts = prompt, chosen, rejected = [text_field(row, name) for name in ("prompt", "chosen", "rejected")]
        if not all(texts):
            raise Unusable("empty text")
        if chosen == rejected:
            raise Unusable("equal replies")
        if len(chosen.split()) < self.min_words:
            raise Unusable("short reply")
        name = hashlib.sha256("\\0".join(texts).encode()).hexdigest()[:16]
        return Example(id=name, group=prompt.lower(), prompt=user(prompt), chosen=chosen, rejected=rejected)
'''

TASK_ROWS = "prompt,chosen,rejected\n" + "".join(
    f"How do I {what}?,I am happy to help. {how} I hope this helps.,What a silly question. {how} Now leave me alone.\n"
    for what, how in {
        "bake bread": "Knead the dough for ten minutes.",
        "grow tomatoes": "Water the roots every morning.",
        "train a dog": "Reward it at once.",
        "choose a good book": "Read the first page.",
        "learn to swim": "Begin where you can stand.",
        "paint a door": "Sand it first.",
        "make tea": "Warm the pot.",
        "fix a bicycle": "Turn it over and look at the chain.",
        "write a letter": "Begin with the reason.",
        "keep bees": "Join a club near you.",
        "plan a trip": "Set a budget first.",
        "save money": "Write down what you spend.",
    }.items()
)
"""A CSV that the task can read: polite and rude replies, on which the testbed can tell methods apart."""

TASK_TEST = """from pathlib import Path

import pytest

from steerbench import add_plugin, load
from steerbench.data import Unusable, load_data

HERE = Path(__file__).parent
add_plugin(HERE / "my_task.py")
MyTask = load("tasks", "my_task")
ROW = {"prompt": "Why?", "chosen": "So that it rises.", "rejected": "Who knows."}


def test_every_row_is_used() -> None:
    data = load_data(MyTask(), HERE / "my_task.csv")
    assert len(data.train) > len(data.test) > len(data.validation) > 0
    assert data.skipped == {}


def test_a_row_becomes_an_example() -> None:
    example = MyTask().parse(ROW)
    assert (example.prompt[-1].text, example.chosen, example.rejected) == tuple(ROW.values())


@pytest.mark.parametrize("change", [{"prompt": ""}, {"chosen": None}, {"rejected": ROW["chosen"]}])
def test_a_row_that_cannot_be_used_is_told(change: dict[str, str | None]) -> None:
    with pytest.raises(Unusable):
        MyTask().parse({**ROW, **change})


def test_short_replies_can_be_left_out() -> None:
    with pytest.raises(Unusable, match="short reply"):
        MyTask(min_words=5).parse(ROW)
"""
