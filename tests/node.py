"""Programs for Node.js that tests run: installed and built in a cached folder, once for each state of their sources."""

import fcntl
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache/node"
MADE = {"node_modules", "dist", "gen"}

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="no Node.js")


def built(source: Path, *scripts: str) -> Path:
    """A copy of a package's folder, with its dependencies as locked, after these scripts of its package.json. It lies
    as deep as ``client/examples/NAME``, from where a package finds ``../../../protos``."""
    target = CACHE / source.relative_to(ROOT).as_posix().replace("/", "-")
    target.mkdir(parents=True, exist_ok=True)
    with open(target.with_suffix(".lock"), "w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        files = [path for path in sorted(source.rglob("*")) if path.is_file() and not MADE & set(path.parts)]
        state = hashlib.sha256(" ".join(scripts).encode())
        for path in (*files, *sorted((ROOT / "protos").rglob("*.proto"))):
            state.update(path.read_bytes())
        done = target / f".{state.hexdigest()}"
        if not done.exists():
            for path in files:
                copy = target / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)
            install = ["npm", "ci", "--prefer-offline", "--no-audit", "--no-fund"]
            for command in (install, *(["npm", "run", script] for script in scripts)):
                subprocess.run(command, cwd=target, check=True, timeout=110)
            done.touch()
    return target
