"""The data of the world, as files in the schemas of HH-RLHF and SHP: pairs of replies with noisy preferences."""

import gzip
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from steerbench.data.dialogue import Dialogue, plain_text
from steerbench.testbed.draw import Draw
from steerbench.testbed.gold import gold
from steerbench.testbed.world import Scene, World
from steerbench.testbed.wrecks import WRECKS

SIZES: Final = {"train": 2400, "validation": 400, "test": 800}
NOISE: Final = 0.7
"""Temperature of the judges: a gap of one in gold is seen the right way round by 81 % of them."""

Row = dict[str, Any]


class Pair(NamedTuple):
    """Two different replies to a prompt, as a judge with noise ranked them."""

    prompt: Dialogue
    chosen: str
    rejected: str


def pair(world: World, draw: Draw, scene: Scene) -> Pair:
    """Draw two replies that differ, and a preference whose odds grow with the gap in gold (Bradley-Terry)."""
    first = second = world.reply(draw, scene)
    while second == first:
        second = world.reply(draw, scene)
    gap = gold(scene.prompt, first) - gold(scene.prompt, second)
    prefers_first = draw.rng.random() < 1 / (1 + math.exp(-gap / NOISE))
    return Pair(scene.prompt, *((first, second) if prefers_first else (second, first)))


def pair_with_wreck(world: World, draw: Draw, scene: Scene) -> Pair:
    """Draw a wreck and a reply that is truly better, which every judge sees."""
    kind = draw.rng.choice(list(WRECKS))
    while True:
        reply, wreck = world.reply(draw, scene), WRECKS[kind](world, draw, scene)
        if gold(scene.prompt, reply) > gold(scene.prompt, wreck):
            return Pair(scene.prompt, reply, wreck)


def write(world: World, folder: Path) -> set[str]:
    """Write the files of both tasks; return the questions that open validation and test records."""
    held: set[str] = set()
    for task, (post, row_of) in _TASKS.items():
        seen: set[str] = set()
        for split, size in SIZES.items():
            draw = world.source(f"{task}/{split}")
            pairs = _fresh(world, draw, post, seen)
            drawn = [next(pairs) for _ in range(size)]
            _write(folder / task / f"{split}.jsonl.gz", [row_of(draw, each, split) for each in drawn])
            if split != "train":
                held.update(opening(each.prompt) for each in drawn)
    return held


def opening(dialogue: Dialogue) -> str:
    """Return the first question of a dialogue, without an instruction in front of it."""
    first = next(turn.text for turn in dialogue if turn.role == "user")
    return first.rpartition("\n")[2]


def _fresh(world: World, draw: Draw, post: bool, seen: set[str]) -> Iterator[Pair]:
    """Yield pairs whose dialogues open differently from all before, so that splits share none."""
    while True:
        scene = world.scene(draw, post=post)
        if opening(scene.prompt) not in seen:
            seen.add(opening(scene.prompt))
            yield pair(world, draw, scene)


def _hh_rlhf(_: Draw, example: Pair, __: str) -> Row:
    return {name: f"\n\n{plain_text(example.prompt, getattr(example, name))}" for name in ("chosen", "rejected")}


def _shp(draw: Draw, example: Pair, split: str) -> Row:
    """Make up votes, names and times as they look on a forum; A and B stand in a random order."""
    rng = draw.rng
    low = rng.randint(1, 20)
    scores = (low + rng.randint(1, 40), low)
    names = [f"{rng.getrandbits(35):07x}"[:7] for _ in range(3)]
    times = [1_600_000_000 + rng.randrange(40_000_000)]
    times.append(times[0] + rng.randint(60, 90_000))
    first = rng.randrange(2)  # where the preferred reply stands
    texts = (example.chosen, example.rejected)
    order = (0, 1) if first == 0 else (1, 0)
    return {
        "post_id": names[0],
        "domain": f"testbed_{split}",
        "upvote_ratio": round(rng.uniform(0.6, 1.0), 2),
        "history": example.prompt[0].text,
        "c_root_id_A": names[1],
        "c_root_id_B": names[2],
        "created_at_utc_A": times[0],
        "created_at_utc_B": times[1],
        "score_A": scores[order[0]],
        "score_B": scores[order[1]],
        "human_ref_A": texts[order[0]],
        "human_ref_B": texts[order[1]],
        "labels": 1 - first,
        "seconds_difference": float(times[1] - times[0]),
        "score_ratio": round(scores[0] / scores[1], 6),
    }


_TASKS: Final[dict[str, tuple[bool, Callable[[Draw, Pair, str], Row]]]] = {
    "hh_rlhf": (False, _hh_rlhf),
    "shp": (True, _shp),
}


def _write(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with path.open("wb") as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as file:
        file.write(text.encode())  # without a name and a time, so that equal rows give equal bytes
