"""The one exception for mistakes a user can mend."""


class SteerbenchError(Exception):
    """A user's mistake: the message says what is wrong, where, and what to do. The CLI prints it and exits with 2."""


class WrongArgument(SteerbenchError, TypeError):
    """A mistake in the arguments of a method or a task."""


def suggest(kind: str, name: str, known: list[str]) -> str:
    """Return the sentence for an unknown `name` of a `kind`, with the nearest known name."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(sorted(known)) or 'none'}."
