"""Commands of other packages, found by entry points."""

import subprocess
import sys
from importlib import metadata
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from darkroom_client.cli import app


def hello(name: str, times: Annotated[int, typer.Option(help="How often.")] = 1) -> None:
    """Greets someone."""
    typer.echo(f"hello {name}" * times)


def lacking() -> None:
    """Needs what is not there."""
    raise ModuleNotFoundError("No module named 'torch'", name="torch")


class _Point:
    """An entry point."""

    def __init__(self, name, loaded):
        self.name, self._loaded, self.loads = name, loaded, 0

    def load(self):
        self.loads += 1
        if isinstance(self._loaded, Exception):
            raise self._loaded
        return self._loaded


@pytest.fixture
def points(monkeypatch):
    points = [
        _Point("hello", hello),
        _Point("lacking", lacking),
        _Point("serve", ModuleNotFoundError("No module named 'uvloop'", name="uvloop")),
        _Point("models.hello", hello),
        _Point("broken", ModuleNotFoundError("No module named 'darkroom_client.x'", name="darkroom_client.x")),
    ]

    def entry_points(group, name=None):
        assert group == "darkroom.commands"
        return [point for point in points if name in (None, point.name)]

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    return points


def darkroom(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_a_function_is_a_command(points):
    result = darkroom("hello", "you", "--times", "2")
    assert (result.exit_code, result.output) == (0, "hello youhello you\n")
    assert "How often." in darkroom("hello", "--help").output
    assert [point.loads for point in points] == [2, 0, 0, 0, 0]  # only what is asked for


def test_help_lists_them_all(points):
    points.pop()
    output = darkroom("--help").output
    lists = ("models", "tasks", "schedulers", "loras", "controlnets", "preprocessors")
    for name in ("generate", "edit", "compare-schedulers", "preprocess", *lists, "hello", "serve"):
        assert name in output
    assert "Greets someone." in output


def test_a_function_is_a_command_below_one_of_the_client(points):
    assert (hidden := points[3]).name == "models.hello"
    points.pop()
    assert "models.hello" not in darkroom("--help").output
    assert darkroom("models", "--address", "127.0.0.1:1").exit_code == 1
    assert hidden.loads == 0
    for _ in range(2):
        assert darkroom("models", "hello", "you").output == "hello you\n"
    assert "--json" in darkroom("models", "--help").output
    assert "no Darkroom server answers" in darkroom("models", "--address", "127.0.0.1:1").stderr
    assert "No such command 'nothing'" in darkroom("models", "nothing").output


@pytest.mark.parametrize("name", ["serve", "lacking"])
def test_what_is_missing_is_said(points, name):
    result = darkroom(name)
    assert result.exit_code == 1
    assert "pip install 'darkroom-diffusion[server]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_mistake_in_a_package_of_ours_is_not_called_a_missing_one(points):
    assert isinstance(darkroom("broken").exception, ModuleNotFoundError)


@pytest.mark.parametrize(("command", "shown"), [("--help", ["serve", "plugins"]), ("plugins", ["sdxl", "vignette"])])
def test_what_needs_no_libraries_of_the_server_loads_none(command, shown):
    code = (
        "import sys; from darkroom_client.cli import app\n"
        f"try: app([{command!r}])\n"
        "except SystemExit as end: assert end.code in (0, None)\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'scipy', 'cv2', 'peft', 'accelerate'}\n"
        "print(*sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if not metadata.entry_points(group="darkroom.commands"):
        pytest.skip("the package is not installed")
    assert result.stderr.strip() == ""
    assert all(name in result.stdout for name in shown)


def test_a_newcomer_sees_no_advice_of_libraries():
    """Of diffusers' pipelines, which ask transformers for what needs torchvision, the server imports none."""
    code = (
        "import sys, darkroom_server.app; from darkroom_plugins.manager import load_plugins; load_plugins()\n"
        "print(*(name for name in sys.modules if '.pipeline_stable_diffusion' in name))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("\n", "")
