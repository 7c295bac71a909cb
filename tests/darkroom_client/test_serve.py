"""`darkroom serve`: the files that it is told to offer."""

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from darkroom_client import Client
from darkroom_client.cli import app
from tests.tiny import save_controlnet, save_lora


@pytest.fixture
def refused(monkeypatch, tmp_path):
    """What `darkroom serve` says, in a folder with some files, when it does not start."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net").mkdir()
    for name in ("ink.safetensors", "my ink.safetensors"):
        (tmp_path / name).touch()

    def run(*arguments):
        result = CliRunner().invoke(app, ["serve", *arguments])
        assert result.exit_code == 2, result.output
        return result.stderr

    return run


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--listen", "127.0.0.1:99999"], "listen: the port must be a number from 0 to 65535, not '99999'"),
        (["--listen", "unix:"], "listen: unix: has no path"),
        (["--lora", "none.safetensors"], "Invalid value for --lora: there is nothing at none.safetensors"),
        (["--lora", "ink=none.safetensors"], "there is nothing at none.safetensors"),
        (["--lora", "net"], "Invalid value for --lora: net is a folder; a safetensors file is needed"),
        (
            ["--lora", "my ink.safetensors"],
            "'my ink' cannot be a name (letters, digits and any of ._/-): give one, NAME=",
        ),
        (["--embedding", "=ink.safetensors"], "Invalid value for --embedding: '' cannot be a name"),
        (["--controlnet", "none"], "Invalid value for --controlnet: there is nothing at none"),
        (["--preprocessor", "net=canny"], "the ControlNets given are: none"),
        (["--controlnet", "net", "--preprocessor", "canny"], "'canny' is not CONTROLNET=NAME"),
        (["--model", "none"], "Invalid value for --model: there is nothing at none"),
        (["--model", "a/b"], "nothing at a/b; of a repository of the hub a tag or commit is needed: a/b@REVISION"),
        (["--model", "x=a/b@main"], "Invalid value for --model: a tag or a commit is needed: a branch moves"),
        (["--model", "ink.safetensors"], "models.0.config: a single-file checkpoint needs, in darkroom.toml, a"),
        (["--lora", "ink.safetensors", "--lora", "ink=ink.safetensors"], "loras.1.name: 'ink' as that of loras.0"),
    ],
)
def test_files_that_cannot_be_offered(refused, arguments, problem):
    assert problem in refused(*arguments)


def test_an_address_in_use_is_said_before_any_model_is_opened(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "300")
    no_model = f"tiny={tmp_path}"
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        result = CliRunner().invoke(app, ["serve", "--listen", address, "--model", no_model])
    assert (result.exit_code, result.stderr) == (1, f"error: cannot listen on {address}: Address already in use\n")


def test_a_start_that_fails_leaves_the_signals_as_they_were(tmp_path):
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(name) for name in signals]
    assert CliRunner().invoke(app, ["serve", "--listen", "127.0.0.1:0", "--model", f"tiny={tmp_path}"]).exit_code == 1
    assert [signal.getsignal(name) for name in signals] == before


def test_what_it_is_given_it_offers(tiny_model, tmp_path):
    net = save_controlnet(tmp_path / "net", tiny_model, 1)
    lora = save_lora(tmp_path / "a=b.safetensors", tiny_model, 2)
    command = [str(Path(sys.executable).with_name("darkroom")), "serve", "--listen", "127.0.0.1:0"]
    command += ["--model", f"little={tiny_model}", "--controlnet", str(net), "--controlnet", f"v1.1/edges={net}"]
    command += ["--preprocessor", "v1.1/edges=canny", "--lora", f"ink={lora}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            found = re.search(r"ready on (\S+):", server.stdout.readline())
            assert server.stdout.readline() == "No safety checker looks at the pictures of: little\n"
            with Client(found[1]) as client:
                assert [model.name for model in client.models()] == ["little"]
                assert {each.name: each.preprocessor for each in client.control_nets()} == {
                    "net": "",
                    "v1.1/edges": "canny",
                }
                assert [each.name for each in client.loras()] == ["ink"]
        finally:
            server.terminate()
