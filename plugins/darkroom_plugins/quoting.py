"""Texts of strangers in messages and logs: on one line, without control characters, and short."""

from __future__ import annotations

MAX_QUOTED = 128


def quoted(text: str, limit: int = MAX_QUOTED) -> str:
    """The text in quotes, as Python writes it, cut at `limit` characters."""
    return repr(cut(text, limit))


def printable(text: str, limit: int) -> str:
    """The text without quotes: characters that do not print, as line ends, are escaped; cut at `limit` characters."""
    text = cut(text, limit)
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def cut(text: str, limit: int) -> str:
    """The first characters of a text that is longer than `limit`, the last of them an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
