"""From an error's violations to the fields of the page that they belong beside."""

import re
from collections.abc import Sequence

from darkroom_client.errors import DarkroomError, Unauthenticated
from darkroom_client.ui.settings import FIELDS, MAX_LORAS

_RULES = (  # of paths in a request, and the field of the page; the first that fits
    (r"parameters\.scheduler\.sigma_schedule", "sigma_schedule"),
    (r"parameters\.scheduler\b.*", "scheduler"),
    (r"parameters\.prompt_syntax", "weighted"),
    (r"parameters\.loras\[(\d+)\]\.weight", "weight_{}"),
    (r"parameters\.loras\b.*", "loras"),
    (r"parameters\.controls\[(\d+)\]\.(model|image|preprocessor|scale|start|end)\b.*", "control_{1}_{0}"),
    (r"parameters\.controls\[(\d+)\].*", "control_model_{}"),
    (r"parameters\.controls", "control_model_0"),
    (r"parameters\.hires_fix\b.*", "hires_fix"),
    (r"parameters\.(\w+)", "{}"),
    (r"preview\b.*", "preview"),
    (r"image|inpaint\.mask|inpaint", "picture"),
    (r"(?:inpaint|image_to_image|outpaint)\.(\w+)", "{}"),
    (r"image_to_image", "strength"),
    (r"outpaint", "left"),
)


def problems(error: DarkroomError, slots: Sequence[int] = ()) -> dict[str, str]:
    """What is wrong with which field; under "" what belongs to none.

    :param slots: where each of the request's controls stands on the page.
    """
    found: dict[str, list[str]] = {}
    for violation in error.violations:
        field = _field(violation.field, slots)
        text = violation.description if field or not violation.field else str(violation)
        found.setdefault(field, []).append(text)
    if not error.violations:
        found[""] = [in_words(error)]
    return {field: _sentence("; ".join(texts)) for field, texts in found.items()}


def in_words(error: DarkroomError) -> str:
    """An error's text, for a visitor who did not choose the page's token."""
    if isinstance(error, Unauthenticated):
        return "The server does not accept this page's token: start `darkroom ui` with another one"
    return error.message


def _field(path: str, slots: Sequence[int]) -> str:
    for pattern, field in _RULES:
        match = re.fullmatch(pattern, path)
        if match:
            name = field.format(*_places(match.groups(), slots if ".controls" in path else range(MAX_LORAS)))
            return name if name in FIELDS else ""
    return ""


def _places(groups: Sequence[str], slots: Sequence[int]) -> list[str]:
    return [str(slots[int(text)]) if text.isdecimal() and int(text) < len(slots) else text for text in groups]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
