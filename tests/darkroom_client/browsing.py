"""A browser that tests share, and the page `darkroom ui` in a process of its own."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.node import ROOT, built


class Browser:
    """Headless Chromium, driven by tests/browser/drive.mjs."""

    def __enter__(self) -> "Browser":
        command = ["node", built(ROOT / "tests/browser") / "drive.mjs"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def run(self, script: str, scenario: str, url: str, folder: Path, hosts: set[str], **more: Any) -> dict[str, Any]:
        """What a scenario saw. Nothing may go wrong in its pages, and they ask the page's own host, and `hosts`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"script": script, "scenario": scenario, "url": url, "folder": str(folder), **more}
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        assert "failed" not in answer, answer["failed"]
        assert answer["errors"] == []
        assert set(answer["hosts"]) == {urlsplit(url).netloc, *hosts}
        seen: dict[str, Any] = answer["seen"]
        return seen


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


@contextlib.contextmanager
def page_of(address: str, *options: object, **environment: str) -> Iterator[tuple[str, list[str]]]:
    """The address of the page of a server, and what its process says: at first that address, the rest at the end."""
    listen = f"127.0.0.1:{free_port()}"
    code = "from darkroom_client.cli import main; main()"
    command = [sys.executable, "-c", code, "ui", "--address", address, "--listen", listen, *map(str, options)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment) as process:
        assert process.stderr is not None
        said = [process.stderr.readline()]
        try:
            assert said == [f"Darkroom's page is on http://{listen}/\n"]
            yield f"http://{listen}/", said
        finally:
            process.terminate()
            said.append(process.stderr.read())
    assert "Traceback" not in said[-1], said[-1]
