"""Pictures as users meet them: in a terminal, in a notebook, and as input of another job."""

import asyncio
import importlib
import types
from io import BytesIO

import numpy as np
import PIL.Image
import pytest

from darkroom.v1 import parameters_pb2
from darkroom_client import Accepted, ControlSpec, Image, InvalidRequest, Preview
from darkroom_server.config.settings import Limits
from darkroom_server.pictures.decode import decode_image


def picture(media_type="image/png", size=8):
    buffer = BytesIO()
    PIL.Image.new("RGB", (size, size), "red").save(buffer, media_type.partition("/")[2])
    return Image("job", 1, buffer.getvalue(), media_type, size, size, 0, 7, None, {"parameters": {"prompt": "a"}})


def test_reprs_are_short(client):
    events = list(client.generate("a red circle"))
    for event in events:
        assert len(repr(event)) < 700, event
    image = events[-2]
    assert f"image_bytes=<{len(image.image_bytes):,} bytes>, media_type='image/png'" in repr(image)
    assert repr(image).endswith(
        "metadata={'darkroom': '0.1.0', 'parameters': {'prompt': 'a red circle', 'seed': '7'}})"
    )
    assert "parameters=Parameters(prompt='a red circle', num_inference_steps=3, seed=7)" in repr(events[0])
    assert "timings=Timings(queue_seconds=0.0," in repr(events[-1])


def test_reprs_of_what_holds_pictures_are_short():
    spec = parameters_pb2.SchedulerSpec(name="euler", sigma_schedule=2)
    spec.options.update({"order": 3})
    controls = [parameters_pb2.ControlSpec(model="canny", image=b"x" * 3000)]
    parameters = parameters_pb2.Parameters(scheduler=spec, controls=controls, prompt="long " * 1000)
    parameters.extensions["vignette"].update({"strength": 0.5})
    shown = repr(Accepted("job", 1, parameters, (7,), 3, parameters_pb2.PreviewOptions(mode=2), None))
    assert "SchedulerSpec(name='euler', sigma_schedule='karras', options={'order': 3})" in shown
    assert "controls=(ControlSpec(model='canny', image=<3,000 bytes>),)" in shown
    assert "extensions={'vignette': {'strength': 0.5}}" in shown
    assert "PreviewOptions(mode='latent-rgb')" in shown
    assert len(shown) < 1000
    assert repr(ControlSpec("canny", b"x" * 3000)).startswith("ControlSpec(model='canny', image=<3,000 bytes>, ")


@pytest.mark.parametrize(
    ("media_type", "png", "jpeg"),
    [("image/png", True, False), ("image/jpeg", False, True), ("image/webp", True, False)],
)
def test_a_picture_shows_itself(media_type, png, jpeg):
    shown = picture(media_type)
    data, as_jpeg = shown._repr_png_(), shown._repr_jpeg_()
    assert ((data is not None), (as_jpeg is not None)) == (png, jpeg)
    with PIL.Image.open(BytesIO(data or as_jpeg)) as opened:
        assert (opened.format, opened.size) == ("JPEG" if jpeg else "PNG", (8, 8))


@pytest.fixture
def notebook(monkeypatch):
    """What a notebook's cell shows: a list of outputs, each the list of what stood in it."""
    outputs = []

    class Handle:
        def __init__(self, output):
            self.update = output.append

    def display(value, display_id=False, raw=False):
        outputs.append([value])
        return Handle(outputs[-1]) if display_id else None

    module = types.ModuleType("IPython.display")
    module.display = display
    found = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name: module if name == "IPython.display" else found(name))
    return outputs


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_a_stream_draws_itself(client, notebook):
    stream = client.generate("a red circle")
    stream._ipython_display_()
    ((*previews, image),) = notebook
    assert [type(each) for each in previews] == [Preview] * 3
    assert image == stream.image()
    stream._ipython_display_()  # again, after its end
    assert notebook[1:] == [[image]]


def test_an_async_stream_draws_itself_while_it_is_awaited(async_client, notebook):
    async def main():
        async with async_client as client:
            stream = client.generate("a red circle")
            stream._ipython_display_()
            image = await stream.image()
            await until(lambda: any(image in output for output in notebook))
            return image

    assert isinstance(asyncio.run(main()), Image)


def test_a_notebook_shows_what_went_wrong(async_client, scripted, notebook):
    scripted.script = lambda request, context: []

    async def main():
        async with async_client as client:
            stream = client.generate("a red circle")
            stream._ipython_display_()
            await until(lambda: notebook)

    asyncio.run(main())
    assert notebook[0][0]["text/plain"].startswith("DarkroomError: the server ended the stream")


