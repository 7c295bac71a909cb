"""Jobs that fail, mostly by a plugin: nobody beside them is hurt, nothing is left of them, the server goes on."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from grpc import StatusCode
from safetensors.torch import load_file, save_file

from darkroom.v1.parameters_pb2 import HiresFix, LoraSpec
from tests.failing import SECRET, FailingServer
from tests.support import RunningServer, Stream, generate_request, output, preview, refused, settle
from tests.tiny import save_lora

PLACES = ("wants", "first_evaluation", "begin", "task_begin", "condition", "applied", "after_evaluation", "finish")


@pytest.fixture(scope="module")
def failing_server(tiny_model: Path) -> Iterator[FailingServer]:
    with FailingServer(tiny_model) as server:
        yield server


@pytest.fixture(scope="module")
def alone(failing_server: FailingServer) -> np.ndarray:
    """The picture of the patient job when nobody is there."""
    return failing_server.start(failing_server.request("patient")).read().pixels


def check_unharmed(patient: Stream, alone: np.ndarray) -> None:
    assert patient.read().kinds[-1] == "completed"
    assert [step.step for step in patient.of("step")] == list(range(1, 7))
    assert np.abs(patient.pixels - alone).max() <= 1


@pytest.mark.parametrize("fault", ["error", "unset"])
@pytest.mark.parametrize("place", PLACES)
def test_a_plugin_that_fails_hurts_only_its_request(
    failing_server: FailingServer, alone: np.ndarray, place: str, fault: str
) -> None:
    server = failing_server
    patient, (failing, good) = server.beside(server.request(f"fail {place} {fault}"), server.request("good"))
    failed = refused(failing.read)
    assert (failed.code, failed.reason) == (StatusCode.INTERNAL, "PLUGIN_FAILED")
    assert not server.secret_of(failed)
    check_unharmed(patient, alone)
    assert good.read().kinds[-1] == "completed"
    assert max(step.batch_rows for step in patient.of("step")) >= 4
    settle(server)


@pytest.mark.parametrize("prompt", ["no picture", "no JSON"])
@pytest.mark.parametrize("format", ["IMAGE_FORMAT_PNG", "IMAGE_FORMAT_JPEG"])
def test_a_finisher_that_gives_nonsense(failing_server: FailingServer, prompt: str, format: str) -> None:
    request = failing_server.request(prompt, **output(format=format))
    failed = refused(lambda: failing_server.start(request).read())
    assert (failed.code, failed.reason) == (StatusCode.INTERNAL, "PLUGIN_FAILED")
    settle(failing_server)


def test_a_scheduler_that_fails_keeps_its_words(failing_server: FailingServer) -> None:
    """A scheduler may refuse what is asked of it; but what it says of that is its own, and no plugin's words go out."""
    failed = refused(lambda: failing_server.start(failing_server.request("x", scheduler="failing")).read())
    assert failed.code in (StatusCode.INVALID_ARGUMENT, StatusCode.INTERNAL)
    assert not failing_server.secret_of(failed)
    assert SECRET not in str(failed.violations)
    settle(failing_server)


