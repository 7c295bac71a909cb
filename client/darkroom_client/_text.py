"""Sentences for people."""

from collections.abc import Iterable

_LONGEST = 200  # characters of a quoted name


def shortened(text: str, most: int = _LONGEST) -> str:
    """A text of up to `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def os_error(error: OSError) -> str:
    """What the system says of a file, in a sentence without its number."""
    if error.filename is None or error.strerror is None:
        return str(error)
    name = shortened(str(error.filename))
    if isinstance(error, FileNotFoundError):
        return f"there is no file {name}"
    if isinstance(error, IsADirectoryError):
        return f"{name} is a folder, not a file"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"{name} is no folder"
    return f"{name}: {error.strerror.lower()}"


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """That the server has no such name, with the nearest one and the list."""
    known = list(known)
    return f"the server has no {kind} {name!r}{did_you_mean(name, known)}; it has {', '.join(known) or 'none'}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question about the nearest of the known names, in brackets; empty if none is near."""
    import difflib  # slow to import, and seldom needed

    nearest = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""
