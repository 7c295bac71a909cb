"""What server/http.md shows."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.support import RunningServer

PAGE = (Path(__file__).parents[3] / "server/http.md").read_text()
HERE = "http://127.0.0.1:8080"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_python(web: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    exec(block.replace(HERE, web.app.url), {})
    for name in ("partial-0", "partial-1", "circle"):
        Image.open(tmp_path / f"{name}.png").load()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl(web: RunningServer) -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("curl")]
    assert len(commands) == 2
    for command in commands:
        run = subprocess.run(
            command.replace(HERE, web.app.url), shell=True, capture_output=True, text=True, timeout=30, check=True
        )
        assert "SERVING" in run.stdout or '"name": "tiny"' in run.stdout
