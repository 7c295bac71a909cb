"""The unit of systemd, and the style of all YAML beside it."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from darkroom_client.cli import app
from tests.deploy.files import DEPLOY, SECONDS_TO_END, settings

UNIT = (DEPLOY / "darkroom.service").read_text()
STYLE = """
extends: default
rules: {document-start: disable, line-length: {max: 120}, comments: {min-spaces-from-content: 1}}
"""


def value(key: str) -> str:
    (found,) = re.findall(rf"^{key}=(.*)$", UNIT, re.MULTILINE)
    return str(found)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_takes_it(tmp_path: Path) -> None:
    def said(text: str) -> str:
        file = tmp_path / "darkroom.service"
        file.write_text(text.replace("/opt/darkroom/bin/darkroom", sys.executable))  # which must be there
        command = ["systemd-analyze", "verify", "--man=no", str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    assert "darkroom" not in said(UNIT)
    assert "KillModes" in said(UNIT.replace("KillMode", "KillModes"))


def test_its_command_and_settings_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    program, command, *flags = shlex.split(value("ExecStart"))
    monkeypatch.setenv("COLUMNS", "200")
    shown = CliRunner().invoke(app, [command, "--help"]).output
    assert Path(program).name == "darkroom"
    assert all(f"{flag} " in shown for flag in flags if flag.startswith("--"))
    variables = dict(each.split("=", 1) for each in value("Environment").split())
    expected = {"%C/darkroom": value("CacheDirectory"), "%S/darkroom": value("StateDirectory")}
    assert set(expected.values()) == {"darkroom"}
    assert set(expected) < set(variables.values())
    found = settings(monkeypatch, variables)
    assert str(found.state_dir) == variables["DARKROOM_STATE_DIR"]
    assert float(value("TimeoutStopSec")) > found.drain_seconds + SECONDS_TO_END


def test_yaml_is_tidy() -> None:
    command = [sys.executable, "-m", "yamllint", "--strict", "-d", STYLE]
    result = subprocess.run([*command, str(DEPLOY)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")
    twice = subprocess.run([*command, "-"], input="a: 1\na: 2\n", capture_output=True, text=True, check=False)
    assert 'duplication of key "a"' in twice.stdout
