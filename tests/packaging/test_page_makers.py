"""Modules that are run by hand: they answer `--help`, and write nothing under a name that is an option."""

import runpy
import sys
from pathlib import Path

import pytest

MODULES = ["steerbench.contract.interface_page", "steerbench.records.column_page", "steerbench.contract.tiny"]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*:RuntimeWarning")
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(("given", "status"), [(["--help"], 0), ([], 2), (["--nonsense", "x"], 2)])
def test_nothing_is_written_where_nothing_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, given: list[str], status: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [module, *given])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(module, run_name="__main__")
    assert stop.value.code == status
    assert not list(tmp_path.iterdir())
