"""Where memory runs out, batches are halved and begun again: the one mechanism, and a whole run."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scarce_memory import ERRORS, SAMPLED, told
from typer.testing import Result

from steerbench import LanguageModel, Store, generate
from steerbench.data import user
from steerbench.engine import generate as generation
from steerbench.models.batching import halving
from steerbench.models.machine import OUT_OF_MEMORY

# The one mechanism


@pytest.mark.parametrize("error", ERRORS)
def test_halves_until_it_fits_and_stays_there(error: str) -> None:
    tried: list[list[int]] = []

    def work(rows: list[int]) -> str:
        tried.append(rows)
        if len(rows) > 3:
            raise ERRORS[error]()
        return "-".join(map(str, rows))

    with told(8, 2):
        found = list(halving([list(range(8)), [9, 8, 10, 11, 12], [13]], work))
    parts = [[0, 1], [2, 3], [4, 5], [6, 7], [9, 8], [10, 11], [12], [13]]
    assert found == [(rows, "-".join(map(str, rows))) for rows in parts]
    assert tried == [list(range(8)), [0, 1, 2, 3], *parts]


@pytest.mark.parametrize("error", ERRORS)
def test_one_row_too_many_ends_the_walk(error: str) -> None:
    tried: list[int] = []

    def work(rows: list[int]) -> None:
        tried.append(len(rows))
        raise ERRORS[error]()

    with pytest.raises(torch.OutOfMemoryError, match=re.escape(str(ERRORS[error]()))):
        list(halving([[0, 1, 2, 3, 4]], work))
    assert tried == [5, 2, 1]


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("out of memory")])
def test_another_error_is_not_tried_again(error: Exception) -> None:
    tried: list[int] = []

    def work(rows: list[int]) -> None:
        tried.append(len(rows))
        raise error

    with pytest.raises(type(error)):
        list(halving([[0, 1], [2, 3]], work))
    assert tried == [2]


def test_what_failed_is_let_go_before_the_next_try() -> None:
    """Else the smaller batch would not fit either."""
    alive: list[Any] = []

    class Large:
        def __init__(self) -> None:
            self.own = self  # only a collection finds it
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    def work(rows: list[int]) -> int:
        large = Large()
        if len(rows) > 1:
            raise ERRORS["torch"]()
        return len(alive) + (large is None)

    with told(4, 1):
        assert next(halving([[0, 1, 2, 3]], work)) == ([0], 1)


# The whole run


def fits(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Let generation hold so many rows at once."""
    kept = generation._generate_batch

    def generate_batch(lm: LanguageModel, batch: Any, *args: Any, **more: Any) -> list[list[int]]:
        if len(batch.input_ids) > room:
            raise ERRORS["torch"]()
        return kept(lm, batch, *args, **more)

    monkeypatch.setattr(generation, "_generate_batch", generate_batch)


def test_a_run_goes_on_with_fewer_rows(
    run_cli: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_cli("--methods", "caa", "--out", tmp_path / "whole").exit_code == 0
    fits(monkeypatch, 2)
    with pytest.warns(UserWarning, match="does not hold 4 sequences at once; going on with 2"):
        assert run_cli("--methods", "caa", "--out", tmp_path / "halved").exit_code == 0
    whole, halved = (Store(tmp_path / name).records() for name in ("whole", "halved"))
    for one, other in zip(whole, halved, strict=True):
        assert list(one.examples["response"]) == list(other.examples["response"])


def test_a_run_that_does_not_hold_one_row_says_what_to_do(
    run_cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    fits(monkeypatch, 0)
    done = run_cli("--methods", "caa")
    assert done.exit_code == 2
    assert done.stderr == f"error: {OUT_OF_MEMORY}\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_device(llama: LanguageModel) -> None:
    """A third of what a batch needs: the walk goes on with a smaller one."""
    many = [user("x" * 200) for _ in range(512)]
    llama.model.to("cuda")
    expected = generate(llama, many, decoding=SAMPLED, batch_size=32)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    generate(llama, many, decoding=SAMPLED, batch_size=512)
    share = torch.cuda.max_memory_reserved() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(share / 3)
    try:
        with pytest.warns(UserWarning, match="does not hold 512 sequences at once"):
            found = generate(llama, many, decoding=SAMPLED, batch_size=512)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert found == expected
