"""Request validation, without a server: any message is refused by its fields' paths, or its numbers are in range."""

import contextlib
import io
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel, Field

from darkroom.v1.image_service_pb2 import EditRequest, GenerateRequest, PreprocessRequest
from darkroom.v1.parameters_pb2 import IMAGE_FORMAT_JPEG
from darkroom_plugins import Finisher, hookimpl
from darkroom_plugins.builtin.schedulers import ENTRIES, OPTIONS
from darkroom_plugins.errors import InvalidRequest, RequestRefused
from darkroom_plugins.manager import Plugins, load_plugins
from darkroom_plugins.quoting import printable
from darkroom_plugins.request import Request
from darkroom_server.api.preprocess import preprocess
from darkroom_server.api.validation.request import check_edit, check_generate
from darkroom_server.app import open_catalog
from darkroom_server.config.demo import demo_model, with_demo
from darkroom_server.config.settings import Limits, ModelSettings, Settings
from darkroom_server.models.catalog import Catalog
from tests.support import generate_request, png
from tests.tiny import save_sd

PICTURE = png(np.zeros((8, 8, 3), np.uint8))
INT32, INT64 = 2**31 - 1, 2**63 - 1
LIMITS = Limits(max_pixels=1024 * 1024)


class Frame(Finisher):
    name = "frame"

    class Parameters(BaseModel, extra="forbid"):
        width: float = Field(0.1, ge=0, le=1)

    def finish(self, picture: Any, request: Request, parameters: Any) -> Any:
        raise AssertionError


class FramePlugin:
    """A plugin that takes parameters."""

    darkroom_api_version = 1

    @hookimpl
    def darkroom_finishers(self) -> list[Finisher]:
        return [Frame()]


def plugins() -> Plugins:
    """The built-in ones, and one with parameters."""
    return load_plugins(blocked=["vignette"], extra={"frame": FramePlugin()})


