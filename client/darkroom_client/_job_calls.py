"""The calls that make jobs, written once for both clients."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar, Unpack

from darkroom.v1 import image_service_pb2
from darkroom_client import _requests
from darkroom_client.options import ImageFormatName, ImageLike, JobOptions, ResizeModeName

StreamT = TypeVar("StreamT")


class JobCalls(ABC, Generic[StreamT]):
    """Each call starts a job on the server at once and returns the stream of its events."""

    @abstractmethod
    def _start(self, rpc: str, request: Any, timeout: float | None, *, outlives: bool) -> StreamT:
        """Calls a streaming RPC of ImageService; `outlives`: the job goes on without its stream."""

    def generate(self, prompt: str | None = None, **options: Unpack[JobOptions]) -> StreamT:
        """Pictures from text.

        The keywords are those of `darkroom_client.options.JobOptions`; their names follow diffusers::

            client.generate("a red circle on a blue background", num_inference_steps=30, seed=7,
                            scheduler=SchedulerSpec("dpmpp-2m", sigma_schedule="karras"))

        What is left out takes the server's default. `parameters` takes the recipe of an earlier picture, and the
        prompt and the other keywords override what it says.

        :raises InvalidRequest: at once, when a value does not fit into the request at all.
        :raises DarkroomError: from the stream, for everything that the server has to say.
        """
        request = _requests.generate(prompt, options)
        return self._start("Generate", request, options.get("timeout"), outlives=_kept(request))

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
        """A picture changed: inpainted where a `mask` is given (white is repainted), outpainted where `margins` are
        (left, top, right, bottom, in pixels), and else repainted as a whole::

            client.edit("photo.png", "a watercolour", strength=0.5)
            client.edit("photo.png", "a red hat", mask="mask.png", keep_unmasked=True)
            client.edit("photo.png", "a wide beach", margins=(128, 0, 128, 0))

        Pictures are paths, the bytes of files, or PIL pictures. `strength` is 0 (the picture stays) to 1 (nothing of it
        is left); `mask_blur` and `padding_crop` are pixels. All keywords of `generate` apply too.

        :raises InvalidRequest: at once, when a value does not fit into the request at all.
        :raises TypeError: when keywords exclude each other.
        :raises DarkroomError: from the stream, for everything that the server has to say.
        """
        inpaint = {"mask_blur": mask_blur, "padding_crop": padding_crop, "keep_unmasked": keep_unmasked}
        change = _change(strength, mask, inpaint, margins) | {"resize_mode": resize_mode}
        request = _requests.edit(image, prompt, change, options)
        return self._start("Edit", request, options.get("timeout"), outlives=_kept(request))

    def watch(self, request_id: str, *, after_sequence: int = 0, timeout: float | None = None) -> StreamT:
        """The events of a job that runs already or ended lately, those after `after_sequence`.

        Closing this stream leaves the job alone; its `cancel()` stops it.

        :raises DarkroomError: from the stream; `RequestNotFound` when there is no such job.
        """
        request = image_service_pb2.WatchRequest(request_id=request_id, after_sequence=after_sequence)
        return self._start("Watch", request, timeout, outlives=True)

    def preprocess(
        self,
        image: ImageLike,
        preprocessor: str,
        *,
        options: Mapping[str, Any] | None = None,
        format: ImageFormatName | None = None,
        timeout: float | None = None,
    ) -> StreamT:
        """A control map made from a picture: the stream's `ControlImage` event::

            client.preprocess("photo.png", "canny").control_images()[0].save("edges.png")

        :raises InvalidRequest: at once, when a value does not fit into the request at all.
        :raises DarkroomError: from the stream, for everything that the server has to say.
        """
        request = _requests.preprocess(image, preprocessor, options, format)
        return self._start("Preprocess", request, timeout, outlives=False)


def _kept(request: Any) -> bool:
    return bool(request.disconnect_policy)


def _change(
    strength: float | None,
    mask: ImageLike | None,
    inpaint: Mapping[str, Any],
    margins: tuple[int, int, int, int] | None,
) -> dict[str, Any]:
    """The fields of EditRequest's `edit`; none where nothing says which kind of change is meant.

    :raises TypeError: for values that exclude each other.
    """
    stray = [name for name, value in inpaint.items() if value is not None and mask is None]
    if stray:
        raise TypeError(f"{', '.join(stray)} needs a mask")
    if margins is not None and (mask is not None or strength is not None):
        raise TypeError("margins cannot be combined with mask or strength")
    if mask is not None:
        return {"inpaint": {"mask": mask, "strength": strength, **inpaint}}
    if margins is not None:
        return {"outpaint": dict(zip(("left", "top", "right", "bottom"), margins, strict=True))}
    return {"image_to_image": {"strength": strength}} if strength is not None else {}
