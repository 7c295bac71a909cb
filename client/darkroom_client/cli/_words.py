"""A request's fields in the words of the command line: `--steps` for `parameters.num_inference_steps`."""

import re
from collections.abc import Callable

from darkroom_client.errors import DarkroomError

_SIZES = {"original": "--original-size", "crop": "--crop-offset", "target": "--target-size"}
_NAMES = {"num_inference_steps": "--steps", "prompt": "PROMPT", "task": "--task"}
_RULES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (  # of whole paths; the first that fits
    (r"parameters\.size_conditioning\.([a-z]+)_\w+", lambda match: _SIZES[match[1]]),
    (r"parameters\.hires_fix(\.(factor|width|height))?", "--hires-fix"),
    (r"parameters\.hires_fix\.num_inference_steps", "--hires-steps"),
    (r"parameters\.hires_fix\.(\w+)", r"--hires-\1"),
    (r"parameters\.scheduler(\.name)?", "--scheduler"),
    (r"parameters\.scheduler\.options\.?(.*)", r"--option \1"),
    (r"parameters\.scheduler\.(\w+)", lambda match: _option(match[1])),
    (r"parameters\.loras(\[\d+\].*)?", "--lora"),
    (r"parameters\.controls\[\d+\]\.preprocessor", "--preprocess"),
    (r"parameters\.controls\[\d+\]\.preprocessor_options\.?(.*)", r"--preprocess-option \1"),
    (r"parameters\.controls\[\d+\]\.(start|end|guess_mode)", r"--control-option \1"),
    (r"parameters\.controls(\[\d+\].*)?", "--control"),
    (
        r"parameters\.extensions(?:\['?([^'\]]+)'?\](.*))?",
        lambda match: f"--extension {match[1] or ''}{match[2] or ''}",
    ),
    (r"parameters\.(\w+)", lambda match: _NAMES.get(match[1]) or _option(match[1])),
    (r"preview(\.mode)?", "--preview"),
    (r"output(\.format)?|format", "--format"),
    (r"inpaint\.(\w+)|image_to_image\.(\w+)", lambda match: _option(match[1] or match[2])),
    (r"outpaint(\.\w+)?", "--outpaint"),
    (r"resize_mode", "--resize-mode"),
    (r"image", "IMAGE"),
    (r"preprocessor", "NAME"),
    (r"preprocessor_options\.?(.*)", r"--option \1"),
    (r"request_id", "ID"),
    (r"model", "MODEL"),
)
# Keywords of the client, with which its own errors begin.
_KEYWORDS = "address|token|root_certificate|client_certificate|client_key|timeout"


def in_options_words(error: DarkroomError) -> str:
    """An error's text with options in place of fields and keywords."""
    text = str(error)
    if not error.code:  # no call was made
        text = re.sub(rf"^({_KEYWORDS})\b", lambda match: _option(match[1]), text)
    if fields := {violation.field for violation in error.violations} - {""}:
        paths = "|".join(map(re.escape, sorted(fields, key=len, reverse=True)))
        text = re.sub(rf"(?<![\w.\]])({paths})(?=: )", lambda match: option_of(match[1]), text)
    text = re.sub(r"(?<![\w.\[])parameters(\.\w+)+", lambda match: option_of(match[0]), text)
    return "\n".join(dict.fromkeys(text.splitlines()))  # several fields may be of one option


def option_of(field: str) -> str:
    """The option for a field's path in a request; the path itself if there is none."""
    for pattern, option in _RULES:
        match = re.fullmatch(pattern, field)
        if match:
            return (option(match) if callable(option) else match.expand(option)).strip()
    return field


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
