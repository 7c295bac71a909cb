"""Every block of every page is run, or parsed: what stands in a page works."""

import ast
import asyncio
import dataclasses
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
import torch
from click import Context
from PIL import Image, ImageDraw
from pydantic import ValidationError
from safetensors.torch import save_file
from typer.main import get_command
from typer.testing import CliRunner

from darkroom.v1 import events_pb2
from darkroom_client.cli import app
from darkroom_demo import CONTROLNET_PATH, LORA_PATHS, MODEL_PATH
from darkroom_plugins import contract, hookspecs
from darkroom_server.config.settings import Settings
from tests.node import built
from tests.pages import PAGES, ROOT, Block, blocks, words
from tests.support import RunningServer, settle

# Commands that are not run, by how they begin, and why. Options of `darkroom` and verbs of make are looked up.
NOT_RUN = {
    "make ": "sets up an environment; the tests run in one",
    ". .venv/": "the same",
    "pip install ": "tests/test_wheel.py and tests/deploy install into empty environments",
    "python -m tests.benchmarks.simulate": "takes minutes; tests/test_simulate.py runs the model",
    "python -m build": "tests/test_wheel.py builds",
    "python -m twine upload": "publishes",
    "npm install ": "tests/darkroom_client/test_typescript.py and test_browser.py build and run the examples",
    "DARKROOM_URL=": "the same",
    "darkroom serve": "the server of the tests is there",
    "darkroom ui": "tests/darkroom_client/test_ui_browser.py opens the page",
}
# Programs that the commands want beside a shell's; where one is missing, its commands are left out.
PROGRAMS = ("buf", "curl", "grpcurl", "jq")
ENVIRONMENT = Path(sys.executable).parent
# Pictures that a page makes.
MADE = {
    "README.md": {"heart.png", "again.jpg", "shapes.png", "edited.png"},
    "client/README.md": {
        "circle.png",
        "blue.png",
        "star.png",
        "again.png",
        "star.webp",
        "pictures/*-7.png",
        "matrix/*",
    },
    "protos/README.md": {"0.png", "1.png", "circle.png"},
    "server/http.md": {"partial-0.png", "partial-1.png", "circle.png"},
}
# Pages whose commands other tests run.
ELSEWHERE = {"client/examples/languages.md": "tests/darkroom_client/test_languages.py"}
QUICK = {"name": "shapes", "path": MODEL_PATH, "default_num_inference_steps": 2}
CLIENT = "from darkroom_client.cli import main; main()"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The demo model with few steps, and all that the pages name."""
    embedding = tmp_path_factory.mktemp("embeddings") / "cat-toy.safetensors"
    save_file({"<cat-toy>": torch.ones(2, 128)}, embedding)
    loras = {**LORA_PATHS, "ink": LORA_PATHS["outline"], "lcm": LORA_PATHS["stripes"]}
    quick = {"scheduler": "lcm", "loras": {"lcm": 1.0}}
    with RunningServer(
        models=[{**QUICK, "presets": {"lcm": quick, "fast": quick}}],
        loras=[{"name": name, "path": path} for name, path in loras.items()],
        controlnets=[{"name": "canny", "path": CONTROLNET_PATH, "preprocessor": "canny"}],
        embeddings=[{"name": "cat-toy", "path": embedding}],
        http="127.0.0.1:0",
        metrics="127.0.0.1:0",
    ) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the pictures that the pages name."""
    monkeypatch.chdir(tmp_path)
    photo = Image.new("RGB", (64, 64), "cyan")
    ImageDraw.Draw(photo).ellipse((16, 16, 48, 48), fill="red")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    photo.save("photo.png")
    mask.save("mask.png")
    return tmp_path


