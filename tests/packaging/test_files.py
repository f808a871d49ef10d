"""What commands write is whole, or what was there stays."""

import os
from pathlib import Path

import pytest

from steerbench import SteerbenchError
from steerbench.files import write_asked, write_whole


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    file = tmp_path / "README.md"
    write_asked(file, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SteerbenchError, match=r"cannot write .*README.md: No space left on device; choose another"):
        write_asked(file, "new")
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("name", ["record.json", "examples.parquet", "protocol.json", "records.jsonl"])
def test_a_record_is_not_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("kept")
    with pytest.raises(SteerbenchError, match="is the name of a record's file"):
        write_asked(tmp_path / name, "new")
    assert (tmp_path / name).read_text() == "kept"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_asked(tmp_path / "link", "text\n")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"text\n"


def test_what_is_no_file_is_written_to(tmp_path: Path) -> None:
    write_asked(Path(os.devnull), "text")
    with pytest.raises(SteerbenchError, match="cannot write"):
        write_asked(tmp_path, "text")


def test_bytes_and_line_ends_are_written_as_they_are(tmp_path: Path) -> None:
    write_whole(tmp_path / "bytes", b"\xff\r\n")
    write_whole(tmp_path / "text", "\u00e9\r\n")
    assert (tmp_path / "bytes").read_bytes() == b"\xff\r\n"
    assert (tmp_path / "text").read_bytes() == b"\xc3\xa9\r\n"
    assert {p.name for p in tmp_path.iterdir()} == {"bytes", "text"}
