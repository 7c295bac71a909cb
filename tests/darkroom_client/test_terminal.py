"""The command line in a real terminal: the preview develops in it, and Ctrl-C stops the job on the server."""

import os
import signal
import threading

import grpc
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


def test_many_jobs_have_one_bar_for_all_and_one_each_at_the_server(scripted, make_events, abort_call):
    goes_on = threading.Event()

    def script(request, context):
        events = make_events(request.request_id)
        match request.parameters.prompt:
            case "bad":
                abort_call(context, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "no such model")
            case "third":
                yield events.accepted()
                yield events.queued(5)
                goes_on.wait(30)
        yield from events.whole_job()

    scripted.script = script
    terminal = Terminal("generate", "first", "bad", "third", "--num-images", "1", "--seed", "7")
    try:
        terminal.read_until("1 done, 1 failed, 1 waiting")
        terminal.read_until("waiting behind 5")
    finally:
        goes_on.set()
    assert terminal.exit_code() == 1
    assert any(line.startswith("all 3") and "3/6" in line for line in terminal.lines)
    last = next(line for line in reversed(terminal.lines) if line.startswith("all 3"))
    assert "6/6" in last
    assert "2 done, 1 failed" in last
    after = terminal.lines[terminal.lines.index(last) + 1 :]
    assert after == ["error: bad: no such model", "1-first-7.png", "3-third-7.png"]


def test_bars_of_jobs_stand_in_the_order_of_the_prompts(scripted, make_events):
    second_is_shown, first_is_shown = threading.Event(), threading.Event()

    def script(request, context):
        events = make_events(request.request_id)
        if request.parameters.prompt == "first":
            second_is_shown.wait(30)
        yield events.accepted()
        yield events.queued(0)
        first_is_shown.wait(30)
        yield from events.whole_job()

    scripted.script = script
    terminal = Terminal("generate", "first", "second", "--seed", "7")
    try:
        terminal.read_until("second")
        second_is_shown.set()
        terminal.read_until("first")
    finally:
        first_is_shown.set()
    assert terminal.exit_code() == 0
    place = next(place for place, line in enumerate(terminal.lines) if line.startswith("first"))
    assert terminal.lines[place + 1].startswith("second")
    assert terminal.lines[place + 1].endswith("next")  # not "behind 0"


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


@pytest.fixture
def only_first_ends(scripted, make_events):
    """Of two jobs."""

    def script(request, context):
        if request.parameters.prompt == "first":
            return make_events(request.request_id).whole_job()
        return scripted.endless(request, context)

    scripted.script = script


def test_ctrl_c_names_the_kept_jobs_that_go_on(scripted, only_first_ends):
    terminal = Terminal("generate", "first", "second", "--keep", "--jobs", "1", "--seed", "7")
    scripted.wait(lambda: scripted.endless_steps >= 50)  # the client reads
    os.kill(terminal.pid, signal.SIGINT)
    assert terminal.exit_code() == 130
    goes_on = f"goes on: `darkroom watch {scripted.requests[1].request_id}`"
    assert terminal.lines[-3:] == ["1-first-7.png", goes_on, "interrupted"]


def test_ctrl_c_names_the_pictures_that_are_done(scripted, only_first_ends):
    terminal = Terminal("generate", "first", "second", "--jobs", "1", "--seed", "7")
    scripted.wait(lambda: scripted.endless_steps >= 1)
    os.kill(terminal.pid, signal.SIGINT)
    assert terminal.exit_code() == 130
    assert terminal.lines[-2:] == ["1-first-7.png", "interrupted"]
