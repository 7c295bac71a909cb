"""`darkroom ui` of a server with tokens and TLS: whom it lets in, and who lets it in."""

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from darkroom_client.cli import app
from darkroom_server.cli.self_signed import Files, self_signed
from tests.darkroom_client.browsing import Browser, free_port, page_of
from tests.node import needs_npm
from tests.support import RunningServer

pytest.importorskip("gradio")
TOKEN = "a-token-that-no-visitor-sees"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return self_signed(tmp_path_factory.mktemp("tls"), None)


def locked(tiny_model: Path, files: Files, listen: str = "127.0.0.1:0") -> RunningServer:
    tls = {"certificate": files.certificate, "key": files.key}
    tokens = [{"name": "page", "sha256": hashlib.sha256(TOKEN.encode()).hexdigest()}]
    return RunningServer(models=[{"name": "tiny", "path": tiny_model}], tls=tls, tokens=tokens, listen=listen)


@needs_npm
def test_visitors_log_in_and_see_no_token(tiny_model: Path, files: Files, browser: Browser, tmp_path: Path) -> None:
    environment = {"DARKROOM_TOKEN": TOKEN, "DARKROOM_UI_LOGIN": "visitor:open sesame"}
    with locked(tiny_model, files) as server, page_of(server.address, "--tls-ca", files.ca, **environment) as page:
        url, said = page
        seen = browser.run("ui", "login", url, tmp_path, set(), token=TOKEN)
    assert said[1] == "interrupted\n"
    assert seen["texts"] > 10
    assert seen["told"] == 0
    assert "a fox" in seen["details"]


@needs_npm
def test_the_page_waits_for_its_server_which_refuses_its_token(
    tiny_model: Path, files: Files, browser: Browser, tmp_path: Path
) -> None:
    address, waits = f"127.0.0.1:{free_port()}", tmp_path / "waiting.png"
    with page_of(address, "--tls-ca", files.ca, "--token", "guessed") as (url, said), ThreadPoolExecutor(1) as pool:
        visit = pool.submit(browser.run, "ui", "wait", url, tmp_path, set())
        while not waits.exists() and not visit.done():
            time.sleep(0.05)
        with locked(tiny_model, files, address):
            seen = visit.result()
    warning, end = said[1].splitlines()
    assert warning == "warning: this server wants a token: authorization: Bearer <token>"
    assert end == "interrupted"
    text = "The server does not accept this page's token: start `darkroom ui` with another one"
    assert seen == {"waiting": f"Waiting for the server at {address}", "opened": text, "asked": text}


def test_a_login_has_a_name_and_a_password() -> None:
    result = CliRunner().invoke(app, ["ui", "--login", "visitor"])
    assert result.exit_code == 2
    assert "NAME:PASSWORD" in result.output
