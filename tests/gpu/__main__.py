"""`make bench-gpu`: all there is to measure on a GPU, in stages by value, each with a limit of its own.

All figures are in results.json as soon as they are there, all that is said is in log.txt. Without names, the stages
that are not done there yet. `--dry`: on the CPU, with the demo model and little work, to try the stages themselves.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.benchmarks import results
from tests.gpu.report import RESULTS

ROOT = Path(__file__).parents[2]
SPARE = 15.0  # seconds: a stage for which less is left does not begin
PATIENCE = 10.0  # seconds: for a stage that was interrupted
LATE = 124  # exit status of a stage that took too long


@dataclass(frozen=True)
class Stage:
    """Runs of the benchmark one after another, each with these options; or another command."""

    seconds: float
    runs: Sequence[str] = ()
    command: str = ""
    weights: Sequence[str] = ()  # that it needs


WINDOWS = "--only clients --seconds"
STAGES = {
    "machine": Stage(45, ["--only machine"]),
    "smoke": Stage(75, ["--only smoke --model demo"]),
    "pytest": Stage(
        240,
        # Other plugins than these, and warnings of other versions, are none of the tests' concern.
        command="pytest -v -m gpu tests/test_gpu.py --tb=short -W default -p no:cacheprovider "
        "-p pytest_timeout -p tests.gpu.report",
    ),
    "networks": Stage(120, ["--only networks --model sd15", "--only networks --model sdxl"]),
    "sd15": Stage(200, [f"--model sd15 {WINDOWS} 8"], weights=["sd15"]),
    "sdxl": Stage(240, [f"--model sdxl {WINDOWS} 16"], weights=["sdxl"]),
    "sdxl-compiled": Stage(330, [f"--model sdxl --compile {WINDOWS} 16"], weights=["sdxl"]),
    "sdxl-float8": Stage(
        330, [f"--model sdxl --compile --quantize float8-dynamic --dtype bfloat16 {WINDOWS} 16"], weights=["sdxl"]
    ),
    "memory": Stage(
        200,
        ["--only memory --at-once 4 --model sd15", "--only memory --at-once 4 --model sdxl"],
        weights=["sd15", "sdxl"],
    ),
    "sd15-compiled": Stage(240, [f"--model sd15 --compile {WINDOWS} 8"], weights=["sd15"]),
    "more": Stage(300, ["--model sd15 --seconds 8 --only deterministic,load,where,returning"], weights=["sd15"]),
}
NEEDED = ("smoke",)  # where these fail the others would tell nothing


def main(stages: Mapping[str, Stage] = STAGES) -> int:
    options = _arguments(stages)
    if not options.dry and not torch.cuda.is_available():
        print("torch finds no CUDA device here; --dry tries the stages on the CPU")
        return 1
    if options.dry:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # else the benchmark looks for the best number first
    os.chdir(ROOT)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "results.json"
    began, said = time.monotonic(), results.read(file).get("stages", {})
    names = options.stages or [name for name in stages if said.get(name, {}).get("said") != "ok"]
    weights = _Weights(list(dict.fromkeys(each for name in names for each in stages[name].weights)), options.dry)
    code = 0
    try:
        for name in names:
            left = options.seconds - (time.monotonic() - began)
            if left < SPARE:
                results.update(file, "stages", **{name: {"said": "no time left"}})
                continue
            limit = min(stages[name].seconds * options.patience, left - PATIENCE / 2)
            start = time.monotonic()
            _say(options.out, f"== {name}, up to {limit:.0f} s")
            if stages[name].weights:
                weights.wait(limit)
            rc = _run_stage(name, stages[name], limit - (time.monotonic() - start), options.out, options.dry)
            how = {0: "ok", LATE: f"cut off at {limit:.0f} s"}.get(rc, f"failed: exit {rc}")
            results.update(file, "stages", **{name: {"said": how, "s": round(time.monotonic() - start)}})
            _say(options.out, f"== {name}: {how}")
            code = code or rc
            if rc and name in NEEDED and not options.go_on:
                _say(options.out, "the rest would tell nothing; --go-on goes on all the same")
                break
    finally:
        weights.stop()
    for name, each in results.read(file).get("stages", {}).items():
        print(f"  {name:14} {each['said']}")
    return code


def _arguments(stages: Mapping[str, Stage]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(stages)}")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for all of them; none begins after that")
    parser.add_argument("--patience", type=float, default=1.0, help="times each stage's own limit")
    parser.add_argument("--go-on", action="store_true", help="also after a failed smoke stage")
    parser.add_argument("--dry", action="store_true", help="on the CPU")
    parser.add_argument("--out", type=lambda text: Path(text).absolute(), default=ROOT / "out/gpu", help="a folder")
    options = parser.parse_args()
    if unknown := set(options.stages) - set(stages):
        parser.error(f"there is no stage {', '.join(sorted(unknown))}")
    return options


def _run_stage(name: str, stage: Stage, seconds: float, out: Path, dry: bool) -> int:
    """The first failure's exit status, else 0."""
    until, code = time.monotonic() + seconds, 0
    for command in _commands(name, stage, out, dry):
        rc = run(command, until - time.monotonic(), out)
        if rc == LATE:
            return rc
        code = code or rc
    return code


def _commands(name: str, stage: Stage, out: Path, dry: bool) -> list[list[str]]:
    if stage.command:
        return [["-m", *stage.command.split()]]
    commands = []
    for number, run_ in enumerate(stage.runs):
        options = run_.split()
        section = name if len(stage.runs) == 1 else f"{name} {options[options.index('--model') + 1]}"
        if dry and number:
            break  # the same again
        how = ["--device", "cuda", *options]
        if dry:
            parts = options[options.index("--only") + 1]
            how = ["--smoke", "--only", parts, *(["--seconds", "0.5"] if "--seconds" in options else [])]
        commands.append(["-m", "tests.benchmarks", *how, "--out", str(out), "--section", section])
    return commands


def run(command: Sequence[str], seconds: float, out: Path) -> int:
    """Run Python with these arguments for at most so many seconds; what it says goes into log.txt, too. Whatever it
    started ends with it."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONUNBUFFERED": "1",
        RESULTS: str(out / "results.json"),
    }
    _say(out, f"-- python {' '.join(command)}")
    with subprocess.Popen(["tee", "-a", str(out / "log.txt")], stdin=subprocess.PIPE) as tee:
        process = subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=tee.stdin, stderr=tee.stdin, start_new_session=True
        )
        try:
            return process.wait(max(0.1, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)  # tests tell their failures, the benchmark stops its servers
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            return LATE
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class _Weights:
    """Makes models of random weights while the first stages run, which do not feel it."""

    def __init__(self, names: Sequence[str], dry: bool) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.architectures", "cuda", *names]
        self._process = subprocess.Popen(command) if names and not dry else None

    def wait(self, seconds: float) -> None:
        """Those that are not there then are made by the stage."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def _say(out: Path, line: str) -> None:
    print(line, flush=True)
    with (out / "log.txt").open("a") as log:
        log.write(line + "\n")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: a stage's servers end with it
    raise SystemExit(main())
