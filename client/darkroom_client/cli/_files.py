"""Where pictures go: the names of files."""

import re
from pathlib import Path

import typer

from darkroom_client._enums import ImageFormatName

_FORMATS: dict[str, ImageFormatName] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
_AUTOMATIC = "{prompt}-{seed}{suffix}"


class Namer:
    """Gives each picture of a run its own path, by what --out says.

    A folder, a name without an ending, or nothing means automatic names, which never meet a file that is there
    already. A name with {prompt}, {seed}, {index} or {suffix} in it is a pattern. Any other name is the file itself;
    of several pictures, each gets its number.
    """

    def __init__(self, out: str | None, total: int, automatic: str = _AUTOMATIC) -> None:
        self._digits = len(str(total))
        self._taken: set[Path] = set()
        self._fresh = out is None or _is_folder(out)
        self._pattern = _pattern(out, total, automatic)
        self._expanded(1, "prompt", 0, ".png")

    def path(self, *, index: int, prompt: str, seed: int, suffix: str) -> Path:
        """The path of the run's picture number `index`, which counts from 1. Its folder is made."""
        wanted = self._expanded(index, prompt, seed, suffix)
        path, number = wanted, 2
        while path in self._taken or (self._fresh and path.exists()):
            path = wanted.with_stem(f"{wanted.stem}-{number}")
            number += 1
        self._taken.add(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _expanded(self, index: int, prompt: str, seed: int, suffix: str) -> Path:
        number = str(index).zfill(self._digits)
        try:
            return Path(self._pattern.format(index=number, prompt=slug(prompt), seed=seed, suffix=suffix))
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            known = "{index}, {prompt}, {seed} and {suffix}"
            raise typer.BadParameter(f"a pattern may hold {known}", param_hint="--out") from error


def _is_folder(out: str) -> bool:
    return out.endswith(("/", "\\")) or Path(out).is_dir() or not ("{" in out or Path(out).suffix)


def _pattern(out: str | None, total: int, automatic: str) -> str:
    automatic = automatic if total == 1 else "{index}-" + automatic
    if out is None:
        return automatic
    if _is_folder(out):
        return str(Path(out) / "_").removesuffix("_").replace("{", "{{").replace("}", "}}") + automatic
    if "{" in out or total == 1:
        return out
    path = Path(out)
    return str(path.with_name(f"{path.stem}-{{index}}{path.suffix}"))


def format_for(out: str | None, wanted: ImageFormatName | None) -> ImageFormatName | None:
    """The format to ask for: the one wanted, else what --out ends in.

    :raises typer.BadParameter: when the two contradict each other.
    """
    if out is None or _is_folder(out):
        return wanted
    suffix = Path(out).suffix
    ending = _FORMATS.get(suffix.lower())
    if wanted and ending and wanted != ending:
        raise typer.BadParameter(f"--out ends in {suffix}", param_hint="--format")
    return wanted or ending


def slug(prompt: str) -> str:
    """A prompt as a part of a file name: its letters and digits, at most 48 of them."""
    words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")
    return words[:48].rstrip("-") or "picture"
