"""The example plugin `vignette`, installed like any stranger's, used through `extensions`."""

import json
from typing import Any

import grpc
import jsonschema
import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict

from darkroom.v1 import catalog_service_pb2, parameters_pb2
from tests.support import RunningServer, alike, details, generate_request

BASE = {"prompt": "x", "num_inference_steps": 3, "seed": 5, "scheduler": "ddim", "deterministic": True}


def light(size: int) -> np.ndarray:
    """How far each pixel is from the middle: 0 there, 1 in the corners; (size, size, 1)."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    return ((x**2 + y**2) / 2)[..., None]


@pytest.fixture(scope="module")
def plain(server: RunningServer) -> np.ndarray:
    """The picture without the extension."""
    return server.generate(**BASE).pixels[0]


@pytest.mark.parametrize("strength", [0, 0.25, 0.5, 1, None])
def test_corners_are_darker_by_what_strength_says(
    server: RunningServer, plain: np.ndarray, strength: float | None
) -> None:
    given = {} if strength is None else {"strength": strength}
    pixels = server.generate(**BASE, extensions={"vignette": given}).pixels[0]
    expected = plain * (1 - (0.5 if strength is None else strength) * light(32))
    assert np.abs(pixels - expected).max() <= 0.5  # rounded
    assert (strength == 0) == np.array_equal(pixels, plain)
    if strength == 1:
        assert pixels[[0, 0, -1, -1], [0, -1, 0, -1]].max() == 0


def test_each_image_and_size_gets_it(server: RunningServer) -> None:
    several = {**BASE, "num_images": 2, "width": 48, "height": 24}
    before = server.generate(**several).pixels
    after = server.generate(**several, extensions={"vignette": {"strength": 1}}).pixels
    assert after.shape == (2, 24, 48, 3)
    assert after[:, [0, -1], [0, -1]].max() == 0
    assert np.abs(after[:, 12, 24] - before[:, 12, 24]).max() <= 2


def test_others_in_the_batch_do_not_get_it(server: RunningServer, plain: np.ndarray) -> None:
    request = {**BASE, "deterministic": False}
    streams = [
        server.start(generate_request(**request, extensions={"vignette": {"strength": 1}} if dark else {}))
        for dark in (True, False, True, False)
    ]
    for dark, stream in zip((True, False, True, False), streams, strict=True):
        expected = plain * (1 - light(32)) if dark else plain
        assert np.abs(stream.read().pixels[0] - expected).max() <= 1.5


def test_the_recipe_holds_the_extension(server: RunningServer) -> None:
    stream = server.generate(**BASE, extensions={"vignette": {"strength": 0.75}})
    assert stream.of("accepted")[0].parameters.extensions["vignette"]["strength"] == 0.75
    recipe = json.loads(stream.pictures()[0].text["darkroom"])
    assert recipe["parameters"]["extensions"] == {"vignette": {"strength": 0.75}}
    request = generate_request(deterministic=True)
    ParseDict(recipe["parameters"], request.parameters)
    assert alike(server.start(request).read().pixels, stream.pixels)


def test_the_recipe_holds_defaults_too(server: RunningServer) -> None:
    recipe = json.loads(server.generate(**BASE, extensions={"vignette": {}}).pictures()[0].text["darkroom"])
    assert recipe["parameters"]["extensions"] == {"vignette": {"strength": 0.5}}


VALUES: list[dict[str, Any]] = [
    {},
    {"strength": 0},
    {"strength": 1},
    {"strength": 0.3},
    {"strength": -0.01},
    {"strength": 1.01},
    {"strength": "0.5"},
    {"strength": "dark"},
    {"strength": True},
    {"strength": None},
    {"strength": [0.5]},
    {"strength": {}},
    {"Strength": 0.5},
    {"strength": 0.5, "other": 1},
]


@pytest.fixture(scope="module")
def validator(server: RunningServer) -> jsonschema.Draft202012Validator:
    """What the published schema says."""
    info = server.catalog.GetServerInfo(catalog_service_pb2.GetServerInfoRequest())
    (vignette,) = (plugin for plugin in info.plugins if plugin.name == "vignette")
    schema = MessageToDict(vignette.extensions_schema)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("values", VALUES, ids=str)
def test_the_published_schema_is_what_the_server_accepts(
    server: RunningServer, validator: jsonschema.Draft202012Validator, values: dict[str, Any]
) -> None:
    request = {**BASE, "num_inference_steps": 1, "extensions": {"vignette": values}}
    if validator.is_valid(values):
        assert server.generate(**request).kinds[-1] == "completed"
        return
    with pytest.raises(grpc.RpcError) as caught:
        server.generate(**request)
    reason, violations, _ = details(caught.value)
    assert (caught.value.code(), reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert violations
    assert all(path.startswith("parameters.extensions[vignette].") for path in violations)


def test_what_is_wrong_with_a_value_is_told_as_of_other_fields(server: RunningServer) -> None:
    for values, problem in (
        ({"strenght": 1}, "there is no option 'strenght' (did you mean 'strength'?); there are: strength"),
        ({"strength": 7}, "must be less than or equal to 1, not 7"),
        ({"strength": "much"}, 'must be a valid number, not "much"'),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            server.generate(**{**BASE, "extensions": {"vignette": values}})
        assert [*details(caught.value)[1].values()] == [problem]


def test_extensions_go_into_the_message_as_they_are(server: RunningServer) -> None:
    """As a client of another language would send them: JSON."""
    parameters = parameters_pb2.Parameters()
    ParseDict({"prompt": "x", "numInferenceSteps": 1, "extensions": {"vignette": {"strength": 1}}}, parameters)
    request = generate_request()
    request.parameters.CopyFrom(parameters)
    assert server.start(request).read().pixels[0, 0, 0].max() == 0
