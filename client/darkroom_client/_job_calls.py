"""The methods of both clients that start jobs."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar, Unpack

from darkroom.v1 import image_service_pb2, parameters_pb2
from darkroom_client import _requests
from darkroom_client._signatures import lists_keywords
from darkroom_client.options import ImageFormatName, ImageLike, JobOptions, ResizeModeName

StreamT = TypeVar("StreamT")


class JobCalls(ABC, Generic[StreamT]):
    """Base of both clients. Each method starts a job at once and returns its event stream."""

    @abstractmethod
    def _start(self, rpc: str, request: Any, timeout: float | None, *, detached: bool) -> StreamT:
        """Calls a streaming RPC of ImageService. `detached`: the job goes on after its stream ends."""

    @lists_keywords
    def generate(self, prompt: str | None = None, **options: Unpack[JobOptions]) -> StreamT:
        """Text to image.

        Takes the keywords of `darkroom_client.options.JobOptions`, whose names follow diffusers::

            client.generate("a red circle on a blue background", num_inference_steps=30, seed=7,
                            scheduler=SchedulerSpec("dpmpp-2m", sigma_schedule="karras"))

        Omitted keywords take the server's defaults. `parameters` takes the recipe of an earlier picture; the prompt
        and the other keywords override it.

        :raises InvalidRequest: before the call, if the request cannot hold a value, such as a text as `width`.
        :raises DarkroomError: from the stream, if the server refuses the request or the job fails.
        """
        request = _requests.generate(prompt, options)
        return self._start("Generate", request, options.get("timeout"), detached=_is_detached(request))

    @lists_keywords
    def edit(
        self,
        image: ImageLike,
        prompt: str | None = None,
        *,
        strength: float | None = None,
        mask: ImageLike | None = None,
        mask_blur: int | None = None,
        padding_crop: int | None = None,
        keep_unmasked: bool | None = None,
        margins: tuple[int, int, int, int] | None = None,
        resize_mode: ResizeModeName | None = None,
        **options: Unpack[JobOptions],
    ) -> StreamT:
        """Inpainting with `mask`, outpainting with `margins`, image to image without either::

            client.edit("photo.png", "a watercolour", strength=0.5)
            client.edit("photo.png", "a red hat", mask="mask.png", keep_unmasked=True)
            client.edit("photo.png", "a wide beach", margins=(128, 0, 128, 0))

        Also takes the keywords of `generate`. Pictures are paths, bytes of image files, files opened in binary mode,
        pictures from streams, PIL images or NumPy arrays: see `darkroom_client.options.ImageLike`.

        :param strength: share of the denoising steps to run, 0 (picture unchanged) to 1 (nothing of it left).
        :param mask: of the picture's size; white is repainted, black and transparent parts are kept.
        :param mask_blur: softening of the mask's edge. Pixels.
        :param padding_crop: repaint only the mask's bounding box plus this margin, at full resolution. Pixels.
        :param keep_unmasked: copy the pixels outside of the mask from the input.
        :param margins: left, top, right, bottom. Pixels.
        :param resize_mode: how the picture is fitted to `width` and `height`.
        :raises InvalidRequest: before the call, if the request cannot hold a value, such as a text as `width`.
        :raises TypeError: before the call, for keywords that exclude each other.
        :raises DarkroomError: from the stream, if the server refuses the request or the job fails.
        """
        inpaint = {"mask_blur": mask_blur, "padding_crop": padding_crop, "keep_unmasked": keep_unmasked}
        fields = _edit_fields(strength, mask, inpaint, margins) | {"resize_mode": resize_mode}
        request = _requests.edit(image, prompt, fields, options)
        return self._start("Edit", request, options.get("timeout"), detached=_is_detached(request))

    def watch(self, request_id: str, *, after_sequence: int = 0, timeout: float | None = None) -> StreamT:
        """Attaches to a kept job (`keep=True`), running or ended; yields its events after `after_sequence`.

        Closing this stream leaves the job running; its `cancel()` cancels the job. When the connection or the server is
        lost, the stream is taken up again, as that of a kept job is.

        :raises DarkroomError: from the stream; `RequestNotFound` if there is no such job.
        """
        request = image_service_pb2.WatchRequest(request_id=request_id, after_sequence=after_sequence)
        return self._start("Watch", request, timeout, detached=True)

    def preprocess(
        self,
        image: ImageLike,
        preprocessor: str,
        *,
        options: Mapping[str, Any] | None = None,
        format: ImageFormatName | None = None,
        timeout: float | None = None,
    ) -> StreamT:
        """Makes a control map from a picture, which the stream yields as `ControlImage`::

            client.preprocess("photo.png", "canny").control_images()[0].save("edges.png")

        :raises InvalidRequest: before the call, if the request cannot hold a value.
        :raises DarkroomError: from the stream, if the server refuses the request or the job fails.
        """
        request = _requests.preprocess(image, preprocessor, options, format)
        return self._start("Preprocess", request, timeout, detached=False)


def _is_detached(request: Any) -> bool:
    """Whether the job goes on after its stream ends."""
    return bool(request.disconnect_policy == parameters_pb2.DISCONNECT_POLICY_KEEP)


def _edit_fields(
    strength: float | None,
    mask: ImageLike | None,
    inpaint_options: Mapping[str, Any],
    margins: tuple[int, int, int, int] | None,
) -> dict[str, Any]:
    """The field of EditRequest's oneof `edit`; empty if no argument implies the kind of edit.

    :raises TypeError: for arguments that exclude each other.
    """
    maskless = [name for name, value in inpaint_options.items() if value is not None and mask is None]
    if maskless:
        raise TypeError(f"{', '.join(maskless)} needs a mask")
    if margins is not None and (mask is not None or strength is not None):
        raise TypeError("margins cannot be combined with mask or strength")
    if mask is not None:
        return {"inpaint": {"mask": mask, "strength": strength, **inpaint_options}}
    if margins is not None:
        return {"outpaint": dict(zip(("left", "top", "right", "bottom"), margins, strict=True))}
    return {"image_to_image": {"strength": strength}} if strength is not None else {}
