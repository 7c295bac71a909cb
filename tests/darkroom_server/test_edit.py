"""Edits: sizes, masks, what comes back untouched, and what is refused."""

import io
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode
from PIL import Image

from darkroom.v1 import image_service_pb2 as image_pb
from darkroom.v1.edits_pb2 import ImageToImage, Inpaint, Outpaint
from darkroom.v1.parameters_pb2 import ControlSpec, LoraSpec, OutputOptions
from tests import picture_files
from tests.support import RunningServer, Stream, png, refused, struct


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def mask(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    result = Image.new("L", (width, height))
    result.paste(255, box)
    return result


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=int)


QUICK: dict[str, Any] = {"model": "sd", "num_inference_steps": 4, "seed": 3, "prompt": "x"}


def refusal(server: RunningServer, **arguments: Any) -> tuple[StatusCode, str, set[str]]:
    failed = refused(lambda: server.edit(**{**QUICK, **arguments}))
    return failed.code, failed.reason, set(failed.violations)


BAD = (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
CANNOT = (StatusCode.FAILED_PRECONDITION, "UNSUPPORTED_COMBINATION")

# ------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("size", [(32, 32), (37, 21), (8, 8), (1, 1), (64, 9)])
def test_a_picture_comes_back_at_its_own_size(edit_server: RunningServer, size: tuple[int, int]) -> None:
    stream = edit_server.edit(image=png(picture(*size)), **QUICK)
    (image,) = stream.of("image")
    assert (image.width, image.height) == size
    assert stream.pictures()[0].size == size
    resolved = stream.of("accepted")[0].parameters
    assert not resolved.HasField("width")
    assert resolved.task == "img2img"


def test_what_is_padded_is_cut_off_again(edit_server: RunningServer) -> None:
    """With strength 0 the picture comes back, encoded and decoded: the same as that of the padded picture, cropped."""
    odd, none = picture(37, 21), ImageToImage(strength=0)
    padded = np.pad(np.asarray(odd), [(0, 3), (0, 3), (0, 0)], mode="edge")
    stream = edit_server.edit(image=png(odd), image_to_image=none, **QUICK)
    whole = edit_server.edit(image=png(padded), image_to_image=none, **QUICK)
    assert stream.kinds == ["accepted", "image", "completed"]
    assert stream.of("accepted")[0].step_count == 0
    assert np.array_equal(stream.pixels[0], whole.pixels[0][:21, :37])


@pytest.mark.parametrize("mode", ["CROP", "PAD", "STRETCH"])
def test_a_size_that_is_asked_for_is_given(edit_server: RunningServer, mode: str) -> None:
    """As fitted by hand, with Pillow."""
    given, none = picture(48, 24), ImageToImage(strength=0)
    by_hand = {
        "CROP": given.resize((64, 32), Image.Resampling.LANCZOS).crop((16, 0, 48, 32)),
        "STRETCH": given.resize((32, 32), Image.Resampling.LANCZOS),
        "PAD": Image.fromarray(
            np.pad(np.asarray(given.resize((32, 16), Image.Resampling.LANCZOS)), [(8, 8), (0, 0), (0, 0)], mode="edge")
        ),
    }[mode]
    size = {"width": 32, "height": 32}
    stream = edit_server.edit(image=png(given), image_to_image=none, resize_mode=f"RESIZE_MODE_{mode}", **size, **QUICK)
    expected = edit_server.edit(image=png(by_hand), image_to_image=none, **QUICK)
    # diffusers goes on with resampled edges, a level or two beside the edge pixels, which a random VAE makes more of.
    assert np.abs(stream.pixels - expected.pixels).max() <= (10 if mode == "PAD" else 1)


def test_one_dimension_alone_leaves_the_other(edit_server: RunningServer) -> None:
    stream = edit_server.edit(image=png(picture(40, 32)), width=64, **QUICK)
    assert stream.pictures()[0].size == (64, 32)
    rounded = edit_server.edit(image=png(picture(40, 33)), width=64, **QUICK)
    assert rounded.pictures()[0].size == (64, 40)


def test_outpainting_adds_margins_and_keeps_the_picture(edit_server: RunningServer) -> None:
    given = picture(70, 50)
    stream = edit_server.edit(image=png(given), outpaint=Outpaint(left=10, top=3, right=17), **QUICK)
    (result,) = stream.pixels
    assert result.shape == (53, 97, 3)
    seam = 14  # the blur reaches some pixels into the picture
    kept = result[3 + seam : 53, 10 + seam : 80 - seam]
    assert np.array_equal(kept, np.asarray(given, int)[seam:, seam : 70 - seam])
    assert stream.of("accepted")[0].parameters.task == "outpaint"


# ------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("blur", [0, 2])
def test_what_is_not_masked_comes_back_untouched(edit_server: RunningServer, blur: int) -> None:
    given, hole = picture(45, 37), mask(45, 37, (5, 6, 20, 18))
    edit = Inpaint(mask=png(hole), mask_blur=blur, keep_unmasked=True)
    (result,) = edit_server.edit(image=png(given), inpaint=edit, **QUICK).pixels
    reach = 3 * blur + 1 if blur else 0
    outside = np.ones((37, 45), bool)
    outside[max(0, 6 - reach) : 18 + reach, max(0, 5 - reach) : 20 + reach] = False
    original = np.asarray(given, int)
    assert np.array_equal(result[outside], original[outside])
    assert np.abs(result[8:16, 7:18] - original[8:16, 7:18]).mean() > 8


def test_without_keeping_all_comes_from_the_decoder(edit_server: RunningServer) -> None:
    given, hole = picture(32, 32), mask(32, 32, (5, 6, 20, 18))
    (result,) = edit_server.edit(image=png(given), inpaint=Inpaint(mask=png(hole)), **QUICK).pixels
    assert np.abs(result[20:, 22:] - np.asarray(given, int)[20:, 22:]).max() > 0


def test_a_region_is_repainted_by_itself(edit_server: RunningServer) -> None:
    """At the model's own size, and pasted back: far from the mask not one pixel changes."""
    given, hole = picture(160, 120), mask(160, 120, (20, 20, 44, 40))
    stream = edit_server.edit(image=png(given), inpaint=Inpaint(mask=png(hole), padding_crop=6, mask_blur=2), **QUICK)
    (result,) = stream.pixels
    original = np.asarray(given, int)
    assert result.shape == original.shape
    assert np.array_equal(result[60:], original[60:])
    assert np.array_equal(result[:, 70:], original[:, 70:])
    assert np.abs(result[22:38, 22:42] - original[22:38, 22:42]).mean() > 8
    assert {(p.width, p.height) for p in stream.of("preview")} == {(64, 64)}


def test_a_blur_that_leaves_the_region_paints_no_black(edit_server: RunningServer) -> None:
    given, hole = Image.new("RGB", (96, 96), "white"), mask(96, 96, (40, 40, 56, 56))
    edit = Inpaint(mask=png(hole), padding_crop=0, mask_blur=20)
    (result,) = edit_server.edit(image=png(given), inpaint=edit, **QUICK).pixels
    outside = np.ones((96, 96), bool)
    outside[40:56, 40:56] = False
    assert result[outside].min() == 255


def test_a_thin_mask_is_repainted_in_spite_of_its_blur(edit_server: RunningServer) -> None:
    given, hole = picture(32, 32), mask(32, 32, (14, 0, 17, 32))
    edit = Inpaint(mask=png(hole), mask_blur=8, keep_unmasked=True)
    (result,) = edit_server.edit(image=png(given), inpaint=edit, **QUICK).pixels
    assert np.abs(result[:, 14:17] - np.asarray(given, int)[:, 14:17]).mean() > 4


def test_what_is_masked_is_decided_once(edit_server: RunningServer) -> None:
    """A grey of less than half is no mask: not for the region, what is repainted, and what is put back."""
    given, hole = picture(96, 80), mask(96, 80, (20, 20, 44, 40))
    hazy = Image.fromarray(np.where(np.asarray(hole) > 0, 200, 127).astype(np.uint8))
    for fields in ({"padding_crop": 4}, {"keep_unmasked": True}):
        hard, soft = (
            edit_server.edit(image=png(given), inpaint=Inpaint(mask=png(each), mask_blur=2, **fields), **QUICK)
            for each in (hole, hazy)
        )
        assert np.array_equal(hard.pixels, soft.pixels)


def test_a_mask_may_stand_in_its_alpha(edit_server: RunningServer) -> None:
    given, hole = picture(32, 32), mask(32, 32, (4, 4, 20, 20))
    layer = Image.new("RGBA", (32, 32), "white")
    layer.putalpha(hole)
    plain, alpha = (
        edit_server.edit(image=png(given), inpaint=Inpaint(mask=png(each)), **QUICK) for each in (hole, layer)
    )
    assert np.array_equal(plain.pixels, alpha.pixels)
    assert not alpha.of("completed")[0].warnings


def warnings_of(server: RunningServer, hole: Image.Image, **fields: Any) -> list[str]:
    edit = Inpaint(mask=png(hole), **fields)
    return list(server.edit(image=png(picture(*hole.size)), inpaint=edit, **QUICK).of("completed")[0].warnings)


@pytest.mark.parametrize("model", ["sd", "sd-9"])
def test_what_is_repainted_beside_the_mask_is_told(edit_server: RunningServer, model: str) -> None:
    """A latent of this model is as large as 2 pixels."""
    edit = {**QUICK, "model": model, "image": png(picture(32, 32))}
    stream = edit_server.edit(inpaint=Inpaint(mask=png(mask(32, 32, (13, 4, 14, 28)))), **edit)
    (warning,) = stream.of("completed")[0].warnings
    assert warning.startswith("the mask is in places thinner than a latent of the model, 2x2 pixels:")


def test_only_surprises_are_told(edit_server: RunningServer) -> None:
    line, half, white = (mask(32, 32, box) for box in ((13, 4, 14, 28), (0, 0, 16, 32), (0, 0, 32, 32)))
    assert not warnings_of(edit_server, line, keep_unmasked=True)
    assert not warnings_of(edit_server, half)
    (warning,) = warnings_of(edit_server, white)
    assert warning == "the mask is white everywhere: the whole picture is repainted"
    assert not warnings_of(edit_server, white, padding_crop=0)


def test_a_mask_that_is_cut_off_is_refused(edit_server: RunningServer) -> None:
    """Where nothing would be repainted at the size that is asked for."""
    corner = {"image": png(picture(64, 32)), "inpaint": Inpaint(mask=png(mask(64, 32, (0, 0, 8, 32))))}
    assert refusal(edit_server, width=32, height=32, **corner) == (*BAD, {"inpaint.mask"})
    padded = edit_server.edit(width=32, height=32, resize_mode="RESIZE_MODE_PAD", **corner, **QUICK)
    assert padded.kinds[-1] == "completed"
    dot = {"image": png(picture(512, 512)), "inpaint": Inpaint(mask=png(mask(512, 512, (99, 99, 100, 100))))}
    assert refusal(edit_server, width=32, height=32, **dot) == (*BAD, {"inpaint.mask"})
    margins = {"image": png(picture(32, 32)), "outpaint": Outpaint(left=16, right=16)}
    assert refusal(edit_server, width=16, height=32, **margins) == (*BAD, {"outpaint"})


# ------------------------------------------------------------------------------------------------------------- alpha


@pytest.mark.parametrize("preprocessor", ["", "canny"])
def test_a_control_map_has_no_alpha_and_a_picture_is_on_white(edit_server: RunningServer, preprocessor: str) -> None:
    """diffusers drops the alpha of a map; a picture that a map is made of is seen as on white."""
    straight = picture(32, 32).convert("RGBA")
    straight.putalpha(mask(32, 32, (0, 0, 32, 16)))
    seen = straight.convert("RGB")
    if preprocessor:
        seen = Image.alpha_composite(Image.new("RGBA", straight.size, "white"), straight).convert("RGB")
    size = {"width": 32, "height": 32, **QUICK}
    maps = []
    for given in (straight, seen):
        control = ControlSpec(model="sd-edges", image=png(given), preprocessor=preprocessor, echo_map=True)
        (made,) = edit_server.generate(controls=[control], **size).of("control_image")
        maps.append(pixels(made.image_bytes))
    assert np.array_equal(*maps)


def test_lossy_and_other_formats(edit_server: RunningServer) -> None:
    output = OutputOptions(format="IMAGE_FORMAT_WEBP")
    stream = edit_server.edit(image=png(picture(37, 21)), output=output, num_images=2, **QUICK)
    assert [p.size for p in stream.pictures()] == [(37, 21)] * 2
    assert not np.array_equal(*stream.pixels)


@pytest.mark.parametrize("kind", ["RGBA", "P", "L", "CMYK", "I;16", "LA", "1"])
def test_inputs_of_any_mode(edit_server: RunningServer, kind: str) -> None:
    given = picture(16, 16)
    image = Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257) if kind == "I;16" else given
    file = io.BytesIO()
    (image if kind == "I;16" else image.convert(kind)).save(file, "TIFF" if kind == "CMYK" else "PNG")
    assert edit_server.edit(image=file.getvalue(), **QUICK).kinds[-1] == "completed"


