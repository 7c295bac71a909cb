"""Pictures are decoded in processes of their own: what a file does to its decoder happens to nobody else."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from grpc import StatusCode
from PIL import Image

from darkroom_server.config.settings import Limits
from darkroom_server.pictures.decode import BadImage, decode_control_map, decode_image, decode_mask
from darkroom_server.pictures.uploads import Uploads
from tests.picture_files import LIMITS, LOSSLESS, encoded, picture
from tests.support import RunningServer, edit_request, png, refused, settle

MIB = 1024 * 1024
FUNCTIONS = {"image": decode_image, "control_map": decode_control_map, "mask": decode_mask}
linux = pytest.mark.skipif(sys.platform != "linux", reason="the system does not bound a process's memory")


@pytest.fixture(scope="module")
def uploads() -> Iterator[Uploads]:
    made = Uploads(LIMITS, 1, 256 * MIB, 60)
    yield made
    made.close()


def slow_picture() -> bytes:
    """A small file that takes seconds to decode: many scans, each over all pixels."""
    data = encoded(Image.new("L", (2048, 2048)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * 400 + data[-2:]


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("name", [*LOSSLESS, "jpeg", "gif", "sixteen bits", "palette"])
def test_a_worker_decodes_as_the_decoder_does(uploads: Uploads, name: str, kind: str) -> None:
    if name in LOSSLESS:
        format, options = LOSSLESS[name]
        data = encoded(picture("RGBA" if format != "BMP" else "RGB"), format, **options)
    elif name == "sixteen bits":
        data = encoded(Image.fromarray(np.arange(0, 60_000, 100, np.uint16).reshape(20, 30)), "PNG")
    elif name == "palette":
        data = encoded(picture().quantize(8), "PNG", transparency=1)
    else:
        data = encoded(picture(), name)
    decoded = uploads.decode(kind, data)
    np.testing.assert_array_equal(decoded, FUNCTIONS[kind](data, LIMITS))
    assert not decoded.flags.writeable


def test_a_worker_refuses_in_the_decoders_words(uploads: Uploads) -> None:
    for data in (b"", b"nothing", encoded(picture(), "PNG")[:60], encoded(Image.new("L", (4096, 1)), "PNG")):
        with pytest.raises(BadImage) as local:
            decode_image(data, LIMITS)
        with pytest.raises(BadImage) as here:
            uploads.decode("image", data)
        assert str(here.value) == str(local.value)


def test_a_worker_imports_little() -> None:
    heavy = ["torch", "diffusers", "transformers", "pydantic", "google.protobuf", "grpc"]
    modules = "darkroom_server.pictures.worker, darkroom_server.pictures.decode"
    code = f"import {modules}, sys; print(*({set(heavy)} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_a_worker_has_no_secrets_and_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "s3cret")
    uploads = Uploads(LIMITS, 1, 256 * MIB, 60)
    try:
        uploads.decode("image", png(np.zeros((8, 8, 3), np.uint8)))
        (worker,) = uploads.processes
        proc = Path(f"/proc/{worker}")
        if not proc.exists():
            pytest.skip("the system does not show it")
        assert b"s3cret" not in (proc / "environ").read_bytes()
        assert re.search(r"Max open files +0 +0 ", (proc / "limits").read_text())
    finally:
        uploads.close()


@linux
def test_memory_is_bounded_by_the_picture() -> None:
    uploads = Uploads(LIMITS, 1, 64 * MIB, 60)
    try:
        floats = encoded(Image.fromarray(np.zeros((2048, 2048), np.float32)), "TIFF")
        with pytest.raises(BadImage, match="takes more than 64 MiB of memory to decode"):
            uploads.decode("image", floats)
        assert uploads.decode("image", png(np.full((8, 8, 3), 7, np.uint8))).max() == 7  # it goes on
    finally:
        uploads.close()


def test_a_picture_that_takes_too_long_costs_its_worker() -> None:
    uploads = Uploads(LIMITS, 1, 256 * MIB, 0.25)
    try:
        with pytest.raises(BadImage, match=r"takes longer than 0\.25 s to decode"):
            uploads.decode("image", slow_picture())
    finally:
        uploads.close()


def test_a_killed_worker_is_replaced() -> None:
    uploads = Uploads(LIMITS, 1, 256 * MIB, 60)
    small = png(np.full((8, 8, 3), 7, np.uint8))
    try:
        uploads.decode("image", small)
        (first,) = uploads.processes
        os.kill(first, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as pool:
            decoding = pool.submit(uploads.decode, "image", small)
            os.kill(first, signal.SIGKILL)  # idle or at work: it is sent the picture again
            assert decoding.result(60).max() == 7
        (second,) = uploads.processes
        assert second != first
    finally:
        uploads.close()
    assert uploads.processes == []
    with pytest.raises(BadImage, match="shutting down"):
        uploads.decode("image", small)


def test_workers_end_with_the_server() -> None:
    """Also when it is killed, and could end nothing."""
    code = (
        "import os, signal; from darkroom_server.pictures.uploads import Uploads\n"
        "from darkroom_server.config.settings import Limits\n"
        "uploads = Uploads(Limits(), 1, 2**28, 60); uploads.start()\n"
        "print(*uploads.processes, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    gone = threading.Event()
    for _ in range(600):
        try:
            os.kill(int(made.stdout), 0)
        except ProcessLookupError:
            break
        if Path(f"/proc/{made.stdout.strip()}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break  # ended, and nobody asks how
        gone.wait(0.05)
    else:
        raise AssertionError("the worker outlives its server")


def test_a_hostile_picture_is_a_fields_error_and_others_go_on(tiny_model: Path) -> None:
    good = png(np.zeros((32, 32, 3), np.uint8))
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], upload_seconds=0.5) as server:
        server.edit(image=good, num_inference_steps=1)  # the workers have started
        hostile = server.start(edit_request(image=slow_picture(), num_inference_steps=1))
        assert server.edit(image=good, num_inference_steps=1).kinds[-1] == "completed"
        failed = refused(hostile.read)
        assert failed.code == StatusCode.INVALID_ARGUMENT
        assert failed.violations == {"image": "takes longer than 0.5 s to decode"}
        assert server.edit(image=good, num_inference_steps=1).kinds[-1] == "completed"
        settle(server)


def test_limits_of_the_server_are_the_workers(tiny_model: Path) -> None:
    uploads = Uploads(Limits(max_edge=64), 1, 256 * MIB, 60)
    try:
        file = io.BytesIO()
        Image.new("L", (65, 8)).save(file, "PNG")
        with pytest.raises(BadImage, match="must be at most 64 x 64 pixels, not 65 x 8"):
            uploads.decode("image", file.getvalue())
    finally:
        uploads.close()
