"""The system's viewer of pictures, for --open."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from darkroom_client.cli._report import print_warning

_REFUSAL_SECONDS = 2.0  # in which xdg-open says that it cannot; a viewer that opens may go on for hours


def open_pictures(paths: Sequence[Path]) -> None:
    """Opens pictures, or warns that nothing opens them."""
    for path in paths:
        if not _open(path.resolve()):
            print_warning(f"--open: this system has no viewer that opens {path}")
            return


def _open(path: Path) -> bool:
    if sys.platform in ("darwin", "win32", "cygwin"):
        return typer.launch(str(path)) == 0
    try:  # not typer's, which does not wait, and leaves the terminal to what xdg-open complains of
        viewer = subprocess.Popen(["xdg-open", str(path)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return viewer.wait(_REFUSAL_SECONDS) == 0
    except subprocess.TimeoutExpired:
        return True
    except OSError:
        return False
