"""The OpenAI images API, by OpenAI's own client."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from darkroom.v1 import edits_pb2
from darkroom.v1.image_service_pb2 import CancelRequest
from tests.support import RunningServer, generate_request, png

PICTURE = np.tile(np.arange(32, dtype=np.uint8)[:, None, None] * 8, (1, 32, 3))


@pytest.fixture
def client(web: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{web.app.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def mask(repaint: tuple[int, int, int, int]) -> bytes:
    """A mask as that API has it: what is transparent is repainted; its colours say nothing."""
    picture = Image.new("RGBA", (32, 32), (255, 255, 255, 255))
    picture.paste((0, 0, 0, 0), repaint)
    return png(picture)


def data(image: Any) -> bytes:
    return base64.b64decode(image.b64_json)


def test_the_same_pictures_as_by_grpc(web: RunningServer, client: openai.OpenAI) -> None:
    own = {"seed": 7, "steps": 3, "guidance": 4.5, "negative_prompt": "no", "scheduler": "ddim"}
    more = {"deterministic": True, "request_id": "a"}
    made = client.images.generate(prompt="a circle", n=2, size="40x32", extra_body={**own, "darkroom": more})
    request = generate_request(
        prompt="a circle",
        num_images=2,
        width=40,
        height=32,
        seed=7,
        num_inference_steps=3,
        guidance_scale=4.5,
        negative_prompt="no",
        scheduler="ddim",
        deterministic=True,
        request_id="a",
    )
    assert dict(enumerate(map(data, made.data))) == web.start(request).read().files()
    assert [image.seed for image in made.data] == [7, 8]
    assert (made.size, made.output_format, made.background) == ("40x32", "png", "opaque")


def test_the_same_edits_as_by_grpc(web: RunningServer, client: openai.OpenAI) -> None:
    own = {"seed": 7, "steps": 4, "strength": 0.9, "darkroom": json.dumps({"deterministic": True})}
    common = {"prompt": "a circle", "seed": 7, "num_inference_steps": 4, "deterministic": True, "image": png(PICTURE)}
    made = client.images.edit(image=png(PICTURE), prompt="a circle", extra_body=own)
    expected = web.edit(image_to_image=edits_pb2.ImageToImage(strength=0.9), **common)
    assert data(made.data[0]) == expected.files()[0]
    made = client.images.edit(image=[png(PICTURE)], mask=mask((8, 8, 24, 24)), prompt="a circle", extra_body=own)
    white = np.zeros((32, 32), np.uint8)
    white[8:24, 8:24] = 255
    expected = web.edit(inpaint=edits_pb2.Inpaint(mask=png(white), strength=0.9), **common)
    assert data(made.data[0]) == expected.files()[0]


@pytest.mark.parametrize(("quality", "steps"), [("low", 4), ("medium", 8), ("high", 16), ("auto", 8)])
def test_quality_is_steps(client: openai.OpenAI, quality: Any, steps: int) -> None:
    made = client.images.generate(prompt="x", quality=quality)
    recipe = json.loads(Image.open(io.BytesIO(data(made.data[0]))).text["darkroom"])
    assert recipe["parameters"]["num_inference_steps"] == steps
    made = client.images.generate(prompt="x", quality=quality, extra_body={"preset": "fast"})
    recipe = json.loads(Image.open(io.BytesIO(data(made.data[0]))).text["darkroom"])
    assert recipe["parameters"]["num_inference_steps"] == steps * 6 // 8
    assert recipe["parameters"]["scheduler"]["name"] == "euler"


@pytest.mark.parametrize("kind", ["jpeg", "webp", "png"])
def test_formats(client: openai.OpenAI, kind: Any) -> None:
    compression = {} if kind == "png" else {"output_compression": 0}
    made = client.images.generate(prompt="x", output_format=kind, response_format="b64_json", **compression)
    assert Image.open(io.BytesIO(data(made.data[0]))).format == kind.upper()
    assert made.output_format == kind


@pytest.mark.parametrize("partial_images", [0, 1, 3])
def test_partial_images(client: openai.OpenAI, partial_images: int) -> None:
    events = list(client.images.generate(prompt="x", n=2, stream=True, partial_images=partial_images))
    for index in range(2):
        mine = [event for event in events if event.image_index == index]
        kinds = [event.type for event in mine]
        assert kinds == ["image_generation.partial_image"] * partial_images + ["image_generation.completed"]
        assert [event.partial_image_index for event in mine[:-1]] == list(range(partial_images))
        assert {event.output_format for event in mine} == {"png"}
        pictures = [np.asarray(Image.open(io.BytesIO(data(event)))).tobytes() for event in mine]
        assert len(set(pictures)) == len(pictures)
        assert mine[-1].size == "32x32"
        assert mine[-1].usage.total_tokens == 0


def test_partial_images_of_an_edit(client: openai.OpenAI) -> None:
    arguments: dict[str, Any] = {"prompt": "x", "stream": True, "partial_images": 2, "quality": "high"}
    events = list(client.images.edit(image=png(PICTURE), mask=mask((0, 0, 16, 32)), **arguments))
    assert [event.type for event in events] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    assert [event.size for event in events] == ["auto", "auto", "32x32"]


def test_events_are_those_of_the_api(http: httpx2.Client) -> None:
    answer = http.post("/v1/images/generations", json={"prompt": "x", "stream": True, "partial_images": 1})
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.splitlines() if line.startswith("event: ")]
    assert lines == ["event: image_generation.partial_image", "event: image_generation.completed"]


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object) == ("tiny", "model")
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("dall-e-3")
    assert caught.value.code == "model_not_found"


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "size": ({"size": "big"}, "size", "WIDTHxHEIGHT"),
    "size of the model": ({"size": "33x32"}, "size", "must be a multiple of 8"),
    "number": ({"n": 99}, "n", "must be from 1 to 16, not 99"),
    "no number": ({"n": 0}, "n", "greater than or equal to 1"),
    "quality": ({"quality": "ultra"}, "quality", "'low', 'medium'"),
    "background": ({"background": "transparent"}, "background", "transparent is not offered"),
    "format": ({"output_format": "gif"}, "output_format", "'png', 'jpeg' or 'webp'"),
    "url": ({"response_format": "url"}, "response_format", "url is not offered"),
    "compression": ({"output_compression": 50}, "output_compression", "is of jpeg and webp"),
    "moderation": ({"moderation": "low"}, "moderation", "the operator's"),
    "partial images": ({"partial_images": 1}, "partial_images", "stream=true only"),
    "too many": ({"stream": True, "partial_images": 4}, "partial_images", "less than or equal to 3"),
    "style": ({"style": "vivid"}, "style", "is unknown, or not offered here"),
    "large number": ({"n": 2**40}, "n", "less than 2147483648"),
    "seed": ({"extra_body": {"seed": -1}}, "seed", "greater than or equal to 0"),
    "large seed": ({"extra_body": {"seed": 10**400}}, "seed", "less than 9223372036854775808"),
    "steps": ({"extra_body": {"steps": 0}}, "steps", "greater than or equal to 1"),
    "guidance": ({"extra_body": {"guidance": -1}}, "guidance", "must be from 0"),
    "field": ({"extra_body": {"sed": 1}}, "sed", "is unknown, or not offered here"),
    "request": ({"extra_body": {"darkroom": {"x": 1}}}, "darkroom", 'no field named "x"'),
    "in the request": (
        {"extra_body": {"darkroom": {"parameters": {"clip_skip": 99}}}},
        "darkroom.parameters.clip_skip",
        "must be",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_fields_are_refused_by_name(client: openai.OpenAI, name: str) -> None:
    fields, param, words = REFUSED[name]
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="x", **fields)
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"scheduler": "\ud800"}, "scheduler"), ({"\ud800": 1}, "the request"), ({"darkroom": {"\ud800": 1}}, "darkroom")],
)
def test_text_that_is_no_unicode_is_refused_by_name(http: httpx2.Client, fields: dict[str, Any], param: str) -> None:
    """JSON can have it, and messages cannot."""
    body = json.dumps({"prompt": "x", **fields})
    answer = http.post("/v1/images/generations", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_bad_files_are_refused_by_name(client: openai.OpenAI) -> None:
    picture, hole = png(PICTURE), mask((0, 0, 4, 4))
    whole, small = png(Image.new("RGB", (32, 32))), png(Image.new("RGBA", (8, 8)))
    for given, param, words in (
        ({"image": b"no picture"}, "image", "must be a PNG"),
        ({"image": [picture, picture]}, "image", "must be one picture here, not 2"),
        ({"image": picture, "mask": b"no picture"}, "mask", "must be a PNG"),
        ({"image": picture, "mask": whole}, "mask", "must have some transparent part"),
        ({"image": picture, "mask": small}, "mask", "must be 32 x 32 pixels"),
        ({"image": picture, "mask": hole, "extra_body": {"strength": 2}}, "strength", "less than or equal to 1"),
        (
            {"image": picture, "extra_body": {"darkroom": {"parameters": {"eta": 1}}}},
            "darkroom",
            "JSON as text in a form",
        ),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.images.edit(prompt="x", **given)
        assert caught.value.param == param
        assert words in caught.value.message


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(prompt="x", model="dall-e-3")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    assert "there are: tiny" in caught.value.message


@pytest.mark.parametrize("body", [b"no", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(http: httpx2.Client, body: bytes) -> None:
    answer = http.post("/v1/images/generations", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_other_kinds_of_bodies_are_refused(http: httpx2.Client) -> None:
    """Those that a web page may send without asking."""
    for path, kind in (("generations", "text/plain"), ("edits", "application/json")):
        answer = http.post(f"/v1/images/{path}", content=b'{"prompt": "x"}', headers={"content-type": kind})
        assert answer.status_code == 415
    answer = http.post("/v1/images/edits", content=b"x", headers={"content-type": "multipart/form-data"})
    assert answer.status_code == 400


def test_a_job_that_fails_in_mid_stream(web: RunningServer, client: openai.OpenAI) -> None:
    own = {"steps": 200, "darkroom": {"request_id": "to-cancel"}}
    with client.images.generate(prompt="x", stream=True, partial_images=3, extra_body=own) as events:
        next(iter(events))
        web.images.Cancel(CancelRequest(request_id="to-cancel"), metadata=[("authorization", "Bearer none")])
        with pytest.raises(openai.APIError, match="the job was cancelled"):
            list(events)


def test_calls_want_the_token(locked: RunningServer) -> None:
    address = f"{locked.app.url}/v1"
    with openai.OpenAI(base_url=address, api_key="wrong", max_retries=0) as client:
        for call in (client.models.list, lambda: client.images.generate(prompt="x")):
            with pytest.raises(openai.AuthenticationError) as caught:
                call()
            assert caught.value.code == "invalid_api_key"
    with openai.OpenAI(base_url=address, api_key="t0ken") as client:
        assert client.images.generate(prompt="x", extra_body={"steps": 1}).data
