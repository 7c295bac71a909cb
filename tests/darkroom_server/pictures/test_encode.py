"""Finished pictures as files: what is written into them, and what is said of what does not fit."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from darkroom_client import read_recipe
from darkroom_plugins.request import OutputOptions
from darkroom_plugins.sample import Picture
from darkroom_server.pictures.encode import encode_picture

PROMPT = "a “red” circle ☂ <&> 圆 \U0001f534 \ufffe \x00 ]]> \\u0041 \r\n\t"


def picture(prompt: str = PROMPT) -> Picture:
    metadata = {"darkroom": "0.1.0", "parameters": {"prompt": prompt, "seed": 7}}
    return Picture(np.zeros((8, 8, 3), np.uint8), 7, metadata=metadata, text={"parameters": f"{prompt}\nSteps: 3"})


def comment_of(data: bytes) -> str:
    comment = Image.open(io.BytesIO(data)).getexif().get_ifd(0x8769)[0x9286]
    return bytes(comment).removeprefix(b"UNICODE\0").decode("utf-16-be")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("prompt", [PROMPT, "圆" * 10_000], ids=["odd", "long"])
def test_every_format_carries_the_recipe(tmp_path, kind, prompt):
    data, warnings = encode_picture(picture(prompt), OutputOptions(format=kind))
    (tmp_path / "a").write_bytes(data)
    assert read_recipe(tmp_path / "a").parameters.prompt == prompt
    assert warnings == ()
    if kind != "png":
        assert comment_of(data) == f"{prompt}\nSteps: 3"


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_without_metadata_there_is_none(kind):
    data, _ = encode_picture(picture("secret"), OutputOptions(format=kind, embed_metadata=False))
    assert b"secret" not in data
    assert "secret".encode("utf-16-be") not in data


def test_a_jpeg_says_what_does_not_fit():
    data, (recipe, comment) = encode_picture(picture("圆" * 40_000), OutputOptions(format="jpeg"))
    assert recipe == "a JPEG holds 65,000 bytes of recipe, and this one has 120,301: the file has none"
    assert comment == "the EXIF comment of the JPEG is cut to 60,000 of 80,018 bytes"
    assert comment_of(data) == "圆" * 30_000
    assert "xmp" not in Image.open(io.BytesIO(data)).info


def test_a_webp_has_room_for_all(tmp_path):
    data, warnings = encode_picture(picture("圆" * 40_000), OutputOptions(format="webp"))
    (tmp_path / "a.webp").write_bytes(data)
    assert (len(read_recipe(tmp_path / "a.webp").parameters.prompt), warnings) == (40_000, ())


def test_xmp_of_others_is_read_and_ignored(tmp_path):
    """A program that writes properties as attributes, one that writes no XML, one with no recipe."""
    start = '<x xmlns:d="urn:darkroom:v1" xmlns:e="urn:e"><y '
    recipe = json.dumps(json.dumps({"parameters": {"prompt": "a"}})).replace("\\", "").replace('"', "&quot;")[6:-6]
    packet = f'{start}d:recipe="{recipe}"/></x>'
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", xmp=packet.encode())
    assert read_recipe(tmp_path / "a.webp").parameters.prompt == "a"
    for other in (b"<x", b"", b"<x/>"):
        Image.new("RGB", (8, 8)).save(tmp_path / "b.jpg", xmp=other)
        with pytest.raises(Exception, match="carries no recipe"):
            read_recipe(tmp_path / "b.jpg")
