"""How `darkroom serve` ends: what signals ask for, and in bounded time."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from darkroom_client import Client, DarkroomError

# A server in whose engine jobs of the prompt "hang" never end a step, and others take their time; or one that never
# is ready, or whose process stays after it has stopped.
SERVER = """
import sys, threading, time
from darkroom_plugins.builtin.tasks import txt2img

def after_evaluation(task, sample, latents, parameters):
    if sample.request.prompt == "hang":
        print("hanging", file=sys.stderr, flush=True)
        threading.Event().wait()
    time.sleep(0.05)
    return latents

txt2img.Txt2Img.after_evaluation = after_evaluation
if sys.argv[2] == "hang while opening":
    from darkroom_plugins.builtin.families.sd import StableDiffusion

    def detect(model_index):
        print("opening", flush=True)
        threading.Event().wait()

    StableDiffusion.detect = detect
if sys.argv[2] == "hang at exit":
    import atexit

    @atexit.register
    def leave():
        print("leaving", file=sys.stderr, flush=True)
        while True:  # what waits in one call misses signals that another thread gets
            time.sleep(0.05)
from darkroom_client.cli import main
sys.argv = ["darkroom", "serve", "--listen", "127.0.0.1:0", "--config", sys.argv[1]]
main()
"""


class Served:
    """The process, and what it has said."""

    def __init__(self, config: Path, nohup: bool, start: str) -> None:
        code = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_{'IGN' if nohup else 'DFL'})\n{SERVER}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(config), start],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.first_line = self.process.stdout.readline()
        self.said = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def address(self) -> str:
        return self.first_line.split(" on ")[1].split(": ")[0]

    def _read(self) -> None:
        for line in self.process.stderr:
            self.said += line

    def signal(self, *signals: int) -> None:
        """Send signals, each once the one before was logged."""
        for number, each in enumerate(signals, 1):
            self.process.send_signal(each)
            self.await_said("SIG", number)

    def await_said(self, text: str, times: int = 1) -> None:
        """Wait until it has said this so many times, or has ended."""
        while self.said.count(text) < times and self.process.poll() is None:
            threading.Event().wait(0.01)

    def status(self) -> int:
        """The exit status, once it has ended."""
        status = self.process.wait(60)
        self._reader.join()
        self.process.stdout.close()
        self.process.stderr.close()
        return status


@pytest.fixture
def serve(tiny_model: Path, tmp_path: Path) -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def start(drain_seconds: float, nohup: bool = False, start: str = "at once") -> Served:
        config = tmp_path / "darkroom.toml"
        config.write_text(f'drain_seconds = {drain_seconds}\n[[models]]\nname = "tiny"\npath = "{tiny_model}"\n')
        started.append(Served(config, nohup, start))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.status()


class Job:
    """A job of a client on a thread of its own."""

    def __init__(self, served: Served, prompt: str, steps: int) -> None:
        self.began, self.outcome = threading.Event(), ""
        self._thread = threading.Thread(target=self._run, args=(served.address, prompt, steps))
        self._thread.start()
        if prompt == "hang":
            served.await_said("hanging")
        else:
            assert self.began.wait(60)

    def _run(self, address: str, prompt: str, steps: int) -> None:
        try:
            with Client(address, retries=0) as client:
                for event in client.generate(prompt, num_inference_steps=steps):
                    self.outcome = type(event).__name__
                    if self.outcome == "Step":
                        self.began.set()
        except DarkroomError as error:
            self.outcome = type(error).__name__

    def end(self) -> str:
        self._thread.join(60)
        return self.outcome


def test_the_first_signal_drains(serve: Callable[..., Served]) -> None:
    served = serve(60)
    job = Job(served, "a", steps=20)
    served.signal(signal.SIGHUP)
    assert job.end() == "Completed"
    assert served.status() == 0


def test_the_second_ends_the_drain(serve: Callable[..., Served]) -> None:
    served = serve(600)
    job = Job(served, "a", steps=500)
    served.signal(signal.SIGTERM, signal.SIGINT)
    assert job.end() == "ShuttingDown"
    assert served.status() == 0


def test_a_hanging_thread_does_not_keep_the_process(serve: Callable[..., Served]) -> None:
    served = serve(0.1)
    Job(served, "hang", steps=5)
    served.signal(signal.SIGTERM)
    assert served.status() == 70
    assert "does not stop by itself" in served.said


def test_the_third_exits_at_once(serve: Callable[..., Served]) -> None:
    served = serve(600)
    Job(served, "hang", steps=5)
    served.signal(signal.SIGINT, signal.SIGINT, signal.SIGINT)
    assert served.status() == 130


def test_a_process_that_is_leaving_heeds_signals_as_before(serve: Callable[..., Served]) -> None:
    served = serve(600, start="hang at exit")
    served.signal(signal.SIGTERM)
    served.await_said("leaving")
    served.process.send_signal(signal.SIGTERM)
    served.process.send_signal(signal.SIGINT)
    assert served.status() == 130


def test_nohup_is_heeded(serve: Callable[..., Served]) -> None:
    served = serve(60, nohup=True)
    served.process.send_signal(signal.SIGHUP)
    job = Job(served, "a", steps=3)
    assert job.end() == "Completed"
    os.kill(served.process.pid, signal.SIGTERM)
    assert served.status() == 0


def test_what_was_never_ready_is_not_waited_for(serve: Callable[..., Served]) -> None:
    served = serve(600, start="hang while opening")
    assert served.first_line == "opening\n"
    served.signal(signal.SIGTERM)
    assert served.status() == 0
