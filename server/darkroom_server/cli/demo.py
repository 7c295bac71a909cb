"""`make demo`: starts a server with the embedded model, generates one picture with the CLI, and stops it."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

DARKROOM = str(Path(sys.executable).with_name("darkroom"))


def wait_until_ready(server: subprocess.Popen[str]) -> str:
    """The server's listen address.

    :raises SystemExit: it did not start
    """
    assert server.stdout is not None
    found = re.search(r"ready on (\S+):", server.stdout.readline())
    if not found:
        raise SystemExit("the server did not start; `darkroom serve` says why")
    return found[1]


def main() -> int:
    """Run the demo; the exit code is that of `darkroom generate`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--prompt", default="a red circle on a blue background")
    parser.add_argument("--seed", default="7")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    server = subprocess.Popen(
        [DARKROOM, "serve", "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        address = wait_until_ready(server)
        command = [DARKROOM, "generate", options.prompt, "--seed", options.seed, "--address", address]
        command += ["--out", str(options.out / "demo.png"), "--previews", str(options.out / "previews")]
        return subprocess.run(command, check=False).returncode
    finally:
        server.terminate()
        server.wait(30)


if __name__ == "__main__":
    raise SystemExit(main())