@pytest.fixture
def sent(scripted, client):
    """The picture that arrives at the server for an argument of `edit`, opened; None for an event."""

    def send(image):
        stream = client.edit(image, "a")
        scripted.wait_started(stream.request_id)
        return PIL.Image.open(BytesIO(scripted.requests[-1].image))

    return send


def test_events_go_in_as_they_are(scripted, client):
    for event in (picture(), picture("image/jpeg")):
        stream = client.edit(event, "a", mask=event, controls=[ControlSpec("canny", event)])
        scripted.wait_started(stream.request_id)
        request = scripted.requests[-1]
        found = {request.image, request.inpaint.mask, request.parameters.controls[0].image}
        assert found == {event.image_bytes}


@pytest.mark.parametrize(
    ("array", "mode", "pixel"),
    [
        (np.full((4, 6), 9, np.uint8), "L", 9),
        (np.full((4, 6, 1), 9, np.uint8), "L", 9),
        (np.full((4, 6, 3), 9, np.uint8), "RGB", (9, 9, 9)),
        (np.full((4, 6, 4), 9, np.uint8), "RGBA", (9, 9, 9, 9)),
        (np.full((4, 6), True), "L", 255),
        (np.full((4, 6, 3), 0.2), "RGB", (51, 51, 51)),
        (np.full((4, 6), 1, np.float32), "L", 255),
        (np.full((8, 6, 3), 9, np.uint8)[::2], "RGB", (9, 9, 9)),
    ],
)
def test_arrays(sent, array, mode, pixel):
    image = sent(array)
    assert (image.size, image.mode, image.getpixel((0, 0))) == ((6, 4), mode, pixel)


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.zeros((3, 4, 6), np.uint8), r"\(height, width, 3 or 4\), not \(3, 4, 6\)"),
        (np.zeros((1, 4, 6, 3), np.uint8), r"not \(1, 4, 6, 3\)"),
        (np.zeros((0, 6), np.uint8), r"not \(0, 6\)"),
        (np.full((4, 6), 255.0), "floats from 0 to 1, not 255 to 255"),
        (np.full((4, 6), np.nan), "floats from 0 to 1, not nan to nan"),
        (np.zeros((4, 6), np.int64), "uint8, bool or floats from 0 to 1, not int64"),
        (object(), "an Image event, a PIL image or a NumPy array, not object"),
        (b"".join, "not builtin_function_or_method"),
    ],
)
def test_what_is_no_picture(client, array, problem):
    with pytest.raises(InvalidRequest, match=f"image: must .*{problem}"):
        client.edit(array, "a")


def test_files(sent, tmp_path, client):
    path = tmp_path / "a.png"
    PIL.Image.new("RGB", (6, 4), "red").save(path)
    with path.open("rb") as file:
        assert sent(file).size == (6, 4)
        assert sent(file).size == (6, 4)  # read to its end before
    buffer = BytesIO()
    PIL.Image.new("RGB", (6, 4), "red").save(buffer, "PNG")  # which leaves it at its end
    assert sent(buffer).size == (6, 4)
    with path.open(encoding="latin-1") as text, pytest.raises(InvalidRequest, match="opened in binary mode"):
        client.edit(text, "a")
    with pytest.raises(InvalidRequest, match=r"^the request is not valid\n  image: there is no file no\.png$"):
        client.edit("no.png", "a")


@pytest.fixture
def decoded(scripted, sent):
    """The red levels that the server reads from an argument of `edit`: (height, width) uint8."""

    def decode(image):
        sent(image)
        return decode_image(scripted.requests[-1].image, Limits())[..., 0]

    return decode


@pytest.mark.parametrize(
    "modes",
    ["1", "L", "LA", "LA La", "P", "P PA", "RGB", "RGBA", "RGBA RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"],
)
def test_modes_of_pillow(decoded, modes):
    image = PIL.Image.fromarray(np.array([[[0] * 3, [255] * 3]], np.uint8))
    for mode in modes.split():
        image = image.convert(mode)
    assert decoded(image) == pytest.approx(np.array([[0, 255]]), abs=1)  # of LAB's conversion


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("I", "=i4"), ("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I;16N", "=u2")],
)
@pytest.mark.parametrize("levels", [[0, 64, 128, 255], [0, 1, 2, 3]])
def test_modes_of_more_than_eight_bits(decoded, mode, kind, levels):
    values = np.array([levels], kind) * np.array(257, kind)
    assert decoded(PIL.Image.frombytes(mode, (4, 1), values.astype(kind).tobytes())).tolist() == [levels]


def test_colours_of_cmyk_are_kept(sent):
    image = sent(PIL.Image.new("CMYK", (6, 4), (0, 255, 255, 0)))
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", (255, 0, 0))


def test_floats_of_pillow_keep_their_values(sent):
    image = sent(PIL.Image.new("F", (6, 4), 0.25))
    assert (image.format, image.getpixel((0, 0))) == ("TIFF", 0.25)
