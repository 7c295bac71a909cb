"""The browser example, in headless Chromium, against the real server."""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

from tests.darkroom_client.browsing import Browser
from tests.node import ROOT, built, needs_npm
from tests.support import RunningServer, settle

pytestmark = needs_npm


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    """The page's address, on an origin of its own."""
    folder = built(ROOT / "client/examples/browser", "build")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_picture_develops_on_a_page(tiny_model: Path, page: str, browser: Browser, tmp_path: Path) -> None:
    with RunningServer(
        models=[{"name": "tiny", "path": tiny_model}],
        http="127.0.0.1:0",
        cors_origins=[page],
        limits={"chunk_bytes": 1024},
    ) as server:
        url = f"{page}/?server={server.app.url}"
        seen = browser.run("example", "develop", url, tmp_path, {urlsplit(server.app.url).netloc})
        settle(server)  # Stop stopped the job
    assert seen["made"]["shown"] >= 4  # three previews, and the picture
    assert seen["made"]["size"] == [32, 32]
    assert seen["made"]["status"] == "seed 9007199254740993"
    assert seen["refused"].startswith("parameters.num_inference_steps must be from 1 to ")
    Image.open(tmp_path / "made.png").load()
