"""`make bench`: the server beside diffusers' pipeline on the same weights, in the same run.

Server and peers have a process each and take turns; each figure with a bar is a ratio of the two, or a share. Writes
tables to the terminal, and into a folder a JSON file and a chart of throughput and latency against load.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import (
    admission,
    approximations,
    chart,
    clients,
    cluster,
    control,
    deterministic,
    kept,
    load,
    queueing,
    short,
    startup,
    steps,
    tasks,
    where,
)
from tests.benchmarks.bench import Bench

RESULTS = Path(__file__).parent / "results"


def _weights(bench: Bench) -> dict[str, float]:
    from tests.benchmarks.pipelines import quiet
    from tests.benchmarks.weights import weights

    quiet()
    return weights(bench.served, bench.model, bench.dtype)


def _returning(bench: Bench) -> dict[str, float]:
    import torch

    from tests.benchmarks.returning import returning

    return returning(bench.large, torch.device(bench.options.device), 1 if bench.options.smoke else 5)


def _memory(bench: Bench) -> list[dict[str, Any]]:
    from tests.benchmarks.memory import memory

    edge, steps = (512, 8) if bench.cuda else (64, 4)
    return memory(bench.large, bench.options.device, edge, steps, few=bench.options.smoke)


PARTS = {
    "clients": clients.measure,
    "load": load.measure,
    "deterministic": deterministic.measure,
    "kept": kept.measure,
    "short": short.measure,
    "tasks": tasks.measure,
    "queueing": queueing.measure,
    "steps": steps.measure,
    "cluster": cluster.measure,
    "control": control.measure,
    "admission": admission.measure,
    "where": where.measure,
    "approximations": approximations.measure,
    "startup": startup.measure,
    "weights": _weights,
    "returning": _returning,
    "memory": _memory,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto", help="auto: float16 on CUDA, float32 elsewhere")
    parser.add_argument("--model", help="demo, sd15, sdxl (random weights) or a folder; none: demo, on CUDA sd15")
    parser.add_argument("--compile", action="store_true", help="the denoisers of server and peers, by torch.compile")
    parser.add_argument(
        "--quantize", choices=("int8", "int4", "float8", "float8-dynamic"), help="the server's denoiser, by torchao"
    )
    parser.add_argument("--only", type=lambda text: text.split(","), help=f"parts, of {','.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=1, help="how often the systems take turns")
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.0,
        help="measure clients and load in windows of so many seconds, a run each; 0: fixed numbers of pictures",
    )
    parser.add_argument(
        "--smoke", action="store_true", help="everything once with little work: the figures mean nothing"
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="the folder of the results")
    parser.add_argument("--record", action="store_const", const=RESULTS, dest="out", help="keep them, in results/")
    options = parser.parse_args()
    if unknown := set(options.only or ()) - set(PARTS):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    return options


def main() -> None:
    options = arguments()
    os.environ |= {
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    bench = Bench(options)
    if bench.cuda and not _cuda():
        print("skipped: torch finds no CUDA device here, and these figures need one")
        return
    began = time.perf_counter()
    try:
        bench.settle_threads()
        parts: dict[str, Any] = {}
        for name, part in PARTS.items():
            if not options.only or name in options.only:
                parts[name] = part(bench)
                write(bench, parts, time.perf_counter() - began)  # what is done is kept, whatever comes
    finally:
        bench.stop()
    if bench.bars:
        bench.table("bars", bench.bars)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def write(bench: Bench, parts: dict[str, Any], seconds: float) -> None:
    """Write the JSON file, and the chart if there are load results."""
    import torch

    options = bench.options
    result = {
        "device": torch.cuda.get_device_name() if bench.cuda else f"{platform.processor() or platform.machine()} CPU",
        "torch": torch.__version__,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "model": "the demo model" if bench.demo else bench.model.name,
        "compiled": options.compile,
        "quantized": options.quantize,
        "rounds": options.rounds,
        "window": options.seconds,
        "limit": bench.limit,
        "seconds": round(seconds),
        "bars": bench.bars,
        **parts,
    }
    options.out.mkdir(exist_ok=True, parents=True)
    device, model = options.device.partition(":")[0], Path(options.model or "").name
    how = (device, model, options.compile and "compiled", options.quantize)
    stem = options.out / "-".join(filter(None, how))
    stem.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    if "load" in parts:
        chart.draw(stem.with_suffix(".png"), parts["load"]["rows"])
    print(f"written: {stem.with_suffix('.json')}, after {seconds:.0f} s")


if __name__ == "__main__":
    main()
