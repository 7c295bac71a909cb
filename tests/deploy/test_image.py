"""The Dockerfile: lint, what goes to its build, and that what it names is there. Building an image takes an engine:
`test_running.py` runs the commands instead."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from darkroom_server.config.address import TcpAddress, parse_address
from tests.deploy.files import DEPLOY, ROOT, SECONDS_TO_END, TOKENS, Dockerfile, build_context, settings

TEXT = (DEPLOY / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def dockerfile() -> Dockerfile:
    return Dockerfile()


def hadolint(text: str) -> str:
    """What it finds; nothing if all is well."""
    command = [str(Path(sys.executable).parent / "hadolint"), "--format", "gnu", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False).stdout


def test_lint() -> None:
    assert hadolint(TEXT) == ""
    assert "DL3002" in hadolint(TEXT.replace("USER 10001:10001", "USER root"))
    assert "DL3006" in hadolint(TEXT.replace("FROM python:${PYTHON}", "FROM python"))


def test_only_what_the_wheel_is_made_of_goes_to_the_build() -> None:
    files = build_context()
    packages = [ROOT / folder for folder in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
    sources = {path for folder in packages for path in folder.rglob("*") if path.is_file()}
    wanted = {path.relative_to(ROOT) for path in sources if "__pycache__" not in path.parts}
    assert files == wanted | {Path(name) for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE")}


def test_its_environment_is_settings(dockerfile: Dockerfile, monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings(monkeypatch, {**dockerfile.environment, "DARKROOM_TOKENS": TOKENS})
    known = {f"DARKROOM_{name.upper()}" for name in type(found).model_fields}
    assert {name for name in dockerfile.environment if name.startswith("DARKROOM_")} <= known
    addresses = [parse_address(found.listen), parse_address(str(found.metrics))]
    assert {each.port for each in addresses if isinstance(each, TcpAddress)} == dockerfile.ports
    assert {each.host for each in addresses if isinstance(each, TcpAddress)} == {"0.0.0.0"}
    assert str(found.state_dir) in dockerfile.volumes
    assert any(Path(dockerfile.environment["HF_HOME"]).is_relative_to(volume) for volume in dockerfile.volumes)


def test_its_arguments_fit_the_project(dockerfile: Dockerfile) -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert "server" in dockerfile.arguments["EXTRAS"].split(",")
    assert set(dockerfile.arguments["EXTRAS"].split(",")) <= set(extras)
    version, _, debian = dockerfile.arguments["PYTHON"].partition("-")
    assert version in SpecifierSet(PROJECT["project"]["requires-python"])
    assert f"PYTHON={version}-{debian.removeprefix('slim-')}`" in TEXT  # the image with a compiler


def test_it_runs_as_somebody_and_stops_in_time(dockerfile: Dockerfile, monkeypatch: pytest.MonkeyPatch) -> None:
    made = next(value for instruction, value in dockerfile.stages[-1] if instruction == "RUN")
    assert f"--uid {dockerfile.user} " in made
    assert dockerfile.user > 0
    assert {volume for volume in dockerfile.volumes if f" {volume}" in made} == dockerfile.volumes
    assert dockerfile.last["STOPSIGNAL"] == "SIGTERM"
    (grace,) = re.findall(r"--stop-timeout (\d+)", TEXT)
    assert float(grace) > settings(monkeypatch, {}).drain_seconds + SECONDS_TO_END
