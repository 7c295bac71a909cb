"""A hub on this machine: as much of its protocol as huggingface_hub needs to download a repository."""

import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from tests.checkpoints import COMMIT


class Hub:
    """Offers one folder as the repository `name`, with the branch `main`. `downloads` lists what was fetched; weights
    are given out while `serving` is set. The next of a file's `faults` is called in the middle of what is left of it,
    and ends the download; `resumed` lists what was asked for from a byte on. The repository `tiny/gated` asks for its
    terms to be accepted."""

    def __init__(self, folder: Path, name: str) -> None:
        self.downloads: list[str] = []
        self.resumed: list[tuple[str, int]] = []
        self.faults: dict[str, list[Callable[[], object]]] = {}
        self.serving = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(folder, name, self))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def reached(self, patch: pytest.MonkeyPatch) -> None:
        """Have huggingface_hub take it for the real one."""
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "ENDPOINT", self.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + "/{repo_id}/resolve/{revision}/{filename}")

    def __enter__(self) -> "Hub":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(folder: Path, name: str, hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            api, files = f"/api/models/{name}", f"/{name}/resolve/{COMMIT}/"
            if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
                self._send(body, json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode())
            elif path == f"{api}/tree/{COMMIT}":
                self._send(body, json.dumps([_entry(each, folder) for each in _files(folder)]).encode())
            elif path.startswith(files) and (file := folder / path.removeprefix(files)).is_file():
                if body:
                    assert file.suffix != ".safetensors" or hub.serving.wait(20)
                    hub.downloads.append(path.removeprefix(files))
                self._send_file(body, file, path.removeprefix(files))
            elif path.startswith(files):
                self._send(body, b"{}", 404, **{"X-Error-Code": "EntryNotFound"})
            elif path.startswith((api, f"/{name}/")):
                self._send(body, b"{}", 404, **{"X-Error-Code": "RevisionNotFound"})
            elif path.startswith("/api/models/tiny/gated"):
                self._send(body, b"{}", 403, **{"X-Error-Code": "GatedRepo"})
            else:
                self._send(body, b"{}", 404, **{"X-Error-Code": "RepoNotFound"})

        def _send_file(self, body: bool, file: Path, name: str) -> None:
            content, tag, start = file.read_bytes(), f'"{_hash(file)}"', 0
            if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
                start = int(asked[1])
                hub.resumed.append((name, start))
            headers = {"ETag": tag, "Content-Length": str(len(content) - start)}
            if asked:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content, faults = content[start:], hub.faults.get(name, []) if body else []
            self._send(body, content[: len(content) // 2] if faults else content, 206 if asked else 200, **headers)
            if faults:
                self.wfile.flush()
                faults.pop(0)()

        def _send(self, body: bool, content: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for key, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(content)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    return Handler


def _files(folder: Path) -> list[Path]:
    return sorted(each for each in folder.rglob("*") if each.is_file())


def _hash(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def _entry(file: Path, folder: Path) -> dict[str, object]:
    return {
        "type": "file",
        "path": str(file.relative_to(folder)),
        "size": file.stat().st_size,
        "oid": _hash(file),
    }
