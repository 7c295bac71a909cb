"""From the page's fields to requests."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkroom_client._job_calls import JobCalls, StreamT
from darkroom_client._templates import Templates
from darkroom_client.errors import InvalidRequest, Violation
from darkroom_client.options import ControlSpec, LoraSpec, SchedulerSpec

if TYPE_CHECKING:
    import PIL.Image

TEXT, PICTURE, INPAINT, OUTPAINT = MODES = (
    "txt2img",
    "img2img",
    "inpaint",
    "outpaint",
)  # as the server names its tasks
SLOTS = 2  # for ControlNets
MAX_LORAS = 6
MAX_PROMPTS = 24  # pictures that fit side by side
COMBINATIONS, SAMPLES = "combinations", "samples"  # what to make of a prompt that is a template
SIDES = ("left", "top", "right", "bottom")
STRENGTHS = {PICTURE: 0.8, INPAINT: 1.0}  # the server's own, of the tasks that have one

_CONTROL = ("model", "image", "preprocessor", "scale", "start", "end")
FIELDS = (
    "mode",
    "prompt",
    "negative_prompt",
    "weighted",
    "template",
    "samples",
    "model",
    "preset",
    "scheduler",
    "sigma_schedule",
    "num_inference_steps",
    "guidance_scale",
    "width",
    "height",
    "hires_fix",
    "num_images",
    "seed",
    "random_seed",
    "preview",
    "loras",
    *(f"weight_{index}" for index in range(MAX_LORAS)),
    *(f"control_{name}_{slot}" for slot in range(SLOTS) for name in _CONTROL),
    "picture",
    "strength",
    "mask_blur",
    "closely",
    "padding_crop",
    "keep_unmasked",
    *SIDES,
    "mask",  # last: the browser fills it in when a job is started
)


@dataclass(frozen=True, slots=True)
class Request:
    """What the page asks of a server: the arguments of `generate` or `edit`."""

    prompt: str
    keywords: dict[str, Any]
    image: "PIL.Image.Image | None" = None  # None: from text alone
    slots: list[int] = field(default_factory=list)  # where each of `controls` stands on the page

    def start(self, client: JobCalls[StreamT], **more: Any) -> StreamT:
        """Starts a kept job.

        :raises InvalidRequest: if the request cannot hold a value.
        """
        keywords = self.keywords | more | {"keep": True}
        if self.image is None:
            return client.generate(self.prompt, **keywords)
        return client.edit(self.image, self.prompt, **keywords)


def request(fields: Mapping[str, Any]) -> Request:
    """The request that the page's fields ask for.

    :raises InvalidRequest: if something is missing that no server could do without.
    """
    slots = [slot for slot in range(SLOTS) if fields[f"control_model_{slot}"]]
    missing = [
        Violation(f"parameters.controls[{index}].image", "choose a picture to take the shapes from")
        for index, slot in enumerate(slots)
        if fields[f"control_image_{slot}"] is None
    ]
    keywords = _parameters(fields) | {"controls": [_control(fields, slot) for slot in slots] or None}
    image = None
    if fields["mode"] != TEXT:
        if fields["picture"] is None:
            missing.append(Violation("image", "choose the picture to change"))
        else:
            image = fields["picture"].convert("RGB")
            edit = _edit(fields)
            keywords |= edit
            if fields["mode"] == INPAINT and edit["mask"].getbbox() is None:
                missing.append(Violation("inpaint.mask", "brush over the part to repaint"))
    if missing:
        raise InvalidRequest("something is missing", violations=missing)
    return Request(fields["prompt"], keywords, image, slots)


def prompts(fields: Mapping[str, Any], chance: int, wildcards: Path | None) -> list[str]:
    """The prompts of the template in the prompt's field.

    :param chance: the seed of samples.
    :param wildcards: the folder of `__NAME__`.
    :raises InvalidRequest: if it is none, or has more combinations than `MAX_PROMPTS`.
    """
    try:
        templates = Templates(wildcards)
        if fields["template"] == SAMPLES:
            return templates.samples(fields["prompt"], int(fields["samples"]), chance)
        return templates.combinations(fields["prompt"], MAX_PROMPTS)
    except (ValueError, ModuleNotFoundError) as error:
        raise InvalidRequest(
            "the prompt is no template", violations=[Violation("parameters.prompt", str(error))]
        ) from None


def _parameters(fields: Mapping[str, Any]) -> dict[str, Any]:
    sized = fields["mode"] == TEXT  # edits return at their picture's size
    whole = ("num_images", "num_inference_steps", *(("width", "height") if sized else ()))
    loras = [LoraSpec(name, fields[f"weight_{index}"]) for index, name in enumerate(fields["loras"] or ())]
    return {
        "negative_prompt": fields["negative_prompt"] or None,
        "prompt_syntax": "weighted" if fields["weighted"] else None,
        "model": fields["model"] or None,
        "preset": fields["preset"] or None,
        "scheduler": SchedulerSpec(fields["scheduler"] or None, sigma_schedule=fields["sigma_schedule"] or None),
        "guidance_scale": fields["guidance_scale"],
        "seed": None if fields["random_seed"] else seed(fields["seed"]),
        "loras": loras or None,
        "preview": fields["preview"] or None,
        "hires_fix": fields["hires_fix"] if sized and (fields["hires_fix"] or 1) > 1 else None,
        **{name: None if fields[name] is None else _whole(fields[name]) for name in whole},
    }


def seed(text: Any) -> int | None:
    """The number in the seed's field, which is text as a browser's numbers end at 2^53; None if it is empty.

    :raises InvalidRequest: if it is no number.
    """
    text = str(text if text is not None else "").strip()
    try:
        return int(text) if text else None
    except ValueError:
        raise InvalidRequest(
            "the seed is no number", violations=[Violation("parameters.seed", "must be a whole number")]
        ) from None


def _whole(number: float) -> float:
    """As an int where it is one; else the client says what is wrong with it."""
    return int(number) if number == int(number) else number


def _control(fields: Mapping[str, Any], slot: int) -> ControlSpec:
    values = {name: fields[f"control_{name}_{slot}"] for name in _CONTROL}
    return ControlSpec(**values | {"preprocessor": values["preprocessor"] or None})


def _edit(fields: Mapping[str, Any]) -> dict[str, Any]:
    if fields["mode"] == OUTPAINT:
        return {"margins": tuple(_whole(fields[side] or 0) for side in SIDES)}
    if fields["mode"] == PICTURE:
        return {"strength": fields["strength"]}
    return {
        "strength": fields["strength"],
        "mask": mask(fields["mask"] or "", fields["picture"].size),
        "mask_blur": _whole(fields["mask_blur"]),
        "keep_unmasked": bool(fields["keep_unmasked"]),
        "padding_crop": _whole(fields["padding_crop"]) if fields["closely"] else None,
    }


def mask(drawn: str, size: tuple[int, int]) -> "PIL.Image.Image":
    """The mask brushed over a picture of a size: white where the brush was.

    :param drawn: a data URL of a PNG with alpha; empty: nothing was drawn.
    """
    import PIL.Image

    if not drawn:
        return PIL.Image.new("L", size)
    with PIL.Image.open(BytesIO(base64.b64decode(drawn.partition(",")[2])), formats=["PNG"]) as strokes:
        alpha = strokes.convert("RGBA").getchannel("A").resize(size)
    return alpha.point(lambda level: 255 * (level >= 128))
