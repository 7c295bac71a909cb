"""What users install, in empty environments: the Dockerfile's commands are run, but for those that need root and an
image, and serve a picture; a client without extras asks for it. Packages come from where pip finds them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import psutil
import pytest
from PIL import Image

from tests.deploy.files import ROOT, Dockerfile, build_context

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ABSOLUTE = re.compile(r"(?<![\w.:/}])/(?=[a-z])")  # where a path begins, in a command
TOKEN = "a-token-of-the-tests"
OUTSIDE = ("PYTHON", "VIRTUAL_ENV", "DARKROOM_", "HF_")  # variables that do not come in


class Built:
    """What the stages before the last one make. One folder stands for the root of all of them."""

    def __init__(self, root: Path) -> None:
        self.root, self.dockerfile = root, Dockerfile()
        self.outside = {name: value for name, value in os.environ.items() if not name.startswith(OUTSIDE)}
        self.outside["PATH"] = f"{Path(sys.executable).parent}:{self.outside['PATH']}"
        for stage in self.dockerfile.stages[:-1]:
            self._folder, self._environment = root, dict(self.outside)
            for instruction, value in stage:
                self._do(instruction, value)

    def _do(self, instruction: str, value: str) -> None:
        if instruction == "ARG":
            name, _, default = value.partition("=")
            self._environment[name] = default
        elif instruction == "WORKDIR":
            self._folder = Path(self.here(value))
            self._folder.mkdir(parents=True, exist_ok=True)
        elif instruction == "COPY":
            self._copy(*value.split())
        elif instruction == "RUN":
            command = re.sub(r"^(--mount=\S+\s+)*", "", value)
            subprocess.run(["sh", "-ec", self.here(command)], cwd=self._folder, env=self._environment, check=True)
        else:
            assert instruction == "FROM"

    def _copy(self, source: str, target: str, *more: str) -> None:
        if source.startswith("--from="):  # another stage, whose root is here, too
            assert [target] == [*more]
            return
        for file in build_context():
            if source in (".", str(file)):
                to = self._folder / self.here(target) / file
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / file, to)

    def here(self, text: str) -> str:
        """With the paths of the image below the folder."""
        return ABSOLUTE.sub(f"{self.root}/", text)

    @property
    def wheel(self) -> Path:
        (found,) = (self.root / "wheels").glob("*.whl")
        return found

    @contextmanager
    def serving(self) -> Iterator[dict[str, str]]:
        """Run the image's command as Docker does, but on ports that are free, until the image's stop signal; gives the
        environment of a client. What is checked here is how it begins and ends."""
        image = self.dockerfile
        environment = {**self.outside, **{name: self.here(value) for name, value in image.environment.items()}}
        environment["PATH"] += self.outside["PATH"]
        for name in ("DARKROOM_LISTEN", "DARKROOM_METRICS"):
            environment[name] = re.sub(r":\d+$", ":0", environment[name])
        tokens = [{"name": "me", "role": "operator", "sha256": sha256(TOKEN.encode()).hexdigest()}]
        folder = Path(self.here(image.last["WORKDIR"]))
        folder.mkdir(parents=True, exist_ok=True)
        with subprocess.Popen(
            image.command,
            cwd=folder,
            env={**environment, "DARKROOM_TOKENS": json.dumps(tokens)},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            (port,) = re.findall(r"ready on 0\.0\.0\.0:(\d+)", process.stdout.readline())
            client = {**environment, "DARKROOM_ADDRESS": f"127.0.0.1:{port}", "DARKROOM_TOKEN": TOKEN}
            self.metrics = [
                each.laddr.port
                for each in psutil.Process(process.pid).net_connections("tcp")
                if each.status == psutil.CONN_LISTEN and each.laddr.port != int(port)
            ]
            assert subprocess.run(image.health_check, env=client, check=False).returncode == 0
            try:
                yield client
            finally:
                process.send_signal(signal.Signals[image.last["STOPSIGNAL"]])
        assert process.returncode == 0
        assert subprocess.run(image.health_check, env=client, check=False).returncode == 1


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("image"))


def generate(file: Path, environment: dict[str, str], *options: str) -> None:
    """Ask for a picture, and look at it."""
    prompt = "a red circle on a blue background"
    subprocess.run(
        ["darkroom", "generate", prompt, "--seed", "7", "--out", str(file), *options], env=environment, check=True
    )
    with Image.open(file) as picture:
        (red, _, other), (_, _, blue) = picture.getpixel((32, 32)), picture.getpixel((2, 2))  # type: ignore[misc]
    assert red > 150 > other
    assert blue > 150


def test_the_image_serves_a_picture(built: Built, tmp_path: Path) -> None:
    assert built.dockerfile.volumes == {"/models", "/state"}
    with built.serving() as client:
        generate(tmp_path / "red.png", client, "--keep")
        assert (built.root / "state/jobs.sqlite").exists()
        (port,) = built.metrics
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            assert 'darkroom_jobs_ended_total{reason="OK"} 1.0' in answer.read().decode()
    subprocess.run([f"{built.root}/opt/darkroom/bin/python", "-m", "pip", "check"], check=True)


def test_a_client_without_extras(built: Built, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv/bin"
    pins = ROOT / "constraints.txt"
    install = [str(binaries / "python"), "-m", "pip", "install", "--quiet", "-c", str(pins), str(built.wheel)]
    subprocess.run(install, env=built.outside, check=True)
    installed = {path.name for path in (binaries.parent / "lib").glob("python*/site-packages/*")}
    assert {"darkroom", "darkroom_client", "grpc", "typer"} <= installed
    assert not {"torch", "diffusers", "numpy"} & installed
    with built.serving() as client:
        environment = {**client, "PATH": f"{binaries}:/usr/bin:/bin"}
        address = environment.pop("DARKROOM_ADDRESS")
        generate(tmp_path / "red.png", environment, "--address", address)
    refused = subprocess.run([binaries / "darkroom", "serve"], env=built.outside, capture_output=True, check=False)
    assert refused.returncode == 1
    assert b"pip install 'darkroom-diffusion[server]'" in refused.stderr
