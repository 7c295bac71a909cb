"""The built-in preprocessors make the maps that their descriptions promise, of any picture and any valid parameters."""

import itertools
import typing
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import annotated_types
import jsonschema
import numpy as np
import pytest
from pydantic import ValidationError

from darkroom_plugins.builtin import preprocessors
from darkroom_plugins.builtin.preprocessors import ENTRIES
from darkroom_plugins.manager import load_plugins

NAMES = [entry.name for entry in ENTRIES]
BY_NAME = {entry.name: entry for entry in ENTRIES}
DRAWINGS = ["canny", "soft-edge", "lines", "scribble", "straight-lines"]
SIZES = [(1, 1), (1, 9), (5, 7), (48, 64), (3, 200)]  # height, width


def run(name: str, pixels: Any, **options: Any) -> Any:
    entry = BY_NAME[name]
    return entry.run(pixels, entry.Parameters(**options) if entry.Parameters else None)


def noise(height: int, width: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def square(side: int = 64, inside: Any = 255, outside: Any = 0) -> Any:
    """A square from a quarter to three quarters of the picture."""
    pixels = np.full((side, side, 3), outside, np.uint8)
    pixels[side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = inside
    return pixels


def border_distance(side: int = 64) -> Any:
    """How far each pixel is from the border of that square, in pixels, in the larger of both directions."""
    at = np.abs(np.arange(side) + 0.5 - side / 2)
    return np.abs(np.maximum(at[:, None], at[None]) - side / 4)


def extremes(name: str) -> list[dict[str, Any]]:
    """All combinations of least, greatest and default values that are valid."""
    parameters = BY_NAME[name].Parameters
    if parameters is None:
        return [{}]
    choices = [[(field, value) for value in values(info)] for field, info in parameters.model_fields.items()]
    return [options for each in itertools.product(*choices) if valid(parameters, options := dict(each))]


def values(info: Any) -> list[Any]:
    found = [getattr(each, "ge", getattr(each, "le", None)) for each in info.metadata]
    if typing.get_origin(info.annotation) is typing.Literal:
        found = list(typing.get_args(info.annotation))
    if info.annotation is bool:
        found = [False, True]
    assert len(found) >= 2
    return found if info.default in found else [*found, info.default]


def valid(parameters: Any, options: dict[str, Any]) -> bool:
    try:
        parameters(**options)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_any_size_and_extreme_parameters(name: str, size: tuple[int, int]) -> None:
    pixels = noise(*size)
    pixels.setflags(write=False)
    given = pixels.copy()
    for options in extremes(name):
        made = run(name, pixels, **options)
        assert (made.shape, made.dtype) == (pixels.shape, np.uint8), options
        assert made.flags.c_contiguous
        assert not np.shares_memory(made, pixels)
    assert (pixels == given).all()


def test_extremes_are_what_they_are_called() -> None:
    assert {"sigma": 0.1} in extremes("blur")
    assert {"sigma": 64} in extremes("blur")
    assert {"measure": "value", "gamma": 10} in extremes("gray")
    assert {"low_threshold": 0, "high_threshold": 2040, "blur": 10} in extremes("canny")
    assert {"level": None, "invert": True} in extremes("threshold")
    assert len(extremes("canny")) == 8  # 4 of 9 pairs of thresholds have high above low, and 2 blurs


@pytest.mark.parametrize("name", NAMES)
def test_full_size(name: str) -> None:
    pixels = noise(512, 512)
    for options in [{}, extremes(name)[0], extremes(name)[-1]]:
        assert run(name, pixels, **options).shape == (512, 512, 3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", [0, 128, 255])
def test_pictures_of_one_colour(name: str, level: int) -> None:
    made = run(name, np.full((20, 30, 3), level, np.uint8))
    assert len(np.unique(made)) == 1  # no division by nothing, no frame
    if name in DRAWINGS:
        assert made.max() == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_same_in_threads_and_from_views(name: str) -> None:
    pixels = noise(60, 80)
    first = run(name, pixels)
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda _: run(name, pixels), range(8)))
    assert all((each == first).all() for each in again)
    mirrored = np.ascontiguousarray(pixels[::-1, ::-1, ::-1])
    assert (run(name, pixels[::-1, ::-1, ::-1]) == run(name, mirrored)).all()


@pytest.mark.parametrize("name", DRAWINGS)
@pytest.mark.parametrize(("inside", "outside"), [(255, 0), (0, 255), ((220, 30, 30), (30, 150, 60))])
def test_drawings_are_white_at_borders_on_black(name: str, inside: Any, outside: Any) -> None:
    made = run(name, square(inside=inside, outside=outside))
    assert (made == made[..., :1]).all()  # no colour
    distance = border_distance()
    sides = [made[32, :32], made[32, 32:], made[:32, 32], made[32:, 32]]
    assert all(side.max() > 180 for side in sides)
    assert made[distance > 10].max() == 0
    assert distance[made[..., 0] > 128].max() <= 4
    assert (made > 0).mean() < 0.5


def test_canny_is_one_pixel_wide_and_exact() -> None:
    made = run("canny", square())
    assert set(np.unique(made)) == {0, 255}
    assert border_distance()[made[..., 0] > 0].max() <= 1
    assert [int((made[32, half, 0] > 0).sum()) for half in (slice(0, 32), slice(32, 64))] == [1, 1]


def test_canny_thresholds_decide() -> None:
    faint = np.full((40, 60, 3), 100, np.uint8)
    faint[20:] += 30  # a gradient of 4 x 30 = 120
    assert run("canny", faint).max() == 0
    assert run("canny", faint, high_threshold=119.0).max() == 255
    assert run("canny", faint, low_threshold=10, high_threshold=121).max() == 0
    ramp = np.full((40, 60, 3), 100, np.uint8)
    ramp[20:] += np.arange(60, dtype=np.uint8)[:, None] * 2  # an edge from nothing to 118 levels
    lengths = [int(run("canny", ramp, low_threshold=low, high_threshold=200).any(axis=2).sum()) for low in (20, 199)]
    assert lengths[0] > lengths[1] + 10  # a low one goes on where the edge gets faint


def test_canny_blur_takes_noise_away() -> None:
    noisy = square(inside=180, outside=60) + noise(64, 64) // 4
    plain, blurred = (run("canny", noisy, blur=blur, low_threshold=50, high_threshold=100) for blur in (0, 2))
    far = border_distance() > 6
    assert plain[far].any()
    assert not blurred[far].any()
    assert blurred.any()


@pytest.mark.parametrize(("low", "high"), [(200, 100), (100, 100)])
def test_canny_thresholds_in_order(low: float, high: float) -> None:
    with pytest.raises(ValidationError, match=f"low_threshold must be below high_threshold, not {low} and {high}"):
        preprocessors.Canny(low_threshold=low, high_threshold=high)
    with pytest.raises(ValidationError, match="below high_threshold, not 300 and 200"):
        preprocessors.Canny(low_threshold=300)


def test_soft_edge_is_grey_smooth_and_as_bright_as_the_step() -> None:
    strong, weak = run("soft-edge", square()), run("soft-edge", square(inside=60))
    assert len(np.unique(strong)) > 10
    assert 0 < weak.max() < strong.max()
    assert np.abs(np.diff(strong[32, :, 0].astype(int))).max() < 200  # no jump from black to white
    one = run("soft-edge", square(inside=50), gain=1, sigma=3)
    assert one[32, 14:18].max() == pytest.approx(50, abs=4)  # gain 1: the step's own levels
    widths = [int((run("soft-edge", square(), sigma=sigma)[32, :32, 0] > 60).sum()) for sigma in (0.5, 2, 4)]
    assert widths == sorted(set(widths))


def test_lines_draw_a_stroke_once() -> None:
    paper = np.full((64, 64, 3), 240, np.uint8)
    paper[:, 31:34] = 20
    made = run("lines", paper)[32, :, 0]
    assert made[32] == 255
    assert not made[:31].any()
    assert not made[34:].any()
    assert run("canny", paper)[32, 32].max() == 0  # which draws both of its edges


def test_lines_fade_with_contrast() -> None:
    levels = [int(run("lines", square(inside=100 + step, outside=100)).max()) for step in (20, 45, 120)]
    assert levels[0] == 0
    assert 0 < levels[1] < 255
    assert levels[2] == 255
    assert run("lines", square(inside=120, outside=100), contrast=15).max() == 255


def test_scribble_is_binary_coarse_and_widens() -> None:
    pixels = square()
    pixels[30:32, 30:32] = 120  # a speck
    widths = []
    for widen in (0, 1, 4):
        made = run("scribble", pixels, widen=widen)
        assert set(np.unique(made)) == {0, 255}
        widths.append(int((made[40, :28, 0] > 0).sum()))
    assert np.diff(widths).tolist() == [2, 6]
    assert run("scribble", pixels, sigma=0.5)[24:38, 24:38].any()
    assert not run("scribble", pixels, sigma=4)[28:36, 28:36].any()


def test_straight_lines_keep_long_ones() -> None:
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[10:60, 10:60] = 255
    pixels[80:88, 80:88] = 255
    everything, long = (run("straight-lines", pixels, min_length=least) for least in (0, 0.3))
    assert set(np.unique(everything)) == {0, 255}
    assert everything[70:].any()
    assert not long[70:].any()
    assert long[12:58, 8:12].any(axis=(1, 2)).mean() > 0.8  # nearly all of the left side
    thick = run("straight-lines", pixels, min_length=0.3, thickness=5)
    assert (thick > 0).sum() > 3 * (long > 0).sum()


def test_blur_keeps_the_mean_and_takes_detail() -> None:
    pixels = noise(64, 64)
    contrasts = [float(run("blur", pixels, sigma=sigma).std()) for sigma in (0.1, 1, 9)]
    assert contrasts[0] > contrasts[1] > contrasts[2]
    assert run("blur", pixels).mean() == pytest.approx(pixels.mean(), abs=2)


def test_tile_keeps_what_is_coarse() -> None:
    fine = np.indices((64, 64)).sum(axis=0) % 2 * 255
    pixels = np.repeat(fine[..., None], 3, axis=2).astype(np.uint8)
    pixels[:, 32:, 0] = 255
    assert (run("tile", pixels, factor=1) == pixels).all()
    made = run("tile", pixels, factor=4)
    assert np.ptp(made[:, :24].astype(int)) <= 2  # the checkerboard is gone
    assert made[32, 10, 0] == pytest.approx(128, abs=3)
    assert made[32, 54, 0] == pytest.approx(255, abs=3)


def test_color_grid_has_mean_colours_in_square_cells() -> None:
    pixels = noise(64, 128)
    made = run("color-grid", pixels, cells=4)
    cells = made.reshape(4, 16, 8, 16, 3)
    assert (cells == cells[:, :1, :, :1]).all()
    assert np.abs(cells[:, 0, :, 0] - pixels.reshape(4, 16, 8, 16, 3).mean(axis=(1, 3))).max() <= 1
    assert len(np.unique(run("color-grid", pixels)[0, :, 0])) > 8  # by default 8 x 16 cells
    assert (run("color-grid", pixels, cells=256) == pixels).all()


def test_gray_measures() -> None:
    red = np.full((4, 4, 3), (255, 0, 0), np.uint8)
    levels = {measure: int(run("gray", red, measure=measure)[0, 0, 0]) for measure in ("luma", "lightness", "value")}
    assert levels == {"luma": 76, "lightness": pytest.approx(136, abs=1), "value": 255}
    made = run("gray", noise(16, 16))
    assert (made == made[..., :1]).all()
    assert run("gray", np.full((1, 1, 3), 128, np.uint8), gamma=0.5).max() == 181  # 180.7
    assert run("gray", red, gamma=0.5)[0, 0, 0] > 76 > run("gray", red, gamma=2)[0, 0, 0]
    extreme = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    assert (run("gray", extreme, gamma=3) == extreme).all()


def test_invert() -> None:
    pixels = noise(9, 5)
    assert (run("invert", pixels).astype(int) + pixels == 255).all()
    assert (run("invert", run("invert", pixels)) == pixels).all()


def test_threshold_by_level_and_by_otsu() -> None:
    pixels = np.concatenate([np.full((8, 8, 3), level, np.uint8) for level in (20, 30, 180, 190)])
    rows = [run("threshold", pixels, **options)[::8, 0, 0].tolist() for options in ({}, {"level": 29}, {"level": 185})]
    assert rows == [[0, 0, 255, 255], [0, 255, 255, 255], [0, 0, 0, 255]]
    assert run("threshold", pixels, level=0).min() == 255  # above, not at
    assert run("threshold", pixels, level=20)[0, 0, 0] == 0
    assert (run("threshold", pixels, invert=True) == 255 - run("threshold", pixels)).all()


def test_shuffle_moves_everything_and_makes_no_colours() -> None:
    pixels = np.zeros((96, 128, 3), np.uint8)
    pixels[:, :64], pixels[:, 64:] = (250, 20, 20), (20, 20, 250)
    made = run("shuffle", pixels)
    assert (made == run("shuffle", pixels, seed=0)).all()
    assert (made != run("shuffle", pixels, seed=1)).any()
    assert (made[..., 1] == 20).all()
    assert (np.abs(made.astype(int) - pixels).max(axis=2) > 100).mean() > 0.1
    assert {tuple(each) for each in made.reshape(-1, 3).tolist()} >= {(250, 20, 20), (20, 20, 250)}


def test_shuffle_scale() -> None:
    pixels = square(128)
    changes = [int((np.diff(run("shuffle", pixels, scale=s)[..., 0].astype(int)) != 0).sum()) for s in (1, 0.25, 0.05)]
    assert changes == sorted(set(changes))


@pytest.mark.parametrize("name", [entry.name for entry in ENTRIES if entry.Parameters])
def test_schema_documents_every_field(name: str) -> None:
    parameters = BY_NAME[name].Parameters
    assert parameters is not None
    schema = parameters.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(parameters().model_dump(), schema)
    assert schema["additionalProperties"] is False
    for field, described in schema["properties"].items():
        assert described["description"].endswith(".")
        assert "default" in described
        kinds = described.get("anyOf", [described])
        if any(kind.get("type") in ("integer", "number") for kind in kinds):
            assert any({"minimum", "maximum"} <= kind.keys() for kind in kinds), field


@pytest.mark.parametrize("name", [entry.name for entry in ENTRIES if entry.Parameters])
def test_what_is_out_of_range_or_unknown_is_refused(name: str) -> None:
    parameters = BY_NAME[name].Parameters
    assert parameters is not None
    with pytest.raises(ValidationError, match="Extra inputs"):
        parameters(unknown=1)
    for field, info in parameters.model_fields.items():
        for each in info.metadata:
            if isinstance(each, annotated_types.Ge | annotated_types.Le):
                out = each.ge - 1 if isinstance(each, annotated_types.Ge) else each.le + 1
                assert not valid(parameters, {field: out})
        assert not valid(parameters, {field: "1"})  # strict: no number in text


def test_entries_say_what_they_suit() -> None:
    assert len(set(NAMES)) == len(NAMES)
    for entry in ENTRIES:
        assert entry.name == entry.run.__name__.replace("_", "-")
        assert "ControlNet" in entry.description or "T2I" in entry.description
        assert entry.run.__doc__


def test_the_manager_loads_them() -> None:
    builtin = "preprocessors" in {info.name for info in load_plugins().infos}
    plugins = load_plugins(extra={} if builtin else {"preprocessors": preprocessors})
    assert set(NAMES) <= set(plugins.preprocessors)
    assert plugins.owner("preprocessors", "canny") == "preprocessors"
    info = next(info for info in plugins.infos if info.name == "preprocessors")
    assert info.hooks == ("darkroom_preprocessors",)
    assert info.parameters is None  # theirs are no extensions
