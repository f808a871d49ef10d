"""What commands write is whole, or what was there stays."""

import os
from pathlib import Path

import pytest

from steerbench import SteerbenchError
from steerbench.output import write_whole


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    file = tmp_path / "README.md"
    write_whole(file, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SteerbenchError, match=r"cannot write .*README.md: No space left on device; choose another"):
        write_whole(file, "new")
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("name", ["record.json", "examples.parquet"])
def test_a_record_is_not_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("kept")
    with pytest.raises(SteerbenchError, match="is the name of a record's file"):
        write_whole(tmp_path / name, "new")
    assert (tmp_path / name).read_text() == "kept"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_whole(tmp_path / "link", "text\n")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"text\n"


def test_what_is_no_file_is_written_to(tmp_path: Path) -> None:
    write_whole(Path(os.devnull), "text")
    with pytest.raises(SteerbenchError, match="cannot write"):
        write_whole(tmp_path, "text")
