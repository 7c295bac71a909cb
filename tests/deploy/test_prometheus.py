"""Prometheus itself: it reads a server as compose.yaml has it do, and answers every query of Grafana's dashboard."""

import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY
from tests.support import RunningServer, Stream, generate_request, preview

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="no Prometheus here")
ME = [("authorization", "Bearer t0ken")]
INTERVAL = "200ms"  # between its readings


@pytest.fixture
def server(tiny_model: Path) -> Iterator[RunningServer]:
    tokens = [{"name": "me", "role": "operator", "sha256": hashlib.sha256(b"t0ken").hexdigest()}]
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], tokens=tokens, metrics="127.0.0.1:0") as server:
        yield server


@contextlib.contextmanager
def prometheus(target: str, folder: Path) -> Iterator[str]:
    """The URL of one that reads this target, by the configuration of compose.yaml."""
    text = (DEPLOY / "prometheus.yaml").read_text()
    config = folder / "prometheus.yml"
    config.write_text(
        re.sub(r"darkroom:\d+", target, text).replace("scrape_interval: 5s", f"scrape_interval: {INTERVAL}")
    )
    assert target in config.read_text()
    assert INTERVAL in config.read_text()
    log = folder / "log"
    options = {"config.file": config, "storage.tsdb.path": folder / "data", "web.listen-address": "127.0.0.1:0"}
    command = ["prometheus", *(f"--{name}={value}" for name, value in options.items())]
    with log.open("wb") as output, subprocess.Popen(command, stderr=output, cwd=folder) as process:
        try:
            listening = r'msg="Listening on".* address=(\S+)'
            while not (found := re.search(listening, log.read_text())):
                assert process.poll() is None, log.read_text()
                time.sleep(0.02)
            url = f"http://{found[1]}"
            while not ready(url):
                assert process.poll() is None, log.read_text()
                time.sleep(0.02)
            yield url
        finally:
            process.terminate()


def ready(url: str) -> bool:
    """Whether it answers queries yet."""
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=20):
            return True
    except urllib.error.URLError:
        return False


def ask(url: str, query: str) -> list[float]:
    """The values that a query has now."""
    words = urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(f"{url}/api/v1/query?{words}", timeout=20) as answer:
        return [float(each["value"][1]) for each in json.load(answer)["data"]["result"]]


def queries() -> list[str]:
    """Those of the dashboard, with an interval for their rates."""
    panels = json.loads((DEPLOY / "grafana.json").read_text())["panels"]
    found = [target["expr"] for panel in panels for target in panel["targets"]]
    return [each.replace("$__rate_interval", "5s") for each in found]


def test_every_query_of_the_dashboard_has_an_answer(server: RunningServer, tmp_path: Path) -> None:
    def start(steps: int) -> Stream:
        request = generate_request(num_inference_steps=steps, **preview(mode="PREVIEW_MODE_LATENT_RGB"))
        return Stream(server.images.Generate(request, metadata=ME, timeout=60))

    with prometheus(server.app.metrics.address, tmp_path) as url:
        while not ask(url, "darkroom_info"):
            time.sleep(0.05)
        unanswered = queries()
        assert len(unanswered) > 15
        while unanswered:  # a rate wants two readings; the test's own time limit ends this
            start(2).read()
            midway = start(50)
            midway.read_until("step")
            midway.call.cancel()
            unanswered = [each for each in unanswered if not any(value >= 0 for value in ask(url, each))]
        assert ask(url, 'sum(darkroom_jobs_ended_total{reason="OK"})')[0] >= 1
