"""Heavy imports are made without the garbage collector, which is then as it was."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from steerbench.cli.imports import import_swiftly


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module that says whether the collector was on while it was imported."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tells_of_gc.py").write_text("import gc\nCOLLECTING = gc.isenabled()\n")
    (tmp_path / "fails_at_once.py").write_text("1 / 0\n")
    yield "tells_of_gc"
    sys.modules.pop("tells_of_gc", None)


def test_the_collector_rests_during_an_import_and_not_behind_it(module: str) -> None:
    frozen = gc.get_freeze_count()
    import_swiftly(module)
    assert sys.modules[module].COLLECTING is False
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen, "nothing is withheld from it"


def test_a_collector_that_was_off_stays_off(module: str) -> None:
    gc.disable()
    try:
        import_swiftly(module)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_an_import_that_fails_leaves_it_on(module: str) -> None:
    with pytest.raises(ZeroDivisionError):
        import_swiftly("fails_at_once")
    assert gc.isenabled()
