"""What a type checker sees of an installed Darkroom, from a user's script."""

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# As protos/README.md has it, but for grpcio's types, which the tests' environment does not have.
SETTINGS = """
[mypy]
strict = True
untyped_calls_exclude = darkroom.v1
[mypy-grpc.*]
ignore_missing_imports = True
"""
SCRIPT = """
import grpc

from darkroom.v1 import image_service_pb2, image_service_pb2_grpc, parameters_pb2
from darkroom_client import Client

parameters = parameters_pb2.Parameters(prompt="a red circle", seed=7)
request = image_service_pb2.GenerateRequest(parameters=parameters)
with grpc.insecure_channel("127.0.0.1:50051") as channel:
    response: image_service_pb2.GenerateResponse
    for response in image_service_pb2_grpc.ImageServiceStub(channel).Generate(request):
        data: bytes = response.event.image.image_bytes

with Client() as client:
    seed: int = client.generate("a red circle").image().seed
    names: list[str] = [model.name for model in client.models()]
"""
Check = Callable[[str], str]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """What mypy says of a script, in an environment where the packages are installed: that of the tests with these
    sources. There, unlike on `mypy_path`, a package without `py.typed` has no types."""
    venv.create(tmp_path / "venv", symlinks=True)
    (site,) = tmp_path.glob("venv/lib/python*/site-packages")
    installed = [ROOT / "protos", ROOT / "client", sysconfig.get_path("purelib")]
    (site / "installed.pth").write_text("\n".join(map(str, installed)))
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", "venv/bin/python", "script.py"]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}

    def said(script: str) -> str:
        (tmp_path / "script.py").write_text(script)
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        ).stdout

    return said


def test_mypy_knows_messages_and_the_client_in_a_script(check: Check) -> None:
    assert check(SCRIPT) == "Success: no issues found in 1 source file\n"
    wrong = SCRIPT.replace("image_bytes", "image_byte").replace(".seed", ".seeds").replace("model.name", "model.nam")
    said = check(wrong)
    for kind, attribute in {"ImageEvent": "image_byte", "Image": "seeds", "Model": "nam"}.items():
        assert f'"{kind}" has no attribute "{attribute}"' in said
    assert "Found 3 errors" in said
