"""What a user does wrong with a command of the server: `error: …` on stderr, a line each, and no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.darkroom_client.browsing import free_port

FILES = {
    "torn.toml": "x = [\n",
    "wrong.toml": "listn = 1\n[limits]\nmax_batch_rows = 0\nmax_inference_steps = 2000\n[[models]]\nname = 'a'\n",
    "latin.toml": b"description = '\xff'",
    "tls.toml": "[tls]\ncertificate = 'key.pem'\nkey = 'key.pem'\n",
    "no-key.toml": "[tls]\ncertificate = 'key.pem'\nkey = 'none.pem'\n",
    "model.toml": "[[models]]\nname = 'a'\npath = 'empty'\n",
    "tokens.toml": f"[[tokens]]\nname = 'a'\nsha256 = '{'0' * 64}'\n",
    "key.pem": "no key",
}
WRONG = [
    "wrong.toml:1: listn: there is no such key",
    "wrong.toml:3: limits.max_batch_rows: must be greater than or equal to 2",
    "wrong.toml:4: limits.max_inference_steps: must be from 1 to 1000",
    "wrong.toml:5: models.0.path: must be set",
]
TLS = "tls.toml:1: tls: key.pem and key.pem are no certificate and its private key in PEM format"
NO_FILE = "Invalid value for '--config' (env var: 'DARKROOM_CONFIG'): file 'none.toml' does not exist."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path


def ended(folder: Path, *arguments: str, **environment: str) -> tuple[int, list[str]]:
    """The exit code of `darkroom` with these arguments, and the lines on stderr."""
    program = [sys.executable, "-c", "from darkroom_client.cli import main; main()", *arguments]

    result = subprocess.run(
        program, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert result.stdout == ""
    return result.returncode, result.stderr.splitlines()


@pytest.mark.parametrize("command", ["serve", "check", "deploy"])
@pytest.mark.parametrize(
    ("file", "said"),
    [("torn.toml", ["torn.toml:1: Invalid value"]), ("wrong.toml", WRONG), ("tls.toml", [TLS])],
)
def test_settings(folder: Path, command: str, file: str, said: list[str]) -> None:
    assert ended(folder, command, "--config", file) == (2, [f"error: {each}" for each in said])


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("check --config none.toml", 2, [NO_FILE]),
        ("check --config latin.toml", 2, ["latin.toml: is not UTF-8, as TOML is"]),
        ("check --config no-key.toml", 2, ["no-key.toml:1: tls: none.pem cannot be read: No such file or directory"]),
        ("check --config model.toml", 1, ["model 'a': empty has no readable model_index.json"]),
        ("serve --config model.toml", 1, ["model 'a': empty has no readable model_index.json"]),
        ("serve --device quantum", 1, ["there is no device 'quantum'"]),
        ("serve --replicas 0", 2, ["cluster.replicas: must be from 1 to 10000"]),
        ("serve --tls-self-signed key.pem", 2, ["Invalid value for '--tls-self-signed': dir 'key.pem' is a file."]),
        (
            "serve --config tokens.toml --listen none.invalid:1",
            1,
            ["cannot listen on none.invalid:1: Name or service not known"],
        ),
        (
            "serve --listen foo --model none --lora none --lora empty --controlnet none --embedding none",
            2,
            [
                "Invalid value for --model: there is nothing at none",
                "Invalid value for --lora: there is nothing at none",
                "Invalid value for --lora: empty is a folder; a safetensors file is needed",
                "Invalid value for --controlnet: there is nothing at none",
                "Invalid value for --embedding: there is nothing at none",
                "listen: 'foo' has no port; HOST:PORT, [IPv6]:PORT, unix:PATH or unix-abstract:NAME is needed",
            ],
        ),
        ("serve --bogus", 2, ["No such option: --bogus"]),
        ("token --name a:b", 2, ["Invalid value for --name: 'a:b' cannot be a name (letters, digits and any of ._/-)"]),
        ("ui --listen unix:x", 2, ["Invalid value for --listen: a page for browsers is on HOST:PORT, not on a unix"]),
        ("models pull a/b --config torn.toml", 2, ["torn.toml:1: Invalid value"]),
        ("models pull a/b --config latin.toml", 2, ["latin.toml: is not UTF-8, as TOML is"]),
        ("models pull a/b --config none/x.toml", 1, ["none/x.toml cannot be written"]),
        ("models pull a/b --lora x --controlnet", 2, ["--lora, --embedding, --controlnet and --variant do not go"]),
        (
            "models pull a/b",
            1,
            ["hub: a/b at main is not in the cache, and was not fetched: [Errno 111]"],
        ),
        ("models pul", 2, ["No such command 'pul'."]),
    ],
)
def test_each_mistake_is_a_line(folder: Path, command: str, code: int, said: list[str]) -> None:
    status, lines = ended(folder, *command.split(), HF_ENDPOINT=f"http://127.0.0.1:{free_port()}")
    errors = [line for line in lines if line.startswith("error: ")]
    assert (status, len(errors)) == (code, len(said))
    assert all(line.startswith(f"error: {each}") for line, each in zip(errors, said, strict=True))
    assert [line for line in lines if line not in errors] in ([], [f"`{_command(command)} -h` shows the options."])


def _command(line: str) -> str:
    words = line.split()
    return f"-c {' '.join(words[: 2 if words[:2] == ['models', 'pull'] else 1])}"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DARKROOM_LIMITS", "few", "environment: limits: must be JSON"),
        (
            "DARKROOM_LIMITS__MAX_INFERENCE_STEPS",
            "0",
            "environment: limits.max_inference_steps: must be from 1 to 1000",
        ),
    ],
)
def test_the_environment(folder: Path, name: str, value: str, said: str) -> None:
    assert ended(folder, "check", **{name: value}) == (2, [f"error: {said}"])
