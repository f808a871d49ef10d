"""States on disk: what is written comes back, in any shards, and memory holds one of them."""

import copy
import gc
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from steerbench import LanguageModel
from steerbench.edits import Site
from steerbench.engine.activations import response_states
from steerbench.learn import Tokens, activations
from steerbench.learn.states import States

LENGTHS = [3, 1, 4, 1, 5, 9, 2, 6]


def sequences(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(n, 4).to(dtype) for n in LENGTHS]


def unpacked(states: States, rows: range | list[int], size: int, seed: int | None = None) -> list[tuple[int, Tensor]]:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    batches = list(states.batches(rows, size, generator))
    assert all(len(batch.rows) == size for batch in batches[:-1])
    return [pair for b in batches for pair in zip(b.rows, torch.split(b.states, b.lengths), strict=True)]


@pytest.mark.parametrize("shard_bytes", [1, 100, 10**6])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_what_is_written_comes_back(shard_bytes: int, size: int) -> None:
    written = sequences()
    states = States.write(written, shard_bytes)
    assert (len(states), states.lengths) == (len(LENGTHS), LENGTHS)
    for seed in (None, 0, 1):
        found = unpacked(states, range(len(written)), size, seed)
        assert sorted(i for i, _ in found) == list(range(len(written)))
        assert all(torch.equal(one, written[i]) for i, one in found)


def test_only_the_rows_asked_for_come_and_in_order() -> None:
    states = States.write(sequences(), 100)
    assert [i for i, _ in unpacked(states, [6, 0, 3], 2)] == [0, 3, 6]
    assert unpacked(states, [], 2) == []


def test_shuffling_depends_on_the_generator_alone() -> None:
    states = States.write(sequences(), 100)
    orders = [[i for i, _ in unpacked(states, range(8), 3, seed)] for seed in (0, 0, 1, 2, 3)]
    assert orders[0] == orders[1]
    assert len(set(map(tuple, orders))) > 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept_on_disk_and_read_in_float32(dtype: torch.dtype) -> None:
    states = States.write(sequences(dtype), 100)
    assert states._file.seek(0, 2) == 2 * 4 * sum(LENGTHS)
    (batch,) = states.batches(range(8), 8)
    assert torch.equal(batch.states, torch.cat(sequences(dtype)).float())


def test_writing_holds_one_shard_at_a_time() -> None:
    written: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def stream() -> Iterator[Tensor]:
        for i in range(200):
            alive.append(sum(reference() is not None for reference in written))
            states = torch.full((10, 100), float(i))
            written.append(weakref.ref(states))
            yield states

    states = States.write(stream(), shard_bytes=5 * 4000)
    assert max(alive) <= 11  # the shard being filled, and the one just written
    assert [float(b.states[0, 0]) for b in states.batches([0, 77, 199], 1)] == [0, 77, 199]


def test_nothing_stays_behind_even_if_the_process_is_killed(tmp_path: Path) -> None:
    """The file has no name, so there is nothing to clean up."""
    code = (
        "import os, torch; from steerbench.learn.states import States; s = States.write([torch.ones(3, 4)]); os.abort()"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert done.returncode == -signal.SIGABRT
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []


def test_a_copy_is_the_same_and_the_file_is_closed_at_the_end() -> None:
    states = States.write(sequences())
    file, same = states._file, copy.deepcopy(states)
    del states
    gc.collect()
    assert len(list(same.batches(range(8), 8))) == 1
    del same
    gc.collect()
    assert file.closed


def test_a_full_disk_is_told() -> None:
    """A limit on the size of files stands in for a full disk."""
    code = """
import resource, signal, torch
from steerbench import SteerbenchError
from steerbench.learn.states import States
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    States.write(torch.ones(10, 4) for _ in range(1000))
except SteerbenchError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "let TMPDIR name a folder with space." in done.stdout


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_states_are_those_the_tokens_are_drawn_from(lm: LanguageModel, batch_size: int) -> None:
    tokens = [Tokens((5, 6, 7), (8, 9)), Tokens((10,), (11, 12, 13)), Tokens((4, 5), (6,)), Tokens((7, 8), ())] * 6
    everything = activations(lm, Site("final"), tokens, "all")
    states = list(response_states(lm, Site("final"), tokens, batch_size=batch_size))
    for t, whole, one in zip(tokens, everything, states, strict=True):
        first = len(t.prompt) - 1
        torch.testing.assert_close(one, whole[first : first + len(t.response)], rtol=1e-4, atol=1e-4)
        logits = lm.anatomy.head(one)
        with torch.no_grad():
            ids = torch.tensor([t.prompt + t.response])
            expected = lm.model(ids).logits[0, first : first + len(t.response)]
        if lm.model.config.model_type != "gemma2":  # caps its logits behind the head
            torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
