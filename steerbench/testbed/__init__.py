"""The testbed: a small world whose truth is known, with models and data made from it that ship with the package.

This module says where a testbed is, and imports nothing heavy.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from steerbench.errors import SteerbenchError

NAME: Final = "testbed"
MANIFEST: Final = "manifest.json"
FORMAT: Final = "steerbench-testbed-2"
PARTS: Final = ("lm", "reward", "held_out_reward", "encoder")
_SHIPPED: Final = Path(__file__).resolve().parent / "assets"


@dataclass(frozen=True)
class Testbed:
    """A testbed: the one that ships with the package, or the folder of one that was built."""

    folder: Path
    __test__: ClassVar[bool] = False  # no test class, whatever pytest makes of its name

    @property
    def data(self) -> Path:
        """Folder with one folder per task."""
        return self.folder / "data"

    @property
    def name(self) -> str:
        """`testbed`, and for a built one its seed."""
        return NAME if self.folder == _SHIPPED else f"{NAME}-seed{self.manifest['seed']}"

    @property
    def manifest(self) -> dict[str, Any]:
        """What it was made of and how good it is. Raises SteerbenchError if it is damaged."""
        path = self.folder / MANIFEST
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SteerbenchError(f"{path} cannot be read ({error}); build or install the testbed again.") from error
        if values.get("format") != FORMAT:
            raise SteerbenchError(f"{path} is not in the format {FORMAT}; build the testbed again.")
        return values

    def part(self, name: str) -> str:
        """Return the path of one of `PARTS`."""
        return str(self.folder / name)


def named(name: str) -> Testbed | None:
    """Return the testbed that a model name stands for: `testbed`, the folder of a built one, or the model in either."""
    if name.rstrip("/") == NAME:
        return Testbed(_SHIPPED)
    folder = _resolved(part_path(name))
    return next((Testbed(each) for each in (folder, folder.parent) if _is_testbed(each)), None)


def part_path(name: str, part: str = "lm") -> str:
    """Return the path of a part of the shipped testbed named as in tables, `testbed/lm`; else the name as it is.

    `testbed` alone stands for `part`.
    """
    home, _, given = name.rstrip("/").partition("/")
    known = home == NAME and (given or part) in PARTS
    return Testbed(_SHIPPED).part(given or part) if known else name


def around(path: Path) -> Testbed | None:
    """Return the testbed that a file or folder belongs to."""
    path = _resolved(str(path))
    return next((Testbed(folder) for folder in (path, *path.parents) if _is_testbed(folder)), None)


def _resolved(name: str) -> Path:
    try:
        return Path(name).expanduser().resolve()
    except (RuntimeError, OSError, ValueError):  # no such user, a loop of links, a null character
        return Path(name)


def _is_testbed(folder: Path) -> bool:
    try:
        return f'"{FORMAT}"' in (folder / MANIFEST).read_text(encoding="utf-8")[:200]
    except (OSError, ValueError):
        return False
