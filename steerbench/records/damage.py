"""What a file of a record that cannot be read is told as."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steerbench.errors import SteerbenchError


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


def check_schema(path: Path, found: object, wanted: int) -> None:
    """Raise SteerbenchError for a record of another schema."""
    if found != wanted:
        raise SteerbenchError(
            f"{path} has schema {found}, and this steerbench reads {wanted}; move its folder elsewhere, or "
            f"install the version that made it."
        )
