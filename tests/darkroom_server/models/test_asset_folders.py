"""LoRAs and embeddings that come and go with the files of a folder, beside running jobs."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx2
import numpy as np
import pytest
import torch
from grpc import StatusCode
from safetensors.torch import save_file
from typer.testing import CliRunner

from darkroom.v1 import catalog_service_pb2 as pb
from darkroom.v1 import catalog_service_pb2_grpc
from darkroom.v1.parameters_pb2 import LoraSpec
from darkroom_client import Client
from darkroom_client.cli import app
from darkroom_server.config.reader import ConfigurationError, read_settings
from tests.support import RunningServer, alike, generate_request, refused, settle
from tests.tiny import save_lora

BASE: dict[str, Any] = {"prompt": "a red circle", "seed": 5, "num_inference_steps": 4, "scheduler": "euler"}
ADDED, REMOVED, WAITING, REFUSED = range(1, 5)


@pytest.fixture(scope="module")
def files(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """LoRAs to put into folders; they change the text encoder, too."""
    folder, networks = tmp_path_factory.mktemp("files"), ("unet", "text_encoder")
    return {n: save_lora(folder / f"{n}.safetensors", tiny_model, seed, networks) for seed, n in enumerate("ab", 60)}


@pytest.fixture(scope="module")
def pictures(tiny_model: Path, files: dict[str, Path]) -> dict[str, np.ndarray]:
    """The picture of each LoRA, and without, by a server that was configured with them."""
    loras = [{"name": name, "path": path} for name, path in files.items()]
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], loras=loras) as server:
        made = {name: server.generate(**BASE, loras=[LoraSpec(name=name)]).pixels for name in files}
        return {**made, "": server.generate(**BASE).pixels}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "loras").mkdir()
    return tmp_path / "loras"


@pytest.fixture
def server(tiny_model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningServer]:
    """It looks when it is asked to."""
    monkeypatch.setattr("darkroom_server.models.asset_folders.LOOK_SECONDS", 3600)
    with RunningServer(
        models=[{"name": "tiny", "path": tiny_model}], lora_folder=folder, http="127.0.0.1:0"
    ) as running:
        yield running


def rescan(server: RunningServer) -> list[tuple[str, int]]:
    return [(change.name, change.what) for change in server.catalog.RescanAssets(pb.RescanAssetsRequest()).changes]


def when_free(server: RunningServer) -> list[tuple[str, int]]:
    """The same once the engine is done with the job that used a file."""
    while (seen := rescan(server)) and seen[0][1] == WAITING:
        time.sleep(0.001)
    return seen


def listed(server: RunningServer) -> dict[str, str]:
    """Why each LoRA cannot be used."""
    return {lora.name: lora.unusable for lora in server.catalog.ListLoras(pb.ListLorasRequest()).loras}


def picture(server: RunningServer, name: str) -> np.ndarray:
    return server.generate(**BASE, loras=[LoraSpec(name=name)]).pixels


def test_a_new_file_is_there_for_everyone_at_once(
    server: RunningServer, folder: Path, files: dict[str, Path], pictures: dict[str, np.ndarray]
) -> None:
    assert refused(lambda: picture(server, "ink/a")).reason == "LORA_NOT_FOUND"
    (folder / "ink").mkdir()
    shutil.copy(files["a"], folder / "ink")
    assert rescan(server) == [("ink/a", ADDED)]
    assert rescan(server) == []
    assert alike(picture(server, "ink/a"), pictures["a"])
    assert not alike(pictures["a"], pictures[""])
    with grpc.insecure_channel(server.address) as channel:
        (lora,) = catalog_service_pb2_grpc.CatalogServiceStub(channel).ListLoras(pb.ListLorasRequest()).loras
    assert (lora.name, list(lora.models), list(lora.components)) == ("ink/a", ["tiny"], ["unet", "text_encoder"])
    with httpx2.Client(base_url=server.app.url) as http:
        answer = http.post("/darkroom.v1.CatalogService/ListLoras", json={}).json()
    assert [each["name"] for each in answer["loras"]] == ["ink/a"]


def test_jobs_go_on_with_a_file_that_is_removed(
    server: RunningServer, folder: Path, files: dict[str, Path], pictures: dict[str, np.ndarray]
) -> None:
    shutil.copy(files["a"], folder)
    rescan(server)
    with server.paused():
        stream = server.start(generate_request(**BASE, loras=[LoraSpec(name="a")]))
        stream.read_until("accepted")
        while not server.app.engine.pending:  # until it has what it needs
            time.sleep(0.001)
        (folder / "a.safetensors").unlink()
        assert rescan(server) == [("a", REMOVED)]
        assert listed(server) == {}
        failed = refused(lambda: picture(server, "a"))
        assert (failed.code, failed.reason) == (StatusCode.NOT_FOUND, "LORA_NOT_FOUND")
        assert failed.violations == {"parameters.loras[0].name": "there is no lora 'a'; there are none"}
    assert alike(stream.read().pixels, pictures["a"])
    settle(server)
    while any(key[0] == "lora" for key in list(server.app.residency.holdings)):  # nothing of it stays in memory
        time.sleep(0.001)


def test_a_changed_file_is_taken_up_when_no_job_uses_the_former(
    server: RunningServer, folder: Path, files: dict[str, Path], pictures: dict[str, np.ndarray]
) -> None:
    shutil.copy(files["a"], folder / "it.safetensors")
    rescan(server)
    assert alike(picture(server, "it"), pictures["a"])
    shutil.copy(files["b"], folder / "it.safetensors")
    assert when_free(server) == [("it", ADDED)]
    assert alike(picture(server, "it"), pictures["b"])
    with server.paused():
        stream = server.start(generate_request(**BASE, loras=[LoraSpec(name="it")]))
        stream.read_until("accepted")
        while not server.app.engine.pending:
            time.sleep(0.001)
        shutil.copy(files["a"], folder / "it.safetensors")
        assert rescan(server) == [("it", WAITING)]
        assert listed(server) == {}
    assert alike(stream.read().pixels, pictures["b"])
    assert when_free(server) == [("it", ADDED)]
    assert alike(picture(server, "it"), pictures["a"])


def test_half_a_file_is_not_broken_for_good(
    server: RunningServer, folder: Path, files: dict[str, Path], pictures: dict[str, np.ndarray]
) -> None:
    whole = files["a"].read_bytes()
    file = folder / "a.safetensors"
    for size in (0, 4, 100, len(whole) // 2):
        file.write_bytes(whole[:size])
        assert rescan(server) == [("a", ADDED)]
        assert listed(server)["a"].startswith("a.safetensors is not a whole safetensors file")
        failed = refused(lambda: picture(server, "a"))
        assert failed.violations["parameters.loras[0].name"].startswith("it cannot be used: a.safetensors is not")
    file.write_bytes(whole)
    assert rescan(server) == [("a", ADDED)]
    assert listed(server) == {"a": ""}
    assert alike(picture(server, "a"), pictures["a"])


def test_the_server_itself_waits_until_a_file_stays_as_it_is(
    server: RunningServer, folder: Path, files: dict[str, Path]
) -> None:
    whole, file = files["a"].read_bytes(), folder / "a.safetensors"

    def look() -> list[str]:
        return [change.what for change in server.run(server.app.folders.look(patient=True))]

    for size in (1000, 2000, len(whole)):
        file.write_bytes(whole[:size])
        assert look() == ["waiting"]
        assert listed(server) == {}
    assert look() == ["added"]
    assert look() == []
    file.write_bytes(whole[:1000])
    assert look() == ["waiting"]
    assert listed(server) == {}
    assert look() == ["added"]
    assert listed(server)["a"]


def test_the_server_looks_from_time_to_time(
    tiny_model: Path, folder: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darkroom_server.models.asset_folders.LOOK_SECONDS", 0.01)
    shutil.copy(files["a"], folder)
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], lora_folder=folder) as server:
        assert listed(server) == {"a": ""}
        shutil.move(folder / "a.safetensors", folder / "b.safetensors")
        while listed(server) != {"b": ""}:
            time.sleep(0.001)


def test_names_of_the_settings_go_before(
    tiny_model: Path, folder: Path, files: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    loras = [{"name": "a", "path": files["a"]}]
    presets = {"fast": {"loras": {"early": 1.0}}}  # which is there when presets are checked
    shutil.copy(files["b"], folder / "a.safetensors")
    shutil.copy(files["b"], folder / "early.safetensors")
    models = [{"name": "tiny", "path": tiny_model, "presets": presets}]
    with RunningServer(models=models, loras=loras, lora_folder=folder) as server:
        shutil.copy(files["b"], folder / "not good.safetensors")
        shutil.copy(files["b"], folder / ".hidden.safetensors")
        changes = server.catalog.RescanAssets(pb.RescanAssetsRequest()).changes
        assert {change.name: (change.what, change.detail) for change in changes} == {
            "a": (REFUSED, "there is a lora of this name in the settings"),
            "not good": (REFUSED, "its name may have up to 128 letters, digits and any of ._/-: rename it"),
        }
        assert rescan(server) == [("a", REFUSED), ("not good", REFUSED)]
        assert listed(server) == {"a": "", "early": ""}
        (folder / "early.safetensors").unlink()
        rescan(server)
        failed = refused(lambda: server.generate(**BASE, preset="fast", loras=[LoraSpec(name="late")]))
        assert failed.violations == {
            "parameters.loras[0].name": "there is no lora 'late'; there are: a",
            "parameters.preset": "there is no lora 'early'",
        }
    said = [record.getMessage() for record in caplog.records if "is not offered" in record.getMessage()]
    assert len(said) == 2  # once each


def test_a_folder_that_cannot_be_read_takes_nothing_away(
    server: RunningServer, folder: Path, files: dict[str, Path], pictures: dict[str, np.ndarray]
) -> None:
    shutil.copy(files["a"], folder)
    rescan(server)
    os.rename(folder, folder.with_name("elsewhere"))
    assert rescan(server) == []
    assert listed(server) == {"a": ""}
    os.rename(folder.with_name("elsewhere"), folder)
    assert rescan(server) == []
    assert alike(picture(server, "a"), pictures["a"])


def test_embeddings_come_and_go(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    word, asked = tmp_path / "words" / "cat.safetensors", {**BASE, "prompt": "a <cat> on blue"}

    def vectors(seed: int) -> dict[str, torch.Tensor]:
        return {"emb_params": torch.randn(3, 32, generator=torch.Generator().manual_seed(seed)) * 3}

    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], embedding_folder=word.parent) as server:
        literal, made = server.generate(**asked).pixels, []
        for seed in (1, 2):
            save_file(vectors(seed), word)
            assert rescan(server) == [("cat", ADDED)]
            made.append(server.generate(**asked).pixels)
        word.unlink()
        assert rescan(server) == [("cat", REMOVED)]
        assert alike(server.generate(**asked).pixels, literal)
    assert not any(alike(one, other) for one, other in ((made[0], made[1]), (made[0], literal), (made[1], literal)))


def test_what_cannot_be_used_is_said_once_in_words(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "words").mkdir()
    words = {"wide": torch.ones(2, 17), "odd": torch.full((2, 32), torch.nan), "good": torch.ones(2, 32)}
    why = "it was made for text encoders of width 17, not 32"
    refusal = "pickle files are refused because they can run code; convert it to safetensors"
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], embedding_folder=tmp_path / "words") as server:
        for name, vectors in words.items():
            save_file({"emb_params": vectors}, tmp_path / "words" / f"{name}.safetensors")
        torch.save(words, tmp_path / "words" / "good.pt")
        caplog.set_level("INFO")
        for _ in range(2):
            changes = server.catalog.RescanAssets(pb.RescanAssetsRequest()).changes
            told = {change.name: (change.what, change.detail) for change in changes}
            assert told.pop("good.pt") == (REFUSED, refusal)
        assert told == {}
        failed = refused(lambda: server.generate(**{**BASE, "prompt": "<odd>"}))
        assert failed.violations == {
            "parameters.prompt": "embedding odd for model tiny does not load; the server's log says why"
        }
        assert server.generate(**{**BASE, "prompt": "<good>"}).kinds[-1] == "completed"
    said = [record.getMessage() for record in caplog.records if record.name.startswith("darkroom_server.models.asset")]
    folder = tmp_path / "words"
    assert set(said) == {
        f"embedding 'wide' cannot be used: {folder / 'wide.safetensors'}: {why}",
        "embedding good added",
        "embedding odd added",
        f"{folder / 'good.pt'} is not offered: {refusal}",
    }
    assert len(said) == 4
    reasons = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert reasons == ["its vectors have values that are not finite"]


def rescanned(server: RunningServer) -> str:
    """What the command says."""
    result = CliRunner().invoke(app, ["rescan", "--address", server.address])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_client_and_the_command_ask_for_a_look(server: RunningServer, folder: Path, files: dict[str, Path]) -> None:
    shutil.copy(files["a"], folder)
    with Client(server.address) as client:
        (change,) = client.rescan_assets()
        assert (change.kind, change.name, change.what, change.detail) == ("lora", "a", "added", "")
        (folder / "b.safetensors").write_text("no")
        assert rescanned(server).startswith("lora b added: b.safetensors is not a whole safetensors file")
        assert [lora.name for lora in client.loras()] == ["a", "b"]
    assert rescanned(server) == "nothing has changed since the server's last look\n"


def test_a_folder_must_be_there(tmp_path: Path) -> None:
    file = tmp_path / "darkroom.toml"
    file.write_text('lora_folder = "loras"\nembedding_folder = "darkroom.toml"\n')
    with pytest.raises(ConfigurationError) as caught:
        read_settings({}, file)
    assert caught.value.violations == [
        f"{file}:1: lora_folder: there is no folder {tmp_path / 'loras'}",
        f"{file}:2: embedding_folder: there is no folder {file}",
    ]
    (tmp_path / "loras").mkdir()
    file.write_text('lora_folder = "loras"\n')
    assert read_settings({}, file).lora_folder == tmp_path / "loras"
