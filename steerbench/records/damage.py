"""What a file of a record that cannot be read is told as."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from steerbench.errors import SteerbenchError

LeftOut = Callable[[str], object]
"""Is told why a record is left out, in a sentence that names it."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a file of a record is read into a SteerbenchError that names the file."""
    again = "move its folder away and run again."
    try:
        yield
    except FileNotFoundError as error:
        raise SteerbenchError(f"{path} is missing; {again}") from error
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise SteerbenchError(f"cannot read {path}: {error.strerror}.") from error
        raise SteerbenchError(f"{path} is damaged ({error}); {again}") from error


def check_schema(path: Path, found: object, readable: Sequence[int]) -> None:
    """Raise SteerbenchError for a record of another schema."""
    if found not in readable:
        known = " and ".join(map(str, readable))
        raise SteerbenchError(
            f"{path} has schema {found}, and this steerbench reads {known}; move its folder elsewhere, or "
            f"install the version that made it."
        )
