"""Options of a command in a list, where a test replaces some that a fixture gives."""

from collections.abc import Iterable


def last_of_each(given: Iterable[object]) -> list[str]:
    """Return the arguments with later options in place of earlier ones of the same name; `--plugin` stays each time."""
    groups: list[list[str]] = [[]]
    for text in map(str, given):
        if text.startswith("--"):
            groups.append([])
        groups[-1].append(text)
    kept: dict[object, list[str]] = {}
    for i, group in enumerate(groups):
        name = group[0].partition("=")[0] if group else ""
        kept[i if name == "--plugin" else name] = group
    return [text for group in kept.values() for text in group]
