"""The programs in other languages, by the commands of their page, against the real server."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from darkroom_demo import MODEL_PATH
from tests.pages import ROOT, blocks
from tests.support import RunningServer, alike, settle, spec

PAGE = "client/examples/languages.md"
JARS = [f"/usr/share/java/{name}.jar" for name in ("grpc-netty", "netty-codec", "geronimo-annotation-1.3-spec")]
NEEDS = {
    "Go": ("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc", "/usr/share/gocode/src/google.golang.org/grpc"),
    "Java": ("javac", "protoc", "grpc_java_plugin", *JARS),
}
SEED = 2**53 + 1  # doubles do not have it


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    models = [{"name": "shapes", "path": MODEL_PATH, "default_num_inference_steps": 10}]
    with RunningServer(models=models, limits={"chunk_bytes": 1024}) as running:
        yield running


@pytest.mark.slow  # compilers
@pytest.mark.timeout(600)
@pytest.mark.parametrize("language", NEEDS)
def test_commands_of_the_page(language: str, server: RunningServer, tmp_path: Path) -> None:
    missing = [each for each in NEEDS[language] if not shutil.which(each) and not Path(each).exists()]
    if missing:
        pytest.skip(f"not here: {', '.join(missing)}")
    (block,) = blocks(PAGE, language)
    commands = [command for command in block.commands if not command.startswith("apt-get ")]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("DARKROOM")},
        "DARKROOM": str(ROOT),
        "DARKROOM_ADDRESS": server.address,
        "GOCACHE": str(ROOT / ".cache/go"),
    }

    def run(script: str) -> "subprocess.CompletedProcess[str]":
        shell = ["bash", "-euc", script]
        return subprocess.run(shell, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    made = run("\n".join(commands))
    assert made.returncode == 0, made.stdout + made.stderr
    assert "step 10 of 10\n" in made.stdout
    assert f"seed {SEED}" in made.stdout
    prompt = re.findall(r'"(.*?)"', commands[-1])[0]
    expected = server.generate(prompt=prompt, seed=SEED, scheduler=spec("dpmpp-2m", options={"solver_order": 3}))
    assert len(expected.of("chunk")) >= 2
    with Image.open(tmp_path / "circle.png") as picture:
        assert alike(picture, expected.pictures()[0])
    refused = run(commands[-1].replace(str(SEED), "-1"))
    assert refused.returncode == 1
    assert "INVALID_REQUEST" in refused.stderr
    assert "\nparameters.seed must be from 0 " in refused.stderr
    settle(server)


def test_the_table_says_what_is_run() -> None:
    table = (ROOT / PAGE).read_text().partition("| language |")[2].partition("\n\n")[0]
    rows = [row.split("|") for row in table.splitlines()[2:]]
    tested = {row[1].strip() for row in rows if row[3].strip().startswith("yes")}
    assert tested == {*NEEDS, "TypeScript in Node", "TypeScript in a browser"}
    for row in rows:
        assert all((ROOT / "client/examples" / path).exists() for path in re.findall(r"\((.*?)\)", row[2]))
