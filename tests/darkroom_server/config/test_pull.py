"""`darkroom models pull`: downloads from a hub, and adds to the configuration."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from huggingface_hub import constants
from typer.testing import CliRunner

from darkroom.v1.parameters_pb2 import LoraSpec
from darkroom_plugins.files.hub import HubFiles
from darkroom_server.cli.pull import pull
from darkroom_server.config.reader import read_settings
from tests.checkpoints import COMMIT
from tests.darkroom_client.terminal import Terminal
from tests.hub import Hub
from tests.support import RunningServer
from tests.tiny import save_controlnet, save_lora

PROGRAM = "from darkroom_client.cli import main; main()"


@pytest.fixture(scope="module")
def repository(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with other files in its repository."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("pull") / "sd")
    save_lora(folder / "ink.safetensors", tiny_model, seed=1)
    (folder / "torn.safetensors").write_text("no")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_text("a pickle")
    return folder


@pytest.fixture
def hub(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """It is reached as the real one, with an empty cache, in an empty folder."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with Hub(repository, "tiny/sd") as running:
        running.reached(monkeypatch)
        running.serving.set()
        yield running


@pytest.fixture
def run(hub: Hub) -> Callable[..., Any]:
    app = typer.Typer()
    app.command()(pull)

    def run(*arguments: str, exit_code: int = 0) -> Any:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == exit_code, result.output
        return result

    return run


