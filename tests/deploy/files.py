"""Reads what lies in server/deploy."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from docker.utils.build import exclude_paths
from dockerfile_parse import DockerfileParser

from darkroom_server.config.reader import read_settings
from darkroom_server.config.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "server/deploy"
SECONDS_TO_END = 5  # of a server after its drain, at most
TOKENS = json.dumps([{"name": "me", "role": "operator", "sha256": "0" * 64}])


def documents(name: str) -> list[Any]:
    """Those of a YAML file."""
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def settings(monkeypatch: Any, environment: dict[str, str], file: Path | None = None) -> Settings:
    """What a server reads from this environment and file, and nothing else.

    :raises ConfigurationError: there are no such settings
    """
    monkeypatch.setattr("os.environ", environment)
    return read_settings({}, file)


class Dockerfile:
    """Its stages, each a list of instructions with their values; and the settings of the image."""

    def __init__(self) -> None:
        parsed = DockerfileParser(path=str(DEPLOY / "Dockerfile"))
        steps = [(each["instruction"], each["value"]) for each in parsed.structure if each["instruction"] != "COMMENT"]
        starts = [index for index, (instruction, _) in enumerate(steps) if instruction == "FROM"]
        self.stages = [steps[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]
        self.arguments = dict(value.split("=", 1) for instruction, value in steps if instruction == "ARG")
        self.environment: dict[str, str] = dict(parsed.envs)  # of the last stage
        self.last = dict(self.stages[-1])

    @property
    def volumes(self) -> set[str]:
        return set(json.loads(self.last["VOLUME"]))

    @property
    def ports(self) -> set[int]:
        return set(map(int, self.last["EXPOSE"].split()))

    @property
    def user(self) -> int:
        return int(self.last["USER"].split(":")[0])

    @property
    def health_check(self) -> list[str]:
        command: list[str] = json.loads(self.last["HEALTHCHECK"].partition(" CMD ")[2])
        return command

    @property
    def command(self) -> list[str]:
        command: list[str] = [*json.loads(self.last["ENTRYPOINT"]), *json.loads(self.last["CMD"])]
        return command


def build_context() -> set[Path]:
    """The files that go to the build of the image, relative to the repository, by Docker's own rules."""
    lines = [line.strip() for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()]
    let_in = exclude_paths(str(ROOT), [line for line in lines if line and not line.startswith("#")])
    return {Path(each) for each in let_in if (ROOT / each).is_file()}


def seconds(duration: str) -> float:
    """Of Docker's durations: 30s, 1m30s."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)([hms])", duration))