@pytest.mark.parametrize("place", PLACES[2:])
def test_out_of_memory(failing_server: FailingServer, alone: np.ndarray, place: str) -> None:
    server = failing_server
    patient, (failing,) = server.beside(server.request(f"fail {place} memory"))
    failed = refused(failing.read)
    assert (failed.code, failed.reason) == (StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")
    assert failed.retry is None
    assert not server.secret_of(failed)
    check_unharmed(patient, alone)
    settle(server)


def test_out_of_memory_in_a_full_batch_fails_nobody(failing_server: FailingServer, alone: np.ndarray) -> None:
    server = failing_server
    patient, others = server.beside(*[server.request("crowded", seed=seed) for seed in range(3)])
    check_unharmed(patient, alone)
    for seed, other in enumerate(others):
        expected = server.start(server.request("crowded", seed=seed)).read().pixels
        assert np.abs(other.read().pixels - expected).max() <= 1
    settle(server)


def test_one_of_several_images_fails_its_job_alone(failing_server: FailingServer, alone: np.ndarray) -> None:
    server = failing_server
    patient, (failing,) = server.beside(server.request("fail condition error", num_images=3))
    assert refused(failing.read).reason == "PLUGIN_FAILED"
    check_unharmed(patient, alone)
    settle(server)


@pytest.mark.parametrize("prompt", ["fail key error", "unhashable key"])
def test_a_batch_key_that_fails(tiny_model: Path, prompt: str) -> None:
    """The planner asks for it."""
    with FailingServer(tiny_model) as server:
        failed = refused(lambda: server.start(server.request(prompt), timeout=5).read())
        assert (failed.code, failed.reason) == (StatusCode.INTERNAL, "PLUGIN_FAILED")
        assert not server.secret_of(failed)
        assert server.start(server.request("x"), timeout=5).read().kinds[-1] == "completed"
        settle(server)


@pytest.mark.parametrize("place", ["condition", "begin", "task_begin", "after_evaluation", "finish"])
def test_device_lost(tiny_model: Path, place: str) -> None:
    """A device that fails is lost for every job, wherever in the life of a sample it was noticed."""
    with FailingServer(tiny_model) as server:
        patient, (failing, second) = server.beside(
            server.request(f"fail {place} device", num_inference_steps=4),
            server.request("second", num_inference_steps=200),
        )
        failed = refused(failing.read)
        assert (failed.code, failed.reason) == (StatusCode.UNAVAILABLE, "DEVICE_LOST")
        assert failed.retry
        assert int(failed.trailers["grpc-retry-pushback-ms"]) == failed.retry * 1000
        assert not server.secret_of(failed)
        others = [refused(stream.read) for stream in ([second] if place == "finish" else [patient, second])]
        assert {(other.code, other.reason) for other in others} == {(StatusCode.UNAVAILABLE, "DEVICE_LOST")}
        server.run(asyncio.wait_for(server.app.failed.wait(), 5))
        assert refused(lambda: server.start(server.request("x")).read()).code is StatusCode.UNAVAILABLE
        settle(server)


def test_a_preview_decoder_that_fails_leaves_out_its_previews(
    failing_server: FailingServer, alone: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(latents: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(SECRET)

    server = failing_server
    monkeypatch.setitem(server.app.previews.built, ("tiny", "full-vae"), fail)
    patient, (failing,) = server.beside(server.request("x", **preview(mode="PREVIEW_MODE_FULL_VAE")))
    assert failing.read().kinds[-1] == "completed"
    assert failing.of("preview") == []
    warnings = failing.of("completed")[0].warnings
    assert warnings
    assert SECRET not in str(warnings)
    check_unharmed(patient, alone)
    assert len(patient.of("preview")) == 6
    settle(server)


def test_the_log_tells_the_fault_and_nobodys_prompt(
    failing_server: FailingServer, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    request = failing_server.request("fail task_begin error", negative_prompt="private words")
    refused(lambda: failing_server.start(request).read())
    settle(failing_server)
    logged = "".join(capfd.readouterr()) + caplog.text
    assert SECRET in logged
    assert "task_begin" in logged  # the traceback
    assert "private words" not in logged


def test_a_request_id_in_use(failing_server: FailingServer, alone: np.ndarray) -> None:
    server = failing_server
    with server.gate.closed():
        first = server.patient(request_id="twice")
        failed = refused(lambda: server.start(server.request("other", request_id="twice")).read())
    assert (failed.code, failed.reason) == (StatusCode.ALREADY_EXISTS, "REQUEST_ID_IN_USE")
    check_unharmed(first, alone)
    settle(server)
    again = server.start(server.request("other", request_id="twice")).read()
    assert again.kinds[-1] == "completed"
    settle(server)


@pytest.mark.parametrize("second", [None, "PIXEL_LANCZOS", "LATENT_BICUBIC"])
def test_a_result_that_is_not_finite(second: str | None, tiny_model: Path, tmp_path: Path) -> None:
    """By a LoRA whose product overflows."""
    hires_fix = HiresFix(upscaler=f"UPSCALER_{second}") if second else None
    file = save_lora(tmp_path / "huge.safetensors", tiny_model, seed=1)
    save_file({name: tensor * 1e25 for name, tensor in load_file(file).items()}, file)
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], loras=[{"name": "huge", "path": file}]) as server:
        asked = {"prompt": "x", "num_inference_steps": 4, "loras": [LoraSpec(name="huge")], "hires_fix": hires_fix}
        failed = refused(lambda: server.generate(**asked))
    assert (failed.code, failed.reason) == (StatusCode.INTERNAL, "NON_FINITE")


def test_a_deadline_ends_the_job(clean: RunningServer) -> None:
    request = generate_request(prompt="x", num_inference_steps=2)  # which could have been done in time
    with clean.paused():
        failed = refused(lambda: clean.start(request, timeout=0.5).read())
    assert failed.code is StatusCode.DEADLINE_EXCEEDED


def test_a_deadline_that_has_passed(clean: RunningServer) -> None:
    assert refused(lambda: clean.start(generate_request(), timeout=0).read()).code is StatusCode.DEADLINE_EXCEEDED
