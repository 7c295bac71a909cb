"""`darkroom top`: one look, lines of JSON, and the live view in a terminal."""

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from darkroom_client import BatchLoad, Client, Job, ServerLoad
from darkroom_client.cli._top_view import Frame, drawn
from tests.darkroom_client.terminal import Terminal
from tests.failing import FailingServer
from tests.support import RunningServer, Stream

OPERATOR, USER = "0perator", "t0ken"
TOKENS = [
    {"name": name, "role": role, "sha256": hashlib.sha256(token.encode()).hexdigest()}
    for name, role, token in (("me", "operator", OPERATOR), ("ann", "user", USER))
]


@pytest.fixture(scope="module")
def busy(tiny_model: Path) -> Iterator[FailingServer]:
    """A server that is held while a job of ann's runs, and one of the operator's waits."""
    with FailingServer(tiny_model, tokens=TOKENS) as server, server.gate.closed():
        running = start(server, USER, server.request("patient", request_id="running", num_images=2))
        running.read_until("step")
        while server.app.engine.ticks < 2:
            pass
        waiting = start(server, OPERATOR, server.request("x", request_id="waiting"))
        waiting.read_until("accepted")
        yield server


def start(server: RunningServer, token: str, request: Any) -> Stream:
    return Stream(server.images.Generate(request, metadata=[("authorization", f"Bearer {token}")], timeout=120))


@pytest.fixture
def address(busy: FailingServer) -> str:
    return busy.address


def test_one_look(darkroom: Callable[..., Any]) -> None:
    lines = darkroom("top", "--once", "--token", OPERATOR).stdout.splitlines()
    about, jobs = lines[: lines.index("")], lines[lines.index("") + 1 :]
    assert about[0].startswith("Darkroom at 127.0.0.1:")
    assert about[1:3] == ["jobs     1 queued, 1 running; 2 streams open", "images   0 waiting, 2 in the engine"]
    assert about[3].startswith("batches  tiny 64: 4.0 rows, ")
    assert about[3].endswith(" s a step, 1 since the start")
    assert about[4].startswith("memory   ")
    assert about[5].startswith("         tiny: resident, ")
    assert about[5].endswith(", 2 in use")
    assert jobs[0].split() == ["job", "state", "model", "size", "step", "done", "rows", "s/step", "owner", "age"]
    assert jobs[1].split()[:7] == ["running", "running", "tiny", "32x32", "1/6", "0/2", "4"]
    assert jobs[1].split()[8] == "ann"
    assert jobs[2].split()[:7] == ["waiting", "queued", "tiny", "32x32", "0/6", "0/1", "me"]


def test_without_an_operators_token(darkroom: Callable[..., Any]) -> None:
    text = darkroom("top", "--once", "--token", USER).stdout
    assert "jobs     your own: others are shown to operators" in text
    assert "models   tiny resident" in text
    assert "running" in text
    assert "waiting" not in text


def test_a_look_as_json(darkroom: Callable[..., Any]) -> None:
    (line,) = darkroom("top", "--once", "--json", "--token", OPERATOR).stdout.splitlines()
    look = json.loads(line)
    assert look["load"]["queued_jobs"] == 1
    assert [job["request_id"] for job in look["jobs"]] == ["waiting", "running"]
    assert look["models"][0]["residency"] == "resident"
    assert json.loads(darkroom("top", "--once", "--json", "--token", USER).stdout)["load"] is None


def test_nobody_there(darkroom: Callable[..., Any]) -> None:
    result = darkroom("top", "--once", "--address", "127.0.0.1:1", exit_code=1)
    assert "no Darkroom server answers at 127.0.0.1:1" in result.stderr


def test_a_wrong_token(darkroom: Callable[..., Any]) -> None:
    assert "wants a token" in darkroom("top", "--once", exit_code=1).stderr


@pytest.mark.parametrize("columns", [80, 160])
def test_live(busy: FailingServer, columns: int) -> None:
    where = {"DARKROOM_ADDRESS": busy.address, "DARKROOM_TOKEN": OPERATOR}
    terminal = Terminal("top", "--interval", "0.1", columns=columns, **where)
    terminal.read_until("waiting ")
    terminal.write("x")
    for _ in range(3):
        terminal.read_until("waiting ")
    terminal.write("q")
    assert terminal.exit_code() == 0
    assert any(line.startswith("running") and " ann " in line and "1/6" in line for line in terminal.lines)
    assert all(len(line) <= columns for line in terminal.lines)
    assert "…" not in terminal.text
    assert any(line == "batches  none" for line in terminal.lines)  # it is held


