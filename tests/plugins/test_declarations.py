"""What `list` says of a method without importing it is what the imported class says, and what a fit does."""

import dataclasses
from dataclasses import field
from pathlib import Path

import pytest
import torch
from runnable import runnable

from steerbench import FitContext, LanguageModel, Reward, SteerbenchError, Steering, generate, load
from steerbench.contract import tiny
from steerbench.data import Dialogue
from steerbench.decoding import Decoding
from steerbench.learn import Pair, Rollout
from steerbench.learn.fitting import steerers_of
from steerbench.plugins import registry
from steerbench.plugins.declarations import declared
from steerbench.plugins.docstrings import head
from steerbench.plugins.plugin import KINDS
from steerbench.plugins.registry import BUILT_IN, PLUGINS, Source
from steerbench.plugins.settings import option_text

SOURCES = {f"{s.kind}/{s.name}": s for kind in KINDS for s in registry.sources(kind) if s.origin == BUILT_IN}
METHODS = [name.partition("/")[2] for name in SOURCES if name.startswith("methods/")]
PARTS = {"prompt": "prompt", "edits": "activations", "logits": "logits", "decode": "choice of responses"}


@dataclasses.dataclass(kw_only=True)
class Noting(FitContext):
    """Notes what a method learns from."""

    asked: set[str] = field(default_factory=set)

    @property
    def queries(self) -> list[Dialogue]:
        self.asked.add("prompts")
        return list(super().queries)

    def pairs(self) -> list[Pair]:
        self.asked.add("pairs")
        return super().pairs()

    def rollouts(self) -> list[Rollout]:
        self.asked.add("rollouts with rewards")
        return super().rollouts()


class NotingReward(tiny.VowelReward):
    """Notes that it is asked."""

    def __init__(self) -> None:
        self.asked = False

    def score(self, *args: object, **kwargs: object) -> torch.Tensor:
        self.asked = True
        return super().score(*args, **kwargs)  # type: ignore[arg-type]


def chosen_by(steering: Steering, lm: LanguageModel) -> set[str]:
    """Return what a steering learns at test time."""
    reward: Reward = NotingReward()
    decoding = Decoding(max_new_tokens=2, temperature=1.0)
    generate(lm, "Why?", steering, decoding, reward=reward)
    return {"reward at test time"} if vars(reward)["asked"] else set()


@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_from_what_its_card_says_and_touches_that(name: str, llama: LanguageModel) -> None:
    said = head(SOURCES[f"methods/{name}"])
    decoding, reward = Decoding(max_new_tokens=4), tiny.VowelReward()
    context = Noting(lm=llama, examples=tiny.examples()[:8], reward=reward, decoding=decoding)
    (method,) = steerers_of(runnable(name))
    steering = method.fit(context)
    learned = context.asked | chosen_by(steering, llama)
    assert (learned or {"nothing"}) == set(said.learns_from.split(" and "))
    touched = [words for part, words in PARTS.items() if getattr(steering, part)]
    assert (" and ".join(touched) or "nothing") == said.touches


def default_text(value: object) -> str:
    return "" if value is dataclasses.MISSING else option_text(value)


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_read_from_a_file_is_what_its_class_says(name: str) -> None:
    cls = load(SOURCES[name].kind, SOURCES[name].name)
    found = declared(SOURCES[name])
    assert [(s.name, s.default) for s in found] == [(f.name, default_text(f.default)) for f in dataclasses.fields(cls)]
    assert [s.name for s in found if not s.meaning] == []
    assert {s.name: s.off for s in found if s.off is not None} == {
        k: option_text(v) for k, v in getattr(cls, "off", {}).items()
    }
    search = {k: list(map(option_text, values)) for k, values in getattr(cls, "search", {}).items()}
    assert {s.name: s.searched for s in found if s.searched} == search


def plugin(folder: Path, text: str) -> Source:
    file = folder / "mine.py"
    file.write_text(text)
    return Source("methods", "mine", str(file), f"{PLUGINS}.mine")


def test_what_cannot_be_read_is_shown_as_it_is_written(tmp_path: Path) -> None:
    source = plugin(
        tmp_path,
        "import steerbench, typing\nHALF = 0.5\nSPACE = {'a': (HALF, 1 + 1)}\n"
        "class Base(steerbench.Steerer): ...\n"
        "class Mine(Base):\n"
        "    '''Mine.\n\n    - `a`, `c`: first\n      and more\n    '''\n"
        "    off: typing.ClassVar = {'a': None}\n    search = SPACE\n"
        "    a: float | None = HALF\n    b: list[int] = make()\n    c: str\n",
    )
    a, b, c = declared(source)
    assert a == ("a", "float | none", "0.5", "first and more", "none", ["0.5", "1 + 1"])
    assert b == ("b", "list[int]", "make()", "", None, [])
    assert c == ("c", "str", "", "first and more", None, [])


def test_a_file_without_a_method_is_told(tmp_path: Path) -> None:
    with pytest.raises(SteerbenchError, match=r"mine\.py defines no class that subclasses Steerer; define it there\."):
        declared(plugin(tmp_path, "class Mine: ..."))
