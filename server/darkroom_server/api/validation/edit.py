"""Validation of an EditRequest's image and edit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from darkroom.v1 import edits_pb2, image_service_pb2
from darkroom_plugins.request import ImageToImage, Inpaint, Outpaint
from darkroom_server.pictures.decode import BadImage

if TYPE_CHECKING:
    from darkroom_plugins.request import EditChoice, Pixels
    from darkroom_server.api.validation.violations import Findings
    from darkroom_server.models.catalog import Catalog
    from darkroom_server.models.model import Model
    from darkroom_server.pictures.uploads import Kind, Uploads

TASKS = {"inpaint": "inpaint", "outpaint": "outpaint"}


def derived_task(message: image_service_pb2.EditRequest) -> str:
    """The default task of an edit."""
    return TASKS.get(message.WhichOneof("edit") or "", "img2img")


@dataclass(frozen=True, slots=True)
class CheckedEdit:
    """An edit's fields of a Request, and the default working size of the model."""

    fields: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] | None = None  # width, height

    @property
    def choice(self) -> EditChoice | None:
        """The edit, if the request sets one."""
        choice: EditChoice | None = self.fields.get("edit")
        return choice


def decoded(path: str, data: bytes, kind: Kind, uploads: Uploads, findings: Findings) -> Pixels | None:
    """The pixels of an image file; None if invalid."""
    if not data:
        findings.invalid(path, "must be set")
        return None
    try:
        return uploads.decode(kind, data)
    except BadImage as error:
        findings.invalid(path, str(error))
        return None


class EditCheck:
    """Validates one EditRequest; violations go to the findings."""

    def __init__(self, catalog: Catalog, findings: Findings) -> None:
        self.catalog = catalog
        self.findings = findings

    def checked(self, message: image_service_pb2.EditRequest, model: Model | None) -> CheckedEdit:
        image = self._decoded("image", message.image, "image")
        kind = message.WhichOneof("edit")
        edit = getattr(self, f"_{kind}")(getattr(message, kind), image) if kind else None
        given = message.parameters
        sized = given.HasField("width") or given.HasField("height")
        fields = {
            "image": image,
            "edit": edit,
            "resize_mode": self.findings.enum("resize_mode", edits_pb2.ResizeMode, message.resize_mode) or "crop",
            "sized": sized,
        }
        if image is None or model is None:
            return CheckedEdit(fields)
        return CheckedEdit(fields, self._size(image, edit, sized, model))

    def _decoded(self, path: str, data: bytes, kind: Kind) -> Pixels | None:
        return decoded(path, data, kind, self.catalog.uploads, self.findings)

    def _image_to_image(self, given: edits_pb2.ImageToImage, image: Pixels | None) -> ImageToImage:
        return ImageToImage(strength=self.findings.number("image_to_image", given, "strength", 0.8, 0, 1))

    def _inpaint(self, given: edits_pb2.Inpaint, image: Pixels | None) -> Inpaint | None:
        number = self.findings.number
        numbers: dict[str, Any] = {
            "strength": number("inpaint", given, "strength", 1.0, 0, 1),
            "mask_blur": number("inpaint", given, "mask_blur", 4, 0, 64, "pixels"),
        }
        if given.HasField("padding_crop"):
            high = self.catalog.limits.max_edge
            numbers["padding_crop"] = number("inpaint", given, "padding_crop", 0, 0, high, "pixels")
        mask = self._decoded("inpaint.mask", given.mask, "mask")
        if mask is None:
            return None
        if image is not None and mask.shape != image.shape[:2]:
            (height, width), (high, wide) = image.shape[:2], mask.shape
            self.findings.invalid(
                "inpaint.mask", f"must be {width} x {height} pixels as the image, not {wide} x {high}"
            )
        if not mask.any():
            problem = "must have some white, which is what is repainted; black and transparent parts are kept"
            self.findings.invalid("inpaint.mask", problem)
        return Inpaint(mask=mask, keep_unmasked=given.keep_unmasked, **numbers)

    def _outpaint(self, given: edits_pb2.Outpaint, image: Pixels | None) -> Outpaint:
        sides, high = ("left", "top", "right", "bottom"), self.catalog.limits.max_edge
        margins = {side: self.findings.number("outpaint", given, side, 0, 0, high, "pixels") for side in sides}
        if not any(margins.values()):
            self.findings.invalid("outpaint", "must have a margin greater than 0")
        return Outpaint(**margins)

    def _size(self, image: Pixels, edit: EditChoice | None, sized: bool, model: Model) -> tuple[int, int]:
        """The input's size plus margins, rounded up to the size factor; with padding_crop the model's default size."""
        height, width = image.shape[:2]
        if isinstance(edit, Outpaint):
            width, height = width + edit.left + edit.right, height + edit.top + edit.bottom
        if isinstance(edit, Inpaint) and edit.padding_crop is not None:
            return model.info.default_width, model.info.default_height
        factor, high = model.info.size_factor, self.catalog.size_range(model)[1]
        wide, tall = (-(-size // factor) * factor for size in (width, height))
        most = self.catalog.max_pixels(model)
        if not sized and (max(wide, tall) > high or wide * tall > most):
            path = "outpaint" if isinstance(edit, Outpaint) else "image"
            problem = f"makes a picture of {width} x {height} pixels, more than {high} on a side or {most} in all"
            self.findings.invalid(path, f"{problem}; set parameters.width and parameters.height")
        return wide, tall
