"""Requests of the OpenAI images API: their fields, and the API's messages made of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from google.protobuf import json_format
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, ValidationInfo, field_validator
from starlette.datastructures import UploadFile

from darkroom.v1 import image_service_pb2, parameters_pb2
from darkroom_plugins.errors import InvalidRequest
from darkroom_server.web.images_errors import ApiError, from_fields, invalid

if TYPE_CHECKING:
    from starlette.requests import Request

    from darkroom.v1 import catalog_service_pb2
    from darkroom_server.web.images_masks import Masks

Message: TypeAlias = "image_service_pb2.GenerateRequest | image_service_pb2.EditRequest"

QUALITY_STEPS = {"low": 0.5, "medium": 1.0, "standard": 1.0, "high": 2.0, "hd": 2.0}  # times the model's default
FORMATS = {
    "png": parameters_pb2.IMAGE_FORMAT_PNG,
    "jpeg": parameters_pb2.IMAGE_FORMAT_JPEG,
    "webp": parameters_pb2.IMAGE_FORMAT_WEBP,
}
MAX_PARTIAL_IMAGES = 3
LEAST_STRENGTH = 0.5  # where an edit's is not known yet: for how often a preview is made, of which some are sent
FILES = ("image", "image[]", "mask")
NOT_OFFERED = {  # the API's values that are refused, by field, and why
    "background": ("transparent", "transparent is not offered: the models make opaque pictures; leave it out"),
    "response_format": ("url", "url is not offered, as no pictures are kept; b64_json is"),
    "moderation": ("low", "is the operator's to decide here; leave it out"),
}


def _parsed(value: Any) -> Any:
    """The object of a form's text."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except RecursionError:
        raise ValueError("is nested too deeply") from None


class ImageFields(BaseModel, extra="forbid"):
    """Fields of both calls; those from `seed` on are Darkroom's."""

    prompt: str
    model: str | None = None
    n: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    size: str | None = None
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] | None = None
    background: Literal["auto", "opaque"] | None = None
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    moderation: Literal["auto"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=MAX_PARTIAL_IMAGES)] | None = None
    user: str | None = None  # nothing is made of these two
    safety_identifier: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    negative_prompt: str | None = None
    steps: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    guidance: float | None = None
    scheduler: str | None = None
    preset: str | None = None
    darkroom: Annotated[dict[str, Any], BeforeValidator(_parsed)] | None = None  # a request in protobuf's JSON

    @field_validator("size")
    @classmethod
    def _size(cls, size: str | None) -> str | None:
        if size not in (None, "auto") and not re.fullmatch(r"[0-9]{1,6}x[0-9]{1,6}", size or ""):
            raise ValueError("must be auto, or WIDTHxHEIGHT in pixels: 512x512")
        return size

    @field_validator(*NOT_OFFERED, mode="before")
    @classmethod
    def _offered(cls, value: Any, info: ValidationInfo) -> Any:
        not_offered, why = NOT_OFFERED[info.field_name or ""]
        if value == not_offered:
            raise ValueError(why)
        return value

    @property
    def partials(self) -> int:
        """How many partial images of each picture are sent."""
        return self.partial_images or 0


class EditFields(ImageFields):
    """Fields of an edit, besides its files."""

    strength: Annotated[float, Field(ge=0, le=1)] | None = None


