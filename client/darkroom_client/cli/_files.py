"""File names and formats of the pictures written."""

import re
import sys
from pathlib import Path

import typer

from darkroom_client._enums import ImageFormatName

_FORMATS: dict[str, ImageFormatName] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
_AUTOMATIC = "{prompt}-{seed}{suffix}"


class Output:
    """Writes the pictures of a run to files, or the only one to stdout for `-`."""

    def __init__(
        self, out: str | None, total: int = 1, automatic: str = _AUTOMATIC, *, no_clobber: bool = False
    ) -> None:
        self._namer = None if out == "-" else Namer(out, total, automatic, no_clobber=no_clobber)
        if self._namer is None:
            _check_stdout(total)

    def write(self, data: bytes, *, suffix: str, index: int = 1, prompt: str = "", seed: int = 0) -> Path | None:
        """Writes picture `index`, which counts from 1. Returns its path; None for stdout."""
        if self._namer is None:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return None
        path = self._namer.path(index=index, prompt=prompt, seed=seed, suffix=suffix)
        path.write_bytes(data)
        return path


def _check_stdout(total: int) -> None:
    if total > 1:
        raise typer.BadParameter(f"- takes one picture, and this makes {total}", param_hint="--out")
    if sys.stdout.isatty():
        problem = "- writes the bytes of the picture: redirect them to a file or a pipe"
        raise typer.BadParameter(problem, param_hint="--out")


class Paths:
    """The distinct paths of a run; with `no_clobber` they avoid existing files."""

    def __init__(self, *, no_clobber: bool) -> None:
        self._no_clobber = no_clobber
        self._taken: set[Path] = set()

    def take(self, first: Path) -> Path:
        """This path, or the first one numbered from 2 that is free."""
        path, number = first, 2
        while path in self._taken or (self._no_clobber and path.exists()):
            path = first.with_stem(f"{first.stem}-{number}")
            number += 1
        self._taken.add(path)
        return path


class Namer:
    """Chooses a distinct path for each picture of a run, by --out.

    - None, a folder, or a name without extension: automatic names, which avoid existing files.
    - A name with {prompt}, {seed}, {index} or {suffix}: a pattern.
    - Any other name: that file, overwritten if it exists; numbered if the run has several pictures.

    With `no_clobber` names of all kinds avoid existing files. `option` is named where a pattern is refused.
    """

    def __init__(
        self,
        out: str | None,
        total: int,
        automatic: str = _AUTOMATIC,
        *,
        no_clobber: bool = False,
        option: str = "--out",
    ) -> None:
        self._option = option
        self._digits = len(str(total))
        self._paths = Paths(no_clobber=no_clobber or out is None or _is_folder(out))
        self._pattern = _pattern(out, total, automatic)
        self._expand(1, "prompt", 0, ".png")  # refuses an invalid pattern before any job

    def path(self, *, index: int, prompt: str, seed: int, suffix: str) -> Path:
        """The path of picture `index`, which counts from 1. Creates its folder."""
        path = self._paths.take(self._expand(index, prompt, seed, suffix))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _expand(self, index: int, prompt: str, seed: int, suffix: str) -> Path:
        number = str(index).zfill(self._digits)
        try:
            return Path(self._pattern.format(index=number, prompt=slug(prompt), seed=seed, suffix=suffix))
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            known = "{index}, {prompt}, {seed} and {suffix}"
            raise typer.BadParameter(f"a pattern may hold {known}", param_hint=self._option) from error


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


def format_for(out: str | None, chosen: ImageFormatName | None) -> ImageFormatName | None:
    """The image format: --format, else by the extension of --out, else None.

    :raises typer.BadParameter: if the two contradict each other, or the extension is that of no format.
    """
    if out is None or out == "-" or _is_folder(out):
        return chosen
    suffix = Path(out).suffix
    implied = _FORMATS.get(suffix.lower())
    if chosen and implied and chosen != implied:
        raise typer.BadParameter(f"--out ends in {suffix}", param_hint="--format")
    if suffix and "{" not in suffix and not implied and not chosen:
        raise typer.BadParameter(f"{out} ends in {suffix}; pictures end in {', '.join(_FORMATS)}", param_hint="--out")
    return chosen or implied


def slug(prompt: str) -> str:
    """A prompt for a file name: letters, digits and hyphens, at most 48 characters."""
    words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")
    return words[:48].rstrip("-") or "picture"
