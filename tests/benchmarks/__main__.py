"""`make bench`: the server beside diffusers' pipeline on the same weights, in the same run.

Server and peers have a process each and take turns; each figure with a bar is a ratio of the two, or a share. Writes
tables to the terminal, and into a folder a JSON file and a chart of throughput and latency against load.
"""

import argparse
import importlib
import os
import platform
import time
from pathlib import Path

from tests.benchmarks import chart, results
from tests.benchmarks.bench import Bench

RESULTS = Path(__file__).parent / "results"
PARTS = (  # modules: what some of them need is not everywhere
    "clients",
    "load",
    "deterministic",
    "kept",
    "short",
    "unread",
    "tasks",
    "queueing",
    "steps",
    "cluster",
    "control",
    "admission",
    "where",
    "approximations",
    "startup",
    "weights",
    "returning",
    "memory",
)
FIRST = ("machine", "smoke", "networks")  # of a GPU that nothing is known of; only where --only names them


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto", help="auto: float16 on CUDA, float32 elsewhere")
    parser.add_argument("--model", help="demo, sd15, sdxl (random weights) or a folder; none: demo, on CUDA sd15")
    parser.add_argument("--compile", action="store_true", help="the denoisers of server and peers, by torch.compile")
    parser.add_argument(
        "--quantize", choices=("int8", "int4", "float8", "float8-dynamic"), help="the server's denoiser, by torchao"
    )
    parser.add_argument("--only", type=lambda text: text.split(","), help=f"parts, of {','.join(PARTS + FIRST)}")
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
    parser.add_argument(
        "--at-once", type=int, default=1, help="memory options measured at once, which disturb each other's times"
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="the folder of the results")
    parser.add_argument("--section", help="put the results under this name into results.json, beside what is there")
    parser.add_argument("--record", action="store_const", const=RESULTS, dest="out", help="keep them, in results/")
    options = parser.parse_args()
    if unknown := set(options.only or ()) - {*PARTS, *FIRST}:
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
    bench.keep = lambda: write(bench, time.perf_counter() - began)
    try:
        bench.settle_threads()
        for name in options.only or PARTS:
            bench.measure(name, importlib.import_module(f"tests.benchmarks.{name}").measure)
            print(f"{name}: done, after {time.perf_counter() - began:.0f} s", flush=True)
    finally:
        bench.stop()
    if bench.bars:
        bench.table("bars", bench.bars)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def write(bench: Bench, seconds: float) -> None:
    """Write the JSON file, and the chart if there are load results."""
    import torch

    options = bench.options
    result = {
        "device": torch.cuda.get_device_name() if bench.cuda else f"{platform.processor() or platform.machine()} CPU",
        "torch": torch.__version__,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "model": "the demo model" if bench.demo else bench.name,
        "compiled": options.compile,
        "quantized": options.quantize,
        "rounds": options.rounds,
        "window": options.seconds,
        "seconds": round(seconds),
        "bars": bench.bars,
        **bench.parts,
    }
    device, model = options.device.partition(":")[0], Path(options.model or "").name
    stem = "-".join(filter(None, (device, model, options.compile and "compiled", options.quantize)))
    results.write(options.out / ("results.json" if options.section else f"{stem}.json"), result, options.section)
    if rows := bench.parts.get("load", {}).get("rows"):
        chart.draw(options.out / f"{stem}.png", rows)


if __name__ == "__main__":
    main()