def test_a_model_is_fetched_and_written_down(hub: Hub, run: Callable[..., Any], monkeypatch: Any) -> None:
    file, before = Path("darkroom.toml"), "# Ours.\n[limits]\nmax_images = 4 # few"
    file.write_text(before)
    assert run("tiny/sd").stdout == f"model sd is in darkroom.toml: hub:tiny/sd@{COMMIT}\n"
    assert file.read_text() == f'{before}\n\n[[models]]\nname = "sd"\npath = "hub:tiny/sd@{COMMIT}"\n'
    weights = {name for name in hub.downloads if name.endswith((".safetensors", ".bin"))}
    parts = {"text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"}
    assert weights == {f"{part}.safetensors" for part in parts}
    run("hub:tiny/sd", "--lora", "ink.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # all of it is there
    settings = read_settings({}, file)
    assert settings.limits.max_images == 4
    with RunningServer(models=settings.models, loras=settings.loras) as server:
        made = server.generate(prompt="x", num_inference_steps=1, loras=[LoraSpec(name="ink")])
        assert made.kinds[-1] == "completed"


def test_other_kinds(hub: Hub, run: Callable[..., Any], tiny_model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    said = run("tiny/sd@main", "--lora", "ink.safetensors", "--name", "wash").stdout
    assert said == f"lora wash is in darkroom.toml: hub:tiny/sd@{COMMIT}/ink.safetensors\n"
    with Hub(save_controlnet(tmp_path / "net", tiny_model, seed=2), "tiny/net") as net:
        net.reached(monkeypatch)
        net.serving.set()
        run("tiny/net", "--controlnet", "--config", "other.toml")
        assert "diffusion_pytorch_model.safetensors" in net.downloads
    settings = read_settings({}, Path("other.toml"))
    assert [(each.name, str(each.path)) for each in settings.controlnets] == [("net", f"hub:tiny/net@{COMMIT}")]
    assert [lora.name for lora in read_settings({}, Path("darkroom.toml")).loras] == ["wash"]
    assert not [name for name in hub.downloads if name.startswith("unet/") and name.endswith("tensors")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiny/old"], "hub: there is no repository tiny/old, or it is private and HF_TOKEN is not set"),
        (["tiny/sd@v9"], "revision: tiny/sd has no 'v9'"),
        (["tiny/gated"], "hub: tiny/gated asks for its terms to be accepted, and for a token (HF_TOKEN)"),
        (["a/b/c"], "hub: 'a/b/c' is not the name of a repository, owner/name"),
        (["tiny/sd", "--name", "taken"], "darkroom.toml has 'taken' in [[models]] already; give another --name"),
        (["tiny/sd", "--variant", "fp8"], "hub: unet of tiny/sd has no variant 'fp8' but the plain weights"),
        (["tiny/sd", "--lora", "torn.safetensors"], "torn cannot be used: torn.safetensors is not a whole safetensors"),
        (["tiny/sd", "--lora", "none.safetensors"], "lora 'none': hub: tiny/sd at "),
        (["tiny/sd", "--controlnet"], "controlnet 'sd': hub: tiny/sd lacks the configuration of a model or of a part"),
    ],
)
def test_what_goes_wrong_is_one_sentence(hub: Hub, run: Callable[..., Any], arguments: list[str], said: str) -> None:
    text = '[[models]]\nname = "taken"\npath = "."\n'
    Path("darkroom.toml").write_text(text)
    result = run(*arguments, exit_code=1)
    assert result.stderr.startswith(f"error: {said}")
    assert result.stderr.count("\n") == 1
    assert Path("darkroom.toml").read_text() == text
    assert not [name for name in hub.downloads if name.startswith("unet/") and name.endswith("tensors")]


def test_kinds_do_not_go_together(run: Callable[..., Any]) -> None:
    said = run("tiny/sd", "--lora", "ink.safetensors", "--controlnet", exit_code=2).stderr
    assert said == "error: --lora, --embedding, --controlnet and --variant do not go together\n"
    assert run("tiny/sd", "--name", "not good", exit_code=2)


def test_files_that_cannot_be_added_to(run: Callable[..., Any]) -> None:
    file = Path("darkroom.toml")
    file.write_text('loras = [{ name = "a", path = "a" }]\n')
    said = run("tiny/sd", "--lora", "ink.safetensors", exit_code=1).stderr
    line = f'{{ name = "ink", path = "hub:tiny/sd@{COMMIT}/ink.safetensors" }}'
    assert said == f"error: darkroom.toml has loras in another form; add to it: {line}\n"
    file.write_text("loras = [\n")
    assert run("tiny/sd", exit_code=2).stderr.startswith("error: darkroom.toml:1: ")


def started(hub: Hub, tmp_path: Path, bytes_of_a_file: int = resource.RLIM_INFINITY) -> subprocess.Popen[str]:
    """The command in a process of its own, which asks the hub of HF_ENDPOINT and may write small files only."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_of_a_file, bytes_of_a_file))

    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache")}
    environment |= {"HF_HUB_DOWNLOAD_TIMEOUT": "5", "HF_HUB_ETAG_TIMEOUT": "5"}
    arguments = [sys.executable, "-c", PROGRAM, "models", "pull", "tiny/sd"]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        arguments, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True, preexec_fn=limit
    )


def command(hub: Hub, tmp_path: Path, bytes_of_a_file: int) -> subprocess.CompletedProcess[str]:
    """The same until its end."""
    with started(hub, tmp_path, bytes_of_a_file) as process:
        said, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, said, errors)


def test_a_full_disk_and_no_network(hub: Hub, repository: Path, tmp_path: Path) -> None:
    ended = command(hub, tmp_path, 40_000)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "was not fetched: [Errno 27] File too large" in ended.stderr.splitlines()[-1]
    assert not (tmp_path / "darkroom.toml").exists()
    ended = command(hub, tmp_path, resource.RLIM_INFINITY)
    assert (ended.returncode, ended.stdout) == (0, f"model sd is in darkroom.toml: hub:tiny/sd@{COMMIT}\n")
    shutil.rmtree(tmp_path / "cache")
    gone = Hub(repository, "tiny/sd")
    with gone:
        pass  # nobody listens there any more
    (tmp_path / "darkroom.toml").unlink()
    ended = command(gone, tmp_path, resource.RLIM_INFINITY)
    assert ended.returncode == 1
    why = "[Errno 111] Connection refused"
    assert (
        ended.stderr.splitlines()[-1] == f"error: hub: tiny/sd at main is not in the cache, and was not fetched: {why}"
    )


def test_a_full_disk_leaves_the_configuration_as_it_was(hub: Hub, tmp_path: Path) -> None:
    file, text = tmp_path / "darkroom.toml", "# Ours.\n"
    assert command(hub, tmp_path, resource.RLIM_INFINITY).returncode == 0
    file.write_text(text)
    ended = command(hub, tmp_path, len(text) + 20)
    assert (ended.returncode, ended.stderr) == (1, "error: [Errno 27] File too large\n")
    assert file.read_text() == text


def test_a_lost_connection_goes_on_in_the_middle_of_a_file(
    hub: Hub, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    name, counted = "unet/diffusion_pytorch_model.safetensors", list[int]()
    hub.faults[name] = [lambda: None, lambda: None]
    files = HubFiles.find("tiny/sd", None)
    files.fetch(["unet"], counted.append)
    size = (repository / name).stat().st_size
    assert [each for each, _ in hub.resumed] == [name, name]
    assert 0.4 * size < hub.resumed[0][1] < 0.6 * size < hub.resumed[1][1] < 0.8 * size
    assert sum(counted) == size
    assert (files.folder / name).read_bytes() == (repository / name).read_bytes()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_pull_that_was_ended_in_the_middle_of_a_file_can_be_run_again(
    hub: Hub, tmp_path: Path, end: signal.Signals
) -> None:
    """What was whole is not fetched again; huggingface_hub begins the other file anew."""
    reached, released = threading.Event(), threading.Event()
    name = "vae/diffusion_pytorch_model.safetensors"

    def wait() -> None:
        reached.set()
        released.wait(30)

    hub.faults[name] = [wait]
    with started(hub, tmp_path) as process:
        assert reached.wait(30)
        process.send_signal(end)
        said, errors = process.communicate()
    released.set()
    assert (process.returncode, said, errors) in ((130, "", "interrupted\n"), (-signal.SIGKILL, "", ""))
    assert not (tmp_path / "darkroom.toml").exists()
    assert command(hub, tmp_path, resource.RLIM_INFINITY).stdout.startswith("model sd is in darkroom.toml")
    weights = [each for each in hub.downloads if each.endswith(".safetensors")]
    assert {each: weights.count(each) for each in weights if weights.count(each) > 1} == {name: 2}
    assert hub.resumed == []


def test_a_terminal_shows_a_bar_for_each_file_of_weights_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    terminal = Terminal("models", "pull", "tiny/sd", HF_ENDPOINT=hub.url, HF_HUB_CACHE=str(tmp_path / "other"))
    assert terminal.exit_code() == 0
    *bars, last = terminal.lines
    assert last == f"model sd is in darkroom.toml: hub:tiny/sd@{COMMIT}"
    weights = {name for name in hub.downloads if name.endswith(".safetensors")}
    assert {bar.partition(": ")[0] for bar in bars} == weights
    assert {bar.partition(": ")[0] for bar in bars if "100%" in bar} == weights