@dataclass(frozen=True)
class ParsedRequest:
    """A request's fields, and its message, whose steps and previews are still those of the fields."""

    fields: ImageFields
    message: Message
    edits: bool

    def settle(self, model: catalog_service_pb2.Model | None) -> None:
        """Fill in what depends on the model; None for one that there is not, which will be refused."""
        parameters, fields = self.message.parameters, self.fields
        default = _default_steps(model, parameters.preset) if model else 1
        if fields.steps is not None:
            parameters.num_inference_steps = fields.steps
        elif fields.quality in QUALITY_STEPS and not parameters.HasField("num_inference_steps"):
            parameters.num_inference_steps = max(1, round(default * QUALITY_STEPS[fields.quality]))
        if not fields.partials:
            self.message.preview.mode = parameters_pb2.PREVIEW_MODE_OFF
            return
        steps = parameters.num_inference_steps if parameters.HasField("num_inference_steps") else default
        if isinstance(fields, EditFields):
            steps = int(steps * (LEAST_STRENGTH if fields.strength is None else fields.strength))
        self.message.preview.every_n_steps = max(1, steps // (fields.partials + 1))
        self.message.preview.format = self.message.output.format or parameters_pb2.IMAGE_FORMAT_PNG


def _default_steps(model: catalog_service_pb2.Model, preset: str) -> int:
    """The steps of requests without any: the preset's, or the model's."""
    chosen = (each.parameters for each in model.presets if each.name == preset)
    steps = (each.num_inference_steps for each in chosen if each.HasField("num_inference_steps"))
    return next(steps, model.default_num_inference_steps)


async def parse_generation(request: Request) -> ParsedRequest:
    """A request for pictures. :raises ApiError: a field is wrong"""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise ApiError(415, "the request must be application/json", "invalid_request")
    try:
        given = json.loads(await request.body() or b"{}")
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the request is no JSON: {error}", "invalid_request") from None
    if not isinstance(given, dict):
        raise ApiError(400, "the request must be a JSON object", "invalid_request")
    fields = _checked(ImageFields, given)
    return ParsedRequest(fields, _filled(image_service_pb2.GenerateRequest(), fields), edits=False)


async def parse_edit(request: Request, masks: Masks) -> ParsedRequest:
    """A request for an edit: inpainting with a mask, image to image without. :raises ApiError: a field is wrong"""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "multipart/form-data":
        raise ApiError(415, "the request must be multipart/form-data", "invalid_request")
    async with request.form(max_files=len(FILES) * 16, max_fields=100) as form:
        files = [(name, await value.read()) for name, value in form.multi_items() if isinstance(value, UploadFile)]
        given = {name: value for name, value in form.items() if not isinstance(value, UploadFile)}
    if any(name.startswith("darkroom[") for name in given):  # as OpenAI's client spells an object in a form
        raise invalid("darkroom", "must be JSON as text in a form: json.dumps({...})")
    for name, _ in files:
        if name not in FILES:
            raise ApiError(400, f"{name}: is not a file of this API", "unknown_parameter", name)
    fields = _checked(EditFields, given)
    message = image_service_pb2.EditRequest()
    _filled(message, fields)
    message.image = _only("image", [data for name, data in files if name != "mask"])
    given_masks = [data for name, data in files if name == "mask"]
    if given_masks:
        try:
            message.inpaint.mask = await masks.converted(_only("mask", given_masks))
        except InvalidRequest as error:
            raise invalid("mask", error.violations[0].description) from None
    if fields.strength is not None:
        (message.inpaint if given_masks else message.image_to_image).strength = fields.strength
    return ParsedRequest(fields, message, edits=True)


def _only(name: str, files: list[bytes]) -> bytes:
    if not files:
        raise invalid(name, "must be set")
    if len(files) > 1:
        raise invalid(name, f"must be one picture here, not {len(files)}")
    return files[0]


def _checked(kind: type[ImageFields], given: Mapping[str, Any]) -> Any:
    try:
        fields = kind.model_validate(given)
    except ValidationError as error:
        raise from_fields(error) from None
    if fields.partials and not fields.stream:
        raise invalid("partial_images", "are sent with stream=true only")
    if fields.output_compression is not None and fields.output_format not in ("jpeg", "webp"):
        raise invalid("output_compression", "is of jpeg and webp; set output_format")
    return fields


def _filled(message: Message, fields: ImageFields) -> Message:
    """The message with all fields that do not depend on the model. `darkroom` comes first: the others go over it."""
    if fields.darkroom is not None:
        try:
            json_format.ParseDict(fields.darkroom, message)
        except Exception as error:  # also SystemError, for a key that is no Unicode
            raise invalid("darkroom", str(error)) from None
    parameters = message.parameters
    for name, (owner, own) in {
        "prompt": (parameters, "prompt"),
        "model": (parameters, "model"),
        "n": (parameters, "num_images"),
        "negative_prompt": (parameters, "negative_prompt"),
        "guidance": (parameters, "guidance_scale"),
        "preset": (parameters, "preset"),
        "seed": (parameters, "seed"),
        "scheduler": (parameters.scheduler, "name"),
    }.items():
        if (value := getattr(fields, name)) is not None:
            try:
                setattr(owner, own, value)
            except ValueError as error:  # too large a number, or no Unicode
                raise invalid(name, str(error)) from None
    if fields.size not in (None, "auto"):
        parameters.width, parameters.height = (int(part) for part in str(fields.size).split("x"))
    if fields.output_format is not None:
        message.output.format = FORMATS[fields.output_format]
    if fields.output_compression is not None:
        message.output.quality = max(1, fields.output_compression)
    return message
