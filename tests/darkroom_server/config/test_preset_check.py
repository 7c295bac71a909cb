"""`darkroom check` and a server that starts find the same wrong presets, each with its line."""

import subprocess
import sys
from pathlib import Path

import pytest

from darkroom_plugins.manager import load_plugins
from darkroom_server.app import open_catalog
from darkroom_server.cli.overview import overview
from darkroom_server.config.reader import ConfigurationError, located, read_settings
from darkroom_server.config.settings import Settings
from darkroom_server.models.model import InvalidPresets
from tests.tiny import save_lora, save_sd

CONFIGURATION = """
listen = "127.0.0.1:0"

[[models]]
name = "fine"
path = "tiny"
presets.good = { scheduler = "dpm++", num_inference_steps = 2, loras = { ink = 0.5 } }

[[models]]
name = "tiny"
path = "tiny"

[models.presets.fast]
scheduler = "eulr"
guidance_start = 0.9
guidance_end = 0.2

[models.presets.slow]
scheduler = "unipc"
num_inference_steps = 1000
guidance_scale = nan
eta = 0.5
height = 7
loras = { inc = 1.0, other = 1.0, ink = 20.0 }
hires_fix = { factor = 1.5, strength = 1.5 }
[models.presets.slow.scheduler_options]
solver_order = 9

[[loras]]
name = "ink"
path = "ink.safetensors"
[[loras]]
name = "other"
path = "other.safetensors"
"""
LINES = {
    "14: models.1.presets.fast.scheduler: there is no scheduler 'eulr' (did you mean 'euler'?); there are: ",
    "15: models.1.presets.fast.guidance_start: must be below guidance_end, 0.2; not 0.9",
    "20: models.1.presets.slow.num_inference_steps: must be from 1 to 500, not 1000",
    "21: models.1.presets.slow.guidance_scale: must be from 0 to 100, not nan",
    "22: models.1.presets.slow.eta: must be 0 for the scheduler unipc, which takes none",
    "23: models.1.presets.slow.height: must be from 8 to 128 pixels, not 7; or: must be a multiple of 8 pixels, not 7",
    "24: models.1.presets.slow.loras.inc: there is no lora 'inc' (did you mean 'ink'?); there are: ink, other",
    "24: models.1.presets.slow.loras.other: with the model tiny it cannot be used: ",
    "24: models.1.presets.slow.loras.ink: must be from -10 to 10, not 20.0",
    "25: models.1.presets.slow.hires_fix.strength: must be from 0 to 1, not 1.5",
    "27: models.1.presets.slow.scheduler_options.solver_order: must be less than or equal to 3, not",
}


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("presets")
    (folder / "tiny").symlink_to(tiny_model)
    save_lora(folder / "ink.safetensors", tiny_model, seed=1)
    wider = save_sd(folder / "wider", block_out_channels=(32, 64))
    save_lora(folder / "other.safetensors", wider, seed=1)
    (folder / "darkroom.toml").write_text(CONFIGURATION)
    return folder


def test_all_are_named_by_their_lines_at_the_start_and_by_check(folder: Path) -> None:
    file = folder / "darkroom.toml"
    settings, said = read_settings({}, file), []
    for look in (open_catalog, overview):
        with pytest.raises(InvalidPresets) as caught:
            look(settings, load_plugins())
        said.append(located(caught.value.violations, {}, file))
    assert said[0] == said[1]
    assert len(said[0]) == len(LINES)
    begins = tuple(f"{file}:{line}" for line in LINES)
    assert all(line.startswith(begins) for line in said[0])


@pytest.mark.slow
def test_the_commands_say_so_and_end(folder: Path) -> None:
    program = "from darkroom_client.cli import main; main()"
    ends = [
        subprocess.run(
            [sys.executable, "-c", program, command], cwd=folder, capture_output=True, text=True, check=False
        )
        for command in ("check", "serve")
    ]
    assert [end.returncode for end in ends] == [2, 2]
    assert [end.stdout for end in ends] == ["", ""]
    errors = [[line for line in end.stderr.splitlines() if line.startswith("error: ")] for end in ends]
    assert errors[0] == errors[1]
    assert len(errors[0]) == len(LINES)
    for end, lines in zip(ends, errors, strict=True):  # and that no model can use one of the LoRAs
        (warning,) = set(end.stderr.splitlines()) - set(lines)
        assert "lora 'other' cannot be used: " in warning


def test_keys_and_types_are_checked_as_those_of_any_table(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "darkroom.toml"
    model = f'[[models]]\nname = "a"\npath = "{folder / "tiny"}"\n'
    preset = '[models.presets.fast]\nsteps = 4\nsigma_schedule = "x"\nwidth = -1\nloras = { a = "b" }\n'
    file.write_text(f'{model}{preset}[models.presets."not good"]\n')
    with pytest.raises(ConfigurationError) as caught:
        read_settings({}, file)
    places = [violation.removeprefix(f"{file}:").partition(": ")[0] for violation in caught.value.violations]
    assert places == ["5", "6", "7", "8", "9"]


def test_a_presets_own_faults_alone_are_told(tiny_model: Path) -> None:
    """The limits of this server are too small for the model's own size."""
    models = [{"name": "a", "path": tiny_model, "presets": {"small": {"width": 8, "height": 8}, "empty": {}}}]
    limits = {"max_pixels": 4096, "max_edge": 64}
    assert open_catalog(Settings(models=models, limits=limits, device="cpu"), load_plugins()).models


def test_check_shows_presets(tiny_model: Path) -> None:
    presets = {"fast": {"scheduler": "lcm", "num_inference_steps": 4, "scheduler_options": {"steps_offset": 1}}}
    (_, table, *_), usable = overview(
        Settings(models=[{"name": "a", "path": tiny_model, "presets": presets}], device="cpu"), load_plugins()
    )
    cells = [list(column.cells) for column in table.columns]
    assert cells == [["fast"], ["a"], ["scheduler lcm, scheduler_options steps_offset:1, num_inference_steps 4"]]
    assert usable