def test_ctrl_c_ends_it(busy: FailingServer) -> None:
    terminal = Terminal("top", DARKROOM_ADDRESS=busy.address, DARKROOM_TOKEN=OPERATOR)
    terminal.read_until("waiting")
    os.kill(terminal.pid, signal.SIGINT)
    assert terminal.exit_code() == 0
    assert "Traceback" not in terminal.text


def test_a_wrong_token_ends_it(busy: FailingServer) -> None:
    terminal = Terminal("top", DARKROOM_ADDRESS=busy.address, DARKROOM_TOKEN="wr0ng")
    assert terminal.exit_code() == 1
    assert "wants a token" in terminal.lines[-1]


def test_a_server_that_goes_away(tiny_model: Path) -> None:
    models = [{"name": "tiny", "path": tiny_model}]
    with RunningServer(models=models) as server:
        terminal = Terminal("top", "--interval", "0.1", DARKROOM_ADDRESS=server.address, columns=120)
        terminal.read_until("no jobs")
    terminal.read_until("trying again")
    terminal.read_until("tiny: resident")  # the last look
    with RunningServer(models=models, listen=server.address) as again, Client(again.address) as client:
        stream = client.generate(request_id="back", num_inference_steps=500)
        terminal.read_until("back")
        stream.close()
        terminal.write("q")
        assert terminal.exit_code() == 0


def job(name: str, created: int, **fields: Any) -> Job:
    time = datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=created)
    about = {"owner": "", "kept": False, "task": "", "model": "", "prompt": "", "num_images": 0, "step_count": 0}
    times = {"create_time": time, "start_time": None, "end_time": None, "expire_time": None}
    given = {**about, **times, "step": 0, "images_done": 0, "position": None, "error": "", "error_reason": "", **fields}
    return Job(request_id=name, **given)


def lines(frame: Frame, before: Frame | None = None, height: int | None = None) -> list[str]:
    console = Console(width=80)
    with console.capture() as shown:
        console.print(drawn(frame, before, height, 80))
    return [line.rstrip() for line in shown.get().splitlines()]


def frame(seconds: int, *jobs: Job, steps: int = 0) -> Frame:
    batches = (BatchLoad("tiny", "64", steps, 4 * steps, 0.5 * steps),)
    load = ServerLoad(0, 0, 0, 0, 1, batches, (), 0, 2_000_000, 3_000_000)
    return Frame("here", load, [], list(jobs), datetime(2030, 1, 1, 0, 0, seconds, tzinfo=UTC))


def test_jobs_have_an_order_and_a_place() -> None:
    jobs = [
        job("late", 3, state="queued", position=1),
        job("early", 1, state="queued", position=0),
        job("unknown", 2, state="queued"),
        job("runs", 4, state="running"),
    ]
    shown = lines(frame(50, *jobs))
    rows = shown[shown.index("") + 2 :]
    assert [row.split()[0] for row in rows] == ["runs", "early", "late", "unknown"]
    assert [row.split()[1:-1] for row in rows] == [["running"], ["queued", "0"], ["queued", "1"], ["queued"]]
    assert [row.split()[-1] for row in rows] == ["46s", "49s", "47s", "48s"]


def test_a_long_list_is_cut_to_the_screen() -> None:
    jobs = [job(f"job-{number}", number, state="running") for number in range(50)]
    shown = lines(frame(50, *jobs), height=20)
    assert len(shown) <= 20
    assert shown[-1] == f"and {50 - sum(line.startswith('job-') for line in shown)} more"


def test_rates_are_those_of_the_interval() -> None:
    assert "batches  tiny 64: 4.0 rows, 0.500 s a step, 5.0 a second" in lines(frame(12, steps=30), frame(10, steps=20))
    assert "batches  none" in lines(frame(12, steps=20), frame(10, steps=20))
    again = lines(frame(12, steps=4), frame(10, steps=20))  # a server that was started again
    assert "batches  tiny 64: 4.0 rows, 0.500 s a step, 2.0 a second" in again


def test_memory() -> None:
    assert "memory   0 bytes of 3.0 MB on devices, 2.0 MB parked" in lines(frame(1))