# --------------------------------------------------------------------------------------------------------- bad input

GOOD = png(picture(32, 32))
HOLE = png(mask(32, 32, (4, 4, 20, 20)))
HALF = mask(32, 32, (0, 0, 16, 32))


REFUSED: dict[str, tuple[dict[str, Any], set[str]]] = {
    "no image": ({}, {"image"}),
    "a text": ({"image": b"hello"}, {"image"}),
    "cut off": ({"image": GOOD[: len(GOOD) // 2]}, {"image"}),
    "a bomb": ({"image": picture_files.png((20_000, 20_000), 8, 0, bytes(10_000))}, {"image"}),
    "too wide": ({"image": png(Image.new("L", (2056, 8)))}, {"image"}),
    "strength": ({"image": GOOD, "image_to_image": ImageToImage(strength=1.5)}, {"image_to_image.strength"}),
    "not a number": (
        {"image": GOOD, "image_to_image": ImageToImage(strength=float("nan"))},
        {"image_to_image.strength"},
    ),
    "no mask": ({"image": GOOD, "inpaint": Inpaint()}, {"inpaint.mask"}),
    "a mask of another size": (
        {"image": GOOD, "inpaint": Inpaint(mask=png(mask(32, 31, (0, 0, 9, 9))))},
        {"inpaint.mask"},
    ),
    "an empty mask": ({"image": GOOD, "inpaint": Inpaint(mask=png(Image.new("L", (32, 32), 127)))}, {"inpaint.mask"}),
    "an opaque black mask": (
        {"image": GOOD, "inpaint": Inpaint(mask=png(Image.new("RGBA", (32, 32), (0, 0, 0, 255))))},
        {"inpaint.mask"},
    ),
    "a black mask that stands in its alpha": (
        {"image": GOOD, "inpaint": Inpaint(mask=png(Image.merge("LA", (Image.new("L", (32, 32)), HALF))))},
        {"inpaint.mask"},
    ),
    "a blur and a margin": (
        {"image": GOOD, "inpaint": Inpaint(mask=HOLE, mask_blur=65, padding_crop=-1, strength=-1)},
        {"inpaint.mask_blur", "inpaint.padding_crop", "inpaint.strength"},
    ),
    "no margins": ({"image": GOOD, "outpaint": Outpaint()}, {"outpaint"}),
    "negative margins": ({"image": GOOD, "outpaint": Outpaint(left=-1, top=2)}, {"outpaint.left"}),
    "endless margins": ({"image": GOOD, "outpaint": Outpaint(left=2040)}, {"outpaint"}),
    "a mode": ({"image": GOOD, "resize_mode": 99}, {"resize_mode"}),
    "a task for Generate": ({"image": GOOD, "task": "txt2img"}, {"parameters.task"}),
    "another task than the edit": (
        {"image": GOOD, "task": "inpaint", "outpaint": Outpaint(left=8)},
        {"parameters.task"},
    ),
    "a task without its edit": ({"image": GOOD, "task": "outpaint"}, {"outpaint"}),
    "a task without its mask": ({"image": GOOD, "task": "inpaint"}, {"inpaint"}),
    "everything at once": (
        {
            "image": b"x",
            "inpaint": Inpaint(mask=b"y", strength=9),
            "width": 9,
            "controls": [ControlSpec(image=b"z", scale=-1, start=2, end=0.5)],
            "loras": [LoraSpec(name="sd-unet-a", weight=11), LoraSpec(name="sd-unet-a")],
            "request_id": "?",
        },
        {"image", "inpaint.mask", "inpaint.strength", "parameters.width", "request_id"}
        | {f"parameters.controls[0].{field}" for field in ("model", "image", "scale", "start")}
        | {"parameters.loras[0].weight", "parameters.loras[1].name"},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_by_its_path(edit_server: RunningServer, name: str) -> None:
    arguments, paths = REFUSED[name]
    assert refusal(edit_server, **arguments) == (*BAD, paths)


def test_a_model_for_inpainting_does_nothing_else(edit_server: RunningServer) -> None:
    assert refusal(edit_server, image=GOOD, model="sd-9") == (*CANNOT, {"parameters.task"})
    failed = refused(lambda: edit_server.generate(**{**QUICK, "model": "sd-9"}))
    assert failed.code is StatusCode.FAILED_PRECONDITION
    outpainted = edit_server.edit(image=GOOD, outpaint=Outpaint(right=8), **{**QUICK, "model": "sd-9"})
    assert outpainted.kinds[-1] == "completed"


def test_a_scheduler_that_puts_no_noise_on_pictures_is_refused(edit_server: RunningServer) -> None:
    assert refusal(edit_server, image=GOOD, scheduler="ipndm") == (*CANNOT, {"parameters.scheduler"})


def test_refusals_leave_nothing_behind(edit_server: RunningServer) -> None:
    assert edit_server.app.jobs.active_jobs == 0


# ------------------------------------------------------------------------------------------------------- Preprocess


def preprocess(server: RunningServer, **fields: Any) -> Stream:
    return Stream(server.images.Preprocess(image_pb.PreprocessRequest(**fields))).read()


def test_a_map_is_made_of_a_picture(edit_server: RunningServer) -> None:
    square = Image.new("RGB", (50, 40), "black")
    square.paste("white", (10, 10, 30, 30))
    stream = preprocess(edit_server, preprocessor="canny", image=png(square))
    assert stream.kinds == ["accepted", "control_image", "completed"]
    (made,) = stream.of("control_image")
    assert (made.width, made.height, made.media_type, made.preprocessor) == (50, 40, "image/png", "canny")
    edges = pixels(made.image_bytes)
    assert edges[20, 9:12].max() == 255
    assert edges[20, 20].max() == 0


def test_preprocess_refuses_with_all_violations(edit_server: RunningServer) -> None:
    options = struct({"low_threshold": 200, "high_threshold": 100})
    bad = {"preprocessor_options": options, "request_id": "?", "format": 99}
    failed = refused(lambda: preprocess(edit_server, preprocessor="canny", **bad))
    assert failed.reason == "INVALID_REQUEST"
    assert set(failed.violations) == {"request_id", "preprocessor_options", "format", "image"}
    failed = refused(lambda: preprocess(edit_server, preprocessor="nope", image=GOOD))
    assert failed.reason == "PREPROCESSOR_NOT_FOUND"