class Reader:
    """Does what a page says."""

    def __init__(self, server: RunningServer, page: str) -> None:
        self.page = page
        self.missing: set[str] = set()  # programs that are not here,
        self.left_out: list[str] = []  # and the commands that want them
        self._addresses = {"127.0.0.1:50051": server.address}
        if server.app.url is not None:
            self._addresses["http://127.0.0.1:8080"] = server.app.url
            self._addresses["127.0.0.1:9090"] = server.app.metrics.address
        self._names: dict[str, Any] = {"__name__": "page"}  # blocks of Python go on from each other

    def read(self, block: Block) -> None:
        for written, address in self._addresses.items():
            block = Block(block.language, block.text.replace(written, address), block.line)
        getattr(self, f"_{block.language}")(block)

    def _sh(self, block: Block) -> None:
        for command in block.commands:
            missing = {each for each in PROGRAMS if re.search(rf"\b{each} ", command) and not shutil.which(each)}
            if any(command.startswith(start) for start in NOT_RUN):
                check_words(command.removesuffix("&").partition("#")[0].split())
            elif missing:
                self.missing |= missing
                self.left_out.append(command)
            else:
                self._run(command)

    def _run(self, command: str) -> None:
        if words(command)[:1] == ["darkroom"]:
            result = CliRunner().invoke(app, words(command)[1:])
            assert result.exit_code == 0, f"{command}\n{result.output}"
        else:
            script = f"darkroom() {{ '{sys.executable}' -c '{CLIENT}' \"$@\"; }}\n{command}"
            shell = ["bash", "-o", "pipefail", "-euc", script]
            done = subprocess.run(shell, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    def _python(self, block: Block) -> None:
        code = compile("\n" * (block.line - 1) + block.text, self.page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, self._names)
        if inspect.iscoroutine(result):
            asyncio.run(result)

    def _toml(self, block: Block) -> None:
        values = tomllib.loads(block.text)
        if self.page.startswith("server/"):
            try:
                Settings(**values)
            except ValidationError as error:  # what it names need not be there
                unknown = [each["loc"] for each in error.errors() if each["type"] == "extra_forbidden"]
                assert not unknown, unknown

    def _json(self, block: Block) -> None:
        json.loads(block.text)


def check_words(command: Sequence[str]) -> None:
    """A command of `darkroom` is there, and has these options; so is a verb of make."""
    if command[0] == "make":
        assert f"\n{command[1]}:" in (ROOT / "Makefile").read_text(), command
    if command[0] != "darkroom":
        return
    group: Any = get_command(app)
    with Context(group) as context:
        known = group.get_command(context, command[1])
    options = {option for each in known.params for option in (*each.opts, *each.secondary_opts)}
    assert {word for word in command if word.startswith("--")} <= options, command


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE])
def test_page(page: str, shapes: RunningServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = blocks(page)
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{ENVIRONMENT}")  # grpcurl comes with the development extra
    if shutil.which("npm") and any(command.startswith("buf ") for block in found for command in block.commands):
        tools = built(ROOT / "client/examples/typescript", "build") / "node_modules/.bin"
        monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
        (folder / "protos").symlink_to(ROOT / "protos")
    modules = modules_of(found, monkeypatch)
    with RunningServer(modules, models=[QUICK]) if modules else nullcontext(shapes) as server:
        monkeypatch.setenv("DARKROOM_ADDRESS", server.address)
        reader = Reader(server, page)
        for block in found:
            if block.language and not block.files:
                reader.read(block)
        settle(server)
    for pattern in MADE.get(page, ()):
        assert [*folder.glob(pattern)] or any(pattern in command for command in reader.left_out), pattern
    for picture in folder.rglob("*.png"):
        Image.open(picture).load()
    if reader.missing:
        pytest.skip(f"all was run but what needs {', '.join(sorted(reader.missing))}")


def test_grpcurl_shows_what_is_wrong(shapes: RunningServer) -> None:
    grpcurl = shutil.which("grpcurl", path=f"{ENVIRONMENT}:{os.environ['PATH']}")
    if grpcurl is None:
        pytest.skip("no grpcurl")
    asked = '{"parameters": {"prompt": "a red circle", "seed": -1}}'
    command = [grpcurl, "-plaintext", "-d", asked, shapes.address, "darkroom.v1.ImageService/Generate"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 64 + grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert '"reason":"INVALID_REQUEST"' in done.stderr
    assert '{"field":"parameters.seed","description":"must be from 0 to 9223372036854775807, not -1"}' in done.stderr


def modules_of(found: Sequence[Block], monkeypatch: pytest.MonkeyPatch) -> Mapping[str, ModuleType]:
    """A page's modules, by the names of their plugins, after the page's own tests of them."""
    files = {name: text for block in found for name, text in block.files.items()}
    if not files:
        return {}
    for name, text in files.items():
        Path(name).write_text(text)
    tests = [name for name in files if name.startswith("test_")]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--import-mode=prepend",
        "--rootdir=.",
        "-p",
        "no:cacheprovider",
        *tests,
    ]
    environment = {**os.environ, "PYTEST_ADDOPTS": ""}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    monkeypatch.syspath_prepend(".")
    names = [name.removesuffix(".py") for name in files if name not in tests]
    return {name.removeprefix("darkroom_").replace("_", "-"): importlib.import_module(name) for name in names}


# ----------------------------------------------------------------------------------------- what a page must not forget


def column(page: str, title: str) -> set[str]:
    """The names in the first column of the table with this title there."""
    rows = (ROOT / page).read_text().partition(f"\n| {title} |")[2].partition("\n\n")[0].splitlines()[2:]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_the_api_by_example_has_every_event_and_every_reason() -> None:
    events = {field.name for field in events_pb2.JobEvent.DESCRIPTOR.oneofs_by_name["event"].fields}
    assert column("protos/README.md", "event") == events
    proto = (ROOT / "protos/darkroom/v1/image_service.proto").read_text()
    codes = "|".join(code.name for code in grpc.StatusCode)
    assert column("protos/README.md", "reasons") == set(
        re.findall(rf"^//.* (?:{codes})  +([A-Z_]+)", proto, re.MULTILINE)
    )


def test_the_page_on_plugins_has_every_hook_with_its_signatures() -> None:
    table = (ROOT / "plugins/README.md").read_text().partition("| hook |")[2].partition("\n\n")[0]
    rows = {row.split("|")[1].strip(): row.split("|")[2:4] for row in table.splitlines()[2:]}
    hooks = {f"`{name}()`": hook for name, hook in vars(hookspecs).items() if hasattr(hook, "darkroom_spec")}
    assert set(rows) == set(hooks)
    for name, (kind, methods) in rows.items():
        assert hooks[name].__annotations__["return"] == f"Sequence[{kind.strip(' `')}]"
        contributed = getattr(contract, re.sub(r"`|type\[|\]", "", kind).strip())
        kinds = [contributed, contract.Inspector] if contributed is contract.Finisher else [contributed]
        written = {method: bold == "**" for bold, method in re.findall(r"(\**)`(\w+\(.*?\))`", methods)}
        known = {signature: must for each in kinds for signature, must in signatures(each).items()}
        assert written.items() <= known.items(), name
        assert {each for each, must in known.items() if must} <= set(written), name
        assert contributed is contract.Family or set(written) == set(known), name


def signatures(kind: type) -> dict[str, bool]:
    """A kind's own methods as one would call them, and whether a plugin must write them."""
    if dataclasses.is_dataclass(kind):
        given = {"run": "run(pixels, parameters)", "build": "build(model)"}
        return {given[each.name]: True for each in dataclasses.fields(kind) if each.name in given}
    found = {}
    for name, function in vars(kind).items():
        function = getattr(function, "__func__", function)
        if inspect.isfunction(function) and not name.startswith("_"):
            arguments = [*inspect.signature(function).parameters][1:]
            found[f"{name}({', '.join(arguments)})"] = getattr(function, "__isabstractmethod__", False)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}, link
