"""`darkroom ui` of a server with tokens and TLS: whom it lets in, and who lets it in."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from darkroom_client.cli import app
from darkroom_server.cli.self_signed import Files, self_signed
from tests.darkroom_client.browsing import Browser, page_of
from tests.node import needs_npm
from tests.support import RunningServer

pytest.importorskip("gradio")
TOKEN = "a-token-that-no-visitor-sees"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return self_signed(tmp_path_factory.mktemp("tls"), None)


@pytest.fixture(scope="module")
def locked(tiny_model: Path, files: Files) -> Iterator[RunningServer]:
    tls = {"certificate": files.certificate, "key": files.key}
    tokens = [{"name": "page", "sha256": hashlib.sha256(TOKEN.encode()).hexdigest()}]
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], tls=tls, tokens=tokens) as server:
        yield server


@needs_npm
def test_visitors_log_in_and_see_no_token(locked: RunningServer, files: Files, browser: Browser, tmp_path: Path) -> None:
    environment = {"DARKROOM_TOKEN": TOKEN, "DARKROOM_UI_LOGIN": "visitor:open sesame"}
    with page_of(locked.address, "--tls-ca", files.ca, **environment) as (url, said):
        seen = browser.run("ui", "login", url, tmp_path, set(), token=TOKEN)
    assert said[1] == "interrupted\n"
    assert seen["texts"] > 10
    assert seen["told"] == 0
    assert "a fox" in seen["details"]


@needs_npm
def test_a_wrong_token_is_told(locked: RunningServer, files: Files, browser: Browser, tmp_path: Path) -> None:
    with page_of(locked.address, "--tls-ca", files.ca, "--token", "guessed") as (url, said):
        seen = browser.run("ui", "refused", url, tmp_path, set())
    warning, end = said[1].splitlines()
    assert warning.startswith("warning: ")
    assert "token" in warning
    assert end == "interrupted"
    for text in seen.values():
        assert "token" in text
        assert "guessed" not in text


def test_a_login_has_a_name_and_a_password() -> None:
    result = CliRunner().invoke(app, ["ui", "--login", "visitor"])
    assert result.exit_code == 2
    assert "NAME:PASSWORD" in result.output
