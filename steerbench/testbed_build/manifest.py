"""The manifest of a testbed: its files, how it was made, and how good it is."""

import hashlib
import json
from pathlib import Path
from typing import Any

from steerbench.files import write_whole
from steerbench.testbed import FORMAT, MANIFEST, Testbed


def write(folder: Path, seed: int, **sections: Any) -> None:
    """Write the manifest of a folder. The format and the seed come first; files are listed with size and hash."""
    files = list_files(folder)
    total = sum(entry["bytes"] for entry in files.values())
    values = {"format": FORMAT, "seed": seed, "bytes": total, **sections, "files": files}
    write_whole(folder / MANIFEST, json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return relative path -> size in bytes and SHA-256, for all files but the manifest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in paths
    }


def damage(testbed: Testbed) -> list[str]:
    """Return what is wrong with the files, one sentence each."""
    told, found = testbed.manifest["files"], list_files(testbed.folder)
    missing = [f"{name} is missing" for name in told if name not in found]
    changed = [f"{name} has changed" for name in told if name in found and found[name] != told[name]]
    added = [f"{name} does not belong there" for name in found if name not in told]
    return missing + changed + added
