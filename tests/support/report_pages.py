"""Records for a report, and what a browser would make of its page."""

import json
from collections.abc import Sequence
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from steerbench import Record, Store
from steerbench.report import write_report

N = 8
HOSTILE = "</script><img src=x onerror=alert(1)>&amp;\u202egnp.exe\u2028`${x}`'\""


def make(
    method: str = "caa",
    seed: int = 0,
    lift: float = 1.0,
    texts: Sequence[str] | None = None,
    hyperparameters: dict[str, Any] | None = None,
    tuning: dict[str, Any] | None = None,
    **protocol: Any,
) -> Record:
    """Return a record of eight prompts, whose rewards are `lift` above those of the unsteered model, more or less."""
    lift = 0.0 if method == "unsteered" else lift
    noise = np.random.default_rng(sum(map(ord, method)) + seed).normal(0, 0.1, N) * (method != "unsteered")
    examples = pd.DataFrame(
        {
            "id": [f"p{i}" for i in range(N)],
            "group": [f"g{i}" for i in range(N)],
            "prompt": [f"Question {i}?" for i in range(N)],
            "response": list(texts or [f"{method} says {i}" for i in range(N)]),
            "reward": np.arange(N) / 4 + lift + noise,
            "held_out_reward": np.arange(N) / 4 + lift / 2 + noise,
            "gold": np.arange(N) / 4 - lift + noise,
            "diversity": 0.9 - lift / 10 + noise / 100,
            "tokens": 21,
        }
    )
    means = {name: float(examples[name].mean()) for name in ("reward", "held_out_reward", "gold", "diversity")}
    task = protocol.get("task", "testbed-shp")
    drawn = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    key = {"task": task, "n_examples": N, "model": "sha256:a", "seeds": [0], **drawn, **protocol}
    values = hyperparameters if hyperparameters is not None else {"strength": lift}
    return Record(
        method=method,
        parts=[{"name": method.split(":", maxsplit=1)[0], "hyperparameters": values, "source": "s"}],
        protocol=key,
        seed=seed,
        steerbench="0.1.0",
        labels={"task": task, "model": "m", "reward_model": "r", "held_out_reward": "h", "encoder": "e"},
        metrics={**means, "win_rate": min(1.0, 0.5 + lift / 4), "length": 20.0, "kl": lift**2 / 10},
        latency={"decode_ratio": 1.0 + lift / 10},
        counts={"empty reply": 1},
        truncated=0,
        environment={"device": "cpu", "threads": 1},
        seconds={"fit": 1.0},
        steering="d",
        created="2026-01-02T03:04:05+00:00",
        tuning=tuning or {},
        report={"seeded": False},
        examples=examples,
    )


def some() -> list[Record]:
    """Return the records of four methods, two of which cannot be told apart."""
    twins = [make(f"caa:layer={i}", lift=0.5, hyperparameters={"layer": i}) for i in (1, 2)]
    twins[1].examples["reward"] = twins[0].examples["reward"]
    twins[1].metrics["reward"] = twins[0].metrics["reward"]
    return [make("unsteered"), make("iti", lift=1.5), *twins]


def write(records: Sequence[Record], folder: Path) -> Path:
    for record in records:
        Store(folder).write(record)
    return folder


def html(records: Sequence[Record], tmp_path: Path, n_examples: int = 64) -> str:
    write_report([write(records, tmp_path / "runs")], tmp_path / "report.html", n_examples)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


@cache
def usual() -> str:
    """Return the page of `some()`."""
    with TemporaryDirectory() as folder:
        return html(some(), Path(folder))


class Page(HTMLParser):
    """What a browser would make of a page: tags with attributes, texts, scripts, cells of the rankings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self.rankings: list[list[list[tuple[str, str]]]] = []
        self._script: dict[str, str | None] | None = None
        self._table = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self._script = found if tag == "script" else self._script
        if tag == "table":
            self._table = found.get("class") == "ranking"
            self.rankings += [[]] * self._table
        if self._table and tag == "tr":
            self.rankings[-1] = [*self.rankings[-1], []]
        if self._table and tag in ("td", "th"):
            self.rankings[-1][-1].append((found.get("data-sort") or "", ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None
        if tag == "table":
            self._table = False

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts.append((self._script, data))
            return
        self.text += data
        if self._table and self.rankings[-1] and self.rankings[-1][-1]:
            sort, text = self.rankings[-1][-1][-1]
            self.rankings[-1][-1][-1] = (sort, f"{text} {data.strip()}".strip())

    @property
    def data(self) -> Any:
        (found,) = [text for attrs, text in self.scripts if attrs.get("type") == "application/json"]
        return json.loads(found)