class Opened:
    """A catalog; what fails prints no more of it than this."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog


@pytest.fixture(scope="module")
def opened(tiny_model: Path) -> Opened:
    """The models `tiny` and `shapes`, with ControlNets and LoRAs that are for the second alone."""
    large: Any = {"max_edge": 2048, "max_pixels": 2048 * 2048}
    models = [ModelSettings(name="tiny", path=tiny_model, **large), demo_model().model_copy(update=large)]
    configured = with_demo(Settings(device="cpu", limits=LIMITS)).model_copy(update={"models": models})
    return Opened(open_catalog(configured, plugins()))


# ---------------------------------------------------------------------------------------------------------- any message

SCHEDULERS = [name for entry in ENTRIES for name in (entry.name, *entry.aliases)]
NAMES = ["tiny", "shapes", "canny", "outline", "stripes", "depth", "txt2img", "inpaint", "frame", "nope", "a.b[0]"]
TEXTS = (
    st.sampled_from([*NAMES, *SCHEDULERS])
    | st.text(max_size=8)
    | st.builds(str.__mul__, st.text(min_size=1), st.just(11_000))
)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 4) | st.floats(allow_subnormal=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
OPTION_NAMES = st.sampled_from([*OPTIONS, "width", "low_threshold", "x"]) | st.text(max_size=300)
STRUCTS = st.dictionaries(OPTION_NAMES, JSON, max_size=3)
WHOLE = st.sampled_from([0, 1, 2, 8, 16, 32, 64, 65, 2048, INT32, -1, -INT32 - 1])
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: TEXTS,
    FieldDescriptor.TYPE_BYTES: st.sampled_from([PICTURE, b"", PICTURE[:40]]) | st.binary(max_size=40),
    FieldDescriptor.TYPE_INT32: WHOLE | st.integers(-INT32 - 1, INT32),
    FieldDescriptor.TYPE_INT64: WHOLE | st.sampled_from([INT64, INT64 - 1]) | st.integers(-INT64 - 1, INT64),
    FieldDescriptor.TYPE_DOUBLE: st.sampled_from([0.0, 0.5, 1.0, 2.0]) | st.floats(allow_subnormal=False),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_ENUM: st.integers(0, 4) | st.integers(-INT32 - 1, INT32),
}


LIKELY: dict[int, list[Any]] = {  # to be right
    FieldDescriptor.TYPE_STRING: [""],
    FieldDescriptor.TYPE_BYTES: [PICTURE],
    FieldDescriptor.TYPE_INT32: [1, 2, 8, 16, 64],
    FieldDescriptor.TYPE_INT64: [0, 1, INT64 - 16],
    FieldDescriptor.TYPE_DOUBLE: [0.0, 0.25, 1.0],
    FieldDescriptor.TYPE_BOOL: [False, True],
    FieldDescriptor.TYPE_ENUM: [0, 1],
}
LIKELY_NAMES = {
    "Parameters.task": ["txt2img"],
    "Parameters.model": ["shapes"],
    "Parameters.prompt": ["a red circle"],
    "SchedulerSpec.name": SCHEDULERS,
    "LoraSpec.name": ["outline", "stripes"],
    "ControlSpec.model": ["canny"],
    "ControlSpec.preprocessor": ["canny"],
}


def a_value(draw: st.DrawFn, field: FieldDescriptor) -> Any:
    if not draw(st.integers(0, 3)):
        return draw(SCALARS[field.type])
    return draw(st.sampled_from(LIKELY_NAMES.get(f"{field.containing_type.name}.{field.name}", LIKELY[field.type])))


def fill(draw: st.DrawFn, message: Any, most: int) -> None:
    """Set some fields of a message, up to so many, and fields of the messages in them."""
    if isinstance(message, Struct):
        message.update(draw(st.just({}) | STRUCTS))
        return
    fields = list(message.DESCRIPTOR.fields)
    for field in draw(st.lists(st.sampled_from(fields), max_size=most, unique_by=lambda field: field.name)):
        if field.message_type is None:
            setattr(message, field.name, a_value(draw, field))
            continue
        within = getattr(message, field.name)
        if field.message_type.GetOptions().map_entry:
            for name in draw(st.lists(st.just("frame") | TEXTS, max_size=2)):
                fill(draw, within[name], most)
        elif field.is_repeated:
            for _ in range(draw(st.integers(1, 3))):
                fill(draw, within.add(), most)
        else:
            within.SetInParent()
            fill(draw, within, most)


@st.composite
def messages(draw: st.DrawFn, kind: Any) -> Any:
    """Any request of a kind, as it arrives."""
    message = kind()
    fill(draw, message, draw(st.integers(0, 2 if kind is GenerateRequest else 4)))
    if kind is PreprocessRequest:
        message.preprocessor = message.preprocessor or draw(st.sampled_from(["canny", ""]))
    else:
        fill(draw, message.parameters, draw(st.integers(0, 8)))
    return kind.FromString(message.SerializeToString())


def is_field(path: str, message: Message) -> bool:
    """Whether a path is of a field of a message; an index of one that is there, and in a Struct any."""
    found = re.match(r"(\w+)(.*)", path, re.DOTALL)
    field = found and message.DESCRIPTOR.fields_by_name.get(found[1])
    if not found or not field:
        return False
    rest, within = found[2], getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        keys = {f"[{printable(name, 64)}]": name for name in within}
        return any(is_inside(rest.removeprefix(key), within[keys[key]]) for key in keys if rest.startswith(key))
    if field.is_repeated and rest:
        index = re.match(r"\[(\d+)\](.*)", rest, re.DOTALL)
        return index is not None and int(index[1]) < len(within) and is_inside(index[2], within[int(index[1])])
    return is_inside(rest, within)


def is_inside(rest: str, value: Any) -> bool:
    """The same for what goes on behind a field."""
    if not rest:
        return True
    return rest[0] == "." and isinstance(value, Message) and (isinstance(value, Struct) or is_field(rest[1:], value))


def check_numbers(request: Request, catalog: Catalog) -> None:
    """What is in range by the comments of the API."""
    limits, model = catalog.limits, catalog.models[request.model]
    entry = catalog.plugins.schedulers[request.scheduler.name]
    assert 1 <= request.num_images <= limits.max_images
    assert entry.min_steps <= request.num_inference_steps <= min(entry.max_steps, limits.max_inference_steps)
    assert 0 <= request.guidance_scale <= 100
    assert 0 <= request.guidance_rescale <= 1
    assert 0 <= request.guidance_start < request.guidance_end <= 1
    assert 1 <= request.cache_interval <= model.max_cache_interval
    assert 0 <= request.clip_skip <= model.info.max_clip_skip
    assert 0 <= request.eta <= (1 if entry.takes_eta else 0)
    assert all(0 <= seed <= INT64 for seed in request.seeds)
    for edge in (request.width, request.height):
        assert edge % model.info.size_factor == 0
        assert 0 < edge <= limits.max_edge
    assert request.width * request.height <= limits.max_pixels
    for text in (request.prompt, request.negative_prompt or "", request.prompt_2, request.negative_prompt_2):
        assert len(text) <= limits.max_prompt_characters
    for lora in request.loras:
        assert -10 <= lora.weight <= 10
    for control in request.controls:
        assert 0 <= control.scale <= 10
        assert 0 <= control.start < control.end <= 1
    assert request.preview.every_n_steps >= 1
    assert 0 <= request.preview.min_interval_seconds <= 86_400
    assert 64 <= request.preview.max_edge <= limits.max_edge
    assert request.preview.mode in model.preview_modes
    assert (request.output.quality is None) == (request.output.format == "png")
    assert 1 <= (request.output.quality or 1) <= 100


def check_refusal(error: RequestRefused, message: Message) -> None:
    paths = [violation.field for violation in error.violations]
    assert paths
    assert [path for path in paths if not is_field(path, message)] == []


@settings(max_examples=200)
@given(messages(GenerateRequest))
def test_any_message_is_checked_or_refused_by_its_fields(opened: Opened, message: GenerateRequest) -> None:
    try:
        check_numbers(check_generate(message, opened.catalog), opened.catalog)
    except RequestRefused as error:
        check_refusal(error, message)


@settings(max_examples=100)
@given(messages(EditRequest))
def test_any_edit_is_checked_or_refused_by_its_fields(opened: Opened, message: EditRequest) -> None:
    try:
        request = check_edit(message, opened.catalog)
    except RequestRefused as error:
        check_refusal(error, message)
    else:
        check_numbers(request, opened.catalog)
        assert 0 <= getattr(request.edit, "strength", 1.0) <= 1


@settings(max_examples=100)
@given(messages(PreprocessRequest))
def test_any_preprocessing_is_done_or_refused_by_its_fields(opened: Opened, message: PreprocessRequest) -> None:
    try:
        (first, *chunks) = preprocess(message, opened.catalog)
    except RequestRefused as error:
        check_refusal(error, message)
    else:
        data = first["control_image"].image_bytes + b"".join(each["chunk"].data for each in chunks)
        assert Image.open(io.BytesIO(data)).size == Image.open(io.BytesIO(message.image)).size


# -------------------------------------------------------------------------------------------------------- single values


@dataclass(frozen=True)
class Range:
    """Of a number, whole where it has `bits`; `ends` says whether the low and the high end are in it."""

    low: float
    high: float
    bits: int = 0
    multiple: int = 1
    ends: tuple[bool, bool] = (True, True)

    def inside(self) -> st.SearchStrategy[Any]:
        if not self.bits:
            return st.floats(
                self.low, self.high, exclude_min=not self.ends[0], exclude_max=not self.ends[1], allow_subnormal=False
            )
        return st.integers(int(self.low) // self.multiple, int(self.high) // self.multiple).map(self.multiple.__mul__)

    def outside(self) -> st.SearchStrategy[Any]:
        if not self.bits:
            below = st.floats(max_value=self.low, exclude_max=self.ends[0], allow_subnormal=False)
            return below | st.floats(self.high, exclude_min=self.ends[1], allow_subnormal=False) | st.just(math.nan)
        least, most, low, high = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1, int(self.low), int(self.high)
        below = st.integers(least, max(low - 1, least))
        return below if high == most else below | st.integers(high + 1, most)


RANGES = {
    "parameters.num_images": Range(1, 16, 32),
    "parameters.num_inference_steps": Range(1, 500, 32),
    "parameters.guidance_scale": Range(0, 100),
    "parameters.guidance_rescale": Range(0, 1),
    "parameters.guidance_start": Range(0, 1, ends=(True, False)),
    "parameters.guidance_end": Range(0, 1, ends=(False, True)),
    "parameters.cache_interval": Range(1, 20, 32),
    "parameters.clip_skip": Range(0, 1, 32),
    "parameters.eta": Range(0, 1),
    "parameters.seed": Range(0, INT64, 64),
    "parameters.width": Range(8, 2048, 32, multiple=8),
    "parameters.height": Range(8, 2048, 32, multiple=8),
    "parameters.loras[0].weight": Range(-10, 10),
    "parameters.controls[0].scale": Range(0, 10),
    "parameters.controls[0].start": Range(0, 1, ends=(True, False)),
    "parameters.controls[0].end": Range(0, 1, ends=(False, True)),
    "preview.every_n_steps": Range(1, INT32, 32),
    "preview.min_interval_seconds": Range(0, 86_400),
    "preview.max_edge": Range(64, 2048, 32),
    "output.quality": Range(1, 100, 32),
}
ENUMS = (
    *("parameters.prompt_syntax", "parameters.scheduler.sigma_schedule", "parameters.scheduler.timestep_spacing"),
    *("preview.mode", "preview.format", "output.format", "disconnect_policy"),
)
STRUCT_PATHS = (
    *("parameters.scheduler.options", "parameters.controls[0].preprocessor_options"),
    "parameters.extensions[frame]",
)


def with_value(path: str, value: Any) -> GenerateRequest:
    """A request for the model `shapes` with every kind of condition, and this value in it."""
    message = generate_request(model="shapes", scheduler="ddim")
    message.parameters.loras.add(name="outline")
    message.parameters.controls.add(model="canny", image=PICTURE)
    message.output.format = IMAGE_FORMAT_JPEG
    owner, _, field = path.rpartition(".")
    setattr(reached(message, owner), field, value)
    return message


def reached(value: Any, path: str) -> Any:
    """What is at a path, of messages and of requests alike."""
    for name, index in re.findall(r"(\w+)(?:\[(\d+)\])?", path):
        value = getattr(value, name)
        value = value[int(index)] if index else value
    return value


def refused_paths(message: GenerateRequest, opened: Opened) -> set[str]:
    """The fields by which a request is refused; none where it is taken."""
    try:
        check_generate(message, opened.catalog)
    except InvalidRequest as error:
        return {violation.field for violation in error.violations}
    return set()


@pytest.mark.parametrize("path", RANGES)
@given(st.data())
def test_a_number_in_range_is_taken_as_it_is(opened: Opened, path: str, data: st.DataObject) -> None:
    value = data.draw(RANGES[path].inside())
    request = check_generate(with_value(path, value), opened.catalog)
    assert reached(request, path.removeprefix("parameters.")) == value
    check_numbers(request, opened.catalog)


@pytest.mark.parametrize("path", RANGES)
@given(st.data())
def test_a_number_out_of_range_is_refused_by_its_path(opened: Opened, path: str, data: st.DataObject) -> None:
    message = with_value(path, data.draw(RANGES[path].outside()))
    paths = refused_paths(message, opened)
    assert path in paths or path.replace("end", "start") in paths  # which must be below the end


SIDES = st.integers(1, 2048 // 8).map((8).__mul__)


@given(SIDES, SIDES)
def test_a_size_is_taken_up_to_max_pixels(opened: Opened, width: int, height: int) -> None:
    message = generate_request(model="shapes", width=width, height=height)
    assert refused_paths(message, opened) == ({"parameters.width"} if width * height > LIMITS.max_pixels else set())


@given(st.integers(INT64 - 20, INT64), st.integers(1, 16))
def test_a_seed_is_taken_where_all_images_have_one(opened: Opened, seed: int, num_images: int) -> None:
    message = generate_request(seed=seed, num_images=num_images)
    assert refused_paths(message, opened) == ({"parameters.seed"} if seed + num_images - 1 > INT64 else set())


@pytest.mark.parametrize("path", ENUMS)
@given(st.integers(-INT32 - 1, -1) | st.integers(5, INT32))
def test_an_unknown_enum_value_is_refused_by_its_path(opened: Opened, path: str, value: int) -> None:
    assert path in refused_paths(with_value(path, value), opened)


@pytest.mark.parametrize("path", STRUCT_PATHS)
@given(st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(0, 3))
def test_a_number_in_a_struct_is_finite(opened: Opened, path: str, number: float, depth: int) -> None:
    message = with_value("parameters.prompt", "x")
    message.parameters.controls[0].preprocessor = "canny"
    values: Any = number
    for level in range(depth):
        values = [values] if level % 2 else {"x": values}
    at = message.parameters.extensions["frame"] if "frame" in path else reached(message, path)
    at.update({"x": values})
    assert refused_paths(message, opened) == {path}


def test_a_default_size_is_within_the_limits(tmp_path: Path) -> None:
    model = ModelSettings(name="large", path=save_sd(tmp_path / "large", sample_size=64))
    catalog = open_catalog(Settings(device="cpu", models=[model], limits=Limits(max_edge=64)), plugins())
    assert catalog.models["large"].info.default_width == 128
    with contextlib.suppress(InvalidRequest):
        check_numbers(check_generate(generate_request(), catalog), catalog)
