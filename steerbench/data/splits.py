"""Read the records of a task, from the Hub or from local files, into three disjoint splits."""

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from steerbench.data.sources import BROKEN, Source, from_hub, from_path
from steerbench.data.task import Example, Task, TaskData, Unusable
from steerbench.errors import SteerbenchError
from steerbench.plugins.spec import label_of

_PRECEDENCE = ("test", "validation", "train")  # what stands in two splits stays in the first of them
_CARVED = {"test": 0.3, "validation": 0.1}  # share of the groups that goes into a split the data does not have


def load_data(task: Task, path: Path | None = None) -> TaskData:
    """Read a task from a file or folder in the original schema, or from the Hub at the pinned revision.

    Splits that the data has are kept; missing ones are carved out by group. Neither the order of the
    rows nor the path of the files changes the result; the first n of a split are a fixed random sample.
    """
    origin = from_hub(task) if path is None else from_path(path, task)
    skipped: Counter[str] = Counter()
    pools = _read(task, origin.sources, skipped)
    splits = _carve(task, _disjoint(task, pools, skipped))
    train, validation, test = (tuple(splits[split]) for split in ("train", "validation", "test"))
    return TaskData(train, validation, test, origin.revision, dict(sorted(skipped.items())))


def folder_of(name: str, path: Path | None) -> Path | None:
    """Return where a task's data lie: a folder may hold one folder per task, with the task's name."""
    if path is None:
        return None
    return path / name if (path / name).is_dir() else path


def split_by_group(groups: Sequence[str], order: Sequence[str], counts: Sequence[int]) -> list[list[int]]:
    """Return disjoint indices into `groups`, one list for each count and one for the rest.

    `order` has each group once: the first list holds all members of its first `counts[0]` groups, the next one those of
    the `counts[1]` groups behind, and the last one those of all that are left.
    """
    ends = list(accumulate(counts))
    home = {group: bisect_right(ends, i) for i, group in enumerate(order)}
    return [[i for i, group in enumerate(groups) if home[group] == part] for part in range(len(counts) + 1)]


# From rows to splits


def _read(task: Task, sources: Sequence[Source], skipped: Counter[str]) -> dict[str, list[Example]]:
    """Parse all rows. Without a train split all is one pool, which goes by the name of train."""
    named = [source for source in sources if source.split] or sources
    if len(named) < len(sources):
        skipped["file without a split name"] = len(sources) - len(named)
    has_train = any(source.split == "train" for source in named)
    pools: dict[str, list[Source]] = {}
    for source in named:
        pools.setdefault((has_train and source.split) or "train", []).append(source)
    return {split: _unique(task, pool, skipped) for split, pool in pools.items()}


def _unique(task: Task, sources: Sequence[Source], skipped: Counter[str]) -> list[Example]:
    """Keep one example of each prompt (or group), the lowest in rank, and sort them by rank."""
    word = task.group_word if task.one_per_group else "prompt"
    kept: dict[Hashable, Example] = {}
    for example in (example for source in sources for example in _usable(task, source, skipped)):
        key = example.group if task.one_per_group else example.prompt
        skipped.update([f"duplicate {word}"] if key in kept else [])
        kept[key] = min(kept.get(key, example), example, key=_rank)
    return sorted(kept.values(), key=_rank)


def _usable(task: Task, source: Source, skipped: Counter[str]) -> Iterator[Example]:
    reasons: Counter[str] = Counter()
    usable = 0
    row: object = None
    for row in source.rows:
        try:
            example = _parse(task, row)
        except Unusable as error:
            reasons[str(error)] += 1
        else:
            usable += 1
            yield example
    if not usable:
        fields = f" The last one has the fields {', '.join(map(str, row))}." if isinstance(row, Mapping) else ""
        raise _nothing(task, source.name, reasons, fields)
    skipped.update(reasons)


def _parse(task: Task, row: object) -> Example:
    if row is BROKEN:
        raise Unusable("broken line")
    if not isinstance(row, Mapping):
        raise Unusable("not an object")
    try:
        return task.parse(row)
    except Unusable:
        raise
    except Exception as error:  # a fault of the task, which may be anyone's
        raise SteerbenchError(
            f"task {type(task).__name__} cannot read a row with the fields {', '.join(map(str, row))}: "
            f"{type(error).__name__}: {error}. Its parse must raise Unusable with a reason where a row cannot be used."
        ) from error


def _disjoint(task: Task, pools: Mapping[str, list[Example]], skipped: Counter[str]) -> dict[str, list[Example]]:
    """Leave out what an earlier split of the precedence holds already, by group and by prompt."""
    groups: set[str] = set()
    prompts: set[Hashable] = set()
    splits: dict[str, list[Example]] = {}
    for split in (split for split in _PRECEDENCE if split in pools):
        splits[split] = []
        for example in pools[split]:
            if example.group in groups:
                skipped[f"{task.group_word} in another split"] += 1
            elif example.prompt in prompts:
                skipped["duplicate prompt"] += 1
            else:
                splits[split].append(example)
                prompts.add(example.prompt)
        if not splits[split]:
            raise _nothing(task, f"split {split!r}", skipped)
        groups.update(example.group for example in splits[split])
    return splits


def _carve(task: Task, splits: dict[str, list[Example]]) -> dict[str, list[Example]]:
    """Take missing splits out of train: the groups are ranked by hash and cut at fixed shares, or at their half."""
    missing = [split for split in _CARVED if split not in splits]
    groups = sorted({example.group for example in splits["train"]}, key=_hash)
    half = task.scored_half()
    if half is not None:
        if "test" not in missing:
            raise SteerbenchError(
                f"the data of {label_of(type(task).__name__, task)} have a test split of their own, so that no half of "
                f"them is scored; give one file without splits."
            )
        groups = [*groups[half::2], *groups[1 - half :: 2]]  # the scored half stands first
    counts = [max(1, round(_CARVED[split] * len(groups))) for split in missing]
    if half is not None:
        counts[0] = (len(groups) + 1 - half) // 2
    needed = len(missing) + (1 if half is None else 2)  # the half that is not scored is split once more
    if len(groups) < needed:
        raise SteerbenchError(
            f"too few records to make the splits {', '.join(['train', *missing])}: they need {needed} that differ in "
            f"their {task.group_word}, and there are {len(groups)}. Add records."
        )
    parts = split_by_group([example.group for example in splits["train"]], groups, counts)
    carved = [[splits["train"][i] for i in part] for part in parts]
    return splits | dict(zip([*missing, "train"], carved, strict=True))


def half_of(examples: Sequence[Example], half: int) -> list[Example]:
    """Return the examples of every other group in the order of their hashes: 0 and 1 have no group in common."""
    groups = set(sorted({example.group for example in examples}, key=_hash)[half::2])
    return [example for example in examples if example.group in groups]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _rank(example: Example) -> str:
    return _hash(example.id)


def _nothing(task: Task, where: str, reasons: Mapping[str, int], fields: str = "") -> SteerbenchError:
    counts = ", ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items())) or "it is empty"
    schema = f"in the schema of {task.hub}" if task.hub else f"as {type(task).__name__}.parse reads them"
    return SteerbenchError(f"no usable record in {where}: {counts}.{fields} Give records {schema}.")
