"""What was measured, in a JSON file that is written anew after each figure: a run that is cut off loses nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read(file: Path) -> dict[str, Any]:
    """What is in the file; nothing if there is none."""
    return json.loads(file.read_text()) if file.exists() else {}  # type: ignore[no-any-return]


def write(file: Path, found: Mapping[str, Any], section: str | None = None) -> None:
    """Replace the file, or only a section of it."""
    file.parent.mkdir(exist_ok=True, parents=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps({**read(file), section: found} if section else found, indent=2) + "\n")
    part.replace(file)


def update(file: Path, section: str, **found: Any) -> None:
    """Add to a section of the file."""
    write(file, {**read(file).get(section, {}), **found}, section)
