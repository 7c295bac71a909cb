"""The command line in a real terminal: the preview develops in it, and Ctrl-C stops the job on the server."""

import os
import signal

import pytest

from tests.darkroom_client.terminal import Terminal


@pytest.fixture(autouse=True)
def _here(scripted, monkeypatch, tmp_path):
    monkeypatch.setenv("DARKROOM_ADDRESS", scripted.address)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", [["generate"], ["edit", "photo.png"]])
def test_the_preview_develops_in_the_terminal(scripted, tmp_path, command):
    (tmp_path / "photo.png").write_bytes(b"photo")
    terminal = Terminal(*command, "a red circle")
    assert terminal.exit_code() == 0
    assert terminal.text.count("▀") >= 48 * 24
    assert "38;2;255;0;0" in terminal.text
    assert any(line.startswith("a red circle") and "3/3" in line and "done" in line for line in terminal.lines)
    assert terminal.lines[-1] == "a-red-circle-7.png"
    assert scripted.requests[0].preview.mode == 0


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(["--no-preview"], {}), (["--preview", "off"], {}), ([], {"NO_COLOR": "1"}), ([], {"TERM": "dumb"})],
)
def test_without_previews(scripted, arguments, environment):
    terminal = Terminal("generate", "a red circle", *arguments, **environment)
    assert terminal.exit_code() == 0
    assert "▀" not in terminal.text
    assert terminal.lines[-1] == "a-red-circle-7.png"
    assert scripted.requests[0].preview.mode == 1


@pytest.mark.parametrize("command", ["generate", "compare-schedulers"])
def test_ctrl_c_cancels_on_the_server(scripted, command):
    scripted.script = scripted.endless
    terminal = Terminal(command, "a red circle")
    scripted.wait(lambda: scripted.endless_steps >= 50)  # the client reads
    os.kill(terminal.pid, signal.SIGINT)
    assert terminal.exit_code() == 130
    assert terminal.lines[-1] == "interrupted"
    assert "Traceback" not in terminal.text
    scripted.wait_ended(scripted.requests[0].request_id)
