import numpy as np
import pytest

from darkroom_demo import ADAPTERS_PATH, CONTROLNET_PATH, LORA_PATHS, MODEL_PATH

pytest.importorskip("diffusers")

from typing import Any

from darkroom_demo.captions import caption
from darkroom_demo.evaluate import load_pipeline, report, score, unseen_scenes
from darkroom_demo.evaluate_adapters import (
    SEEN,
    Sampling,
    add_controlnet,
    controlled_scenes,
    mean_f1,
    strengths,
    styled_pictures,
)

MIB = 2**20
COUNT = 8
FAST = Sampling(steps=12)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_pipeline(MODEL_PATH, "DDIMScheduler")


def test_the_adapters_are_small() -> None:
    assert sum(file.stat().st_size for file in ADAPTERS_PATH.rglob("*") if file.is_file()) <= 8 * MIB


def test_pictures_follow_the_map_in_the_colours_of_the_prompt(pipeline: Any) -> None:
    wanted, maps = controlled_scenes(COUNT, seed=7)
    prompts = [caption(scene) for scene in wanted]
    followed = FAST.pictures(add_controlnet(pipeline, CONTROLNET_PATH), prompts, maps)
    assert mean_f1(maps, followed) >= 0.7
    assert mean_f1(maps, FAST.pictures(pipeline, prompts)) <= 0.5  # 0.4 over many
    totals = score(wanted, followed)
    assert totals["colours"][0] >= COUNT - 2, report(totals)


@pytest.mark.slow  # through a server: tests/darkroom_server/test_demo_edits.py
@pytest.mark.parametrize("style", ["stripes", "outline"])
def test_weight_turns_the_style_up(pipeline: Any, style: str) -> None:
    wanted = unseen_scenes(COUNT, seed=7)
    plain = FAST.pictures(pipeline, [caption(scene) for scene in wanted])
    rows = styled_pictures(pipeline, style, LORA_PATHS[style], wanted, FAST, weights=(0, 0.5, 1))
    assert all(np.array_equal(*pair) for pair in zip(plain, rows[0], strict=True))
    none, half, full = strengths(style, plain, rows)
    assert abs(none) < 0.02
    assert 0.4 * SEEN[style] <= half < full - 0.15  # these are few pictures
    assert full >= 0.6
    totals = score(wanted, rows[-1], style)
    assert totals["colours"][0] >= COUNT - 2, report(totals)
