"""The examples of plugins/README.md work as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "plugins/README.md"


def test_examples(tmp_path: Path) -> None:
    written = []
    for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        for name, text in re.findall(r"^# (\w+\.py)\n(.*?)(?=^# \w+\.py\n|\Z)", block, re.DOTALL | re.MULTILINE):
            (tmp_path / name).write_text(text)
            written.append(name)
    tests = [name for name in written if name.startswith("test_")]
    assert len(tests) == 5
    assert len(written) == 10
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--import-mode=prepend",
            "--rootdir",
            ".",
            "-p",
            "no:cacheprovider",
            *tests,
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    assert f"{len(tests)} passed" in result.stdout
