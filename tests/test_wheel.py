"""What is built to be installed: everything of the packages is in it, and nothing else."""

import subprocess
import sys
import tarfile
import tomllib
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = [ROOT / folder for folder in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
NAME = f"darkroom_diffusion-{PROJECT['project']['version']}"
WEIGHTS = {".safetensors", ".bin", ".ckpt", ".pt", ".pth"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the sdist, and of the wheel that is made of it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> dict[str, bytes]:
    """Its files."""
    with ZipFile(built / f"{NAME}-py3-none-any.whl") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_is_the_packages(wheel: dict[str, bytes]) -> None:
    files = {path: path.relative_to(folder.parent) for folder in PACKAGES for path in folder.rglob("*")}
    wanted = {
        str(name): path.read_bytes()
        for path, name in files.items()
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {Path(name).suffix for name in wanted} >= {".proto", ".typed", ".pyi", ".css", ".js", ".safetensors"}
    assert {name: data for name, data in wheel.items() if ".dist-info/" not in name} == wanted


def test_its_metadata(wheel: dict[str, bytes]) -> None:
    found = message_from_bytes(wheel[f"{NAME}.dist-info/METADATA"])
    assert found["Name"] == PROJECT["project"]["name"]
    assert found.get_all("Provides-Extra") == sorted(PROJECT["project"]["optional-dependencies"])
    assert found["License-Expression"] == "Apache-2.0"
    assert wheel[f"{NAME}.dist-info/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert b"darkroom = darkroom_client.cli:main" in wheel[f"{NAME}.dist-info/entry_points.txt"]


def test_no_weights_but_the_demos(wheel: dict[str, bytes]) -> None:
    weights = [name for name in wheel if Path(name).suffix in WEIGHTS]
    assert weights
    assert all(name.startswith("darkroom_demo/") for name in weights)


def test_an_index_takes_both(built: Path) -> None:
    files = sorted(map(str, built.iterdir()))
    assert len(files) == 2
    check = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True, check=False
    )
    assert (check.returncode, check.stdout.count("PASSED")) == (0, 2), check.stdout
    assert all(path.stat().st_size < 20e6 for path in built.iterdir())


def test_the_sdist_has_what_it_takes_to_test_and_to_deploy(built: Path) -> None:
    with tarfile.open(built / f"{NAME}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = [*(ROOT / "server/deploy").iterdir(), *(ROOT / "tests").rglob("*.py"), ROOT / "constraints.txt"]
    assert {str(path.relative_to(ROOT)) for path in wanted} <= names
    assert {name for name in names if name.startswith((".venv", ".git/", "out", "dist"))} == set()
