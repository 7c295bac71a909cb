"""What a stream holds, and in which order."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.json_format import ParseDict
from PIL import Image

from darkroom.v1 import parameters_pb2 as pb
from darkroom.v1.image_service_pb2 import CancelRequest
from darkroom.v1.image_service_pb2_grpc import ImageServiceStub
from darkroom_demo import MODEL_PATH
from tests import noise_family
from tests.noise_family import save_noise
from tests.support import RunningServer, Stream, alike, generate_request

PNG_PREVIEWS = {"mode": pb.PREVIEW_MODE_FULL_VAE, "format": pb.IMAGE_FORMAT_PNG}
needs_demo = pytest.mark.skipif(not MODEL_PATH.exists(), reason="the demo model is not trained yet")


def shown(stream: Stream) -> list[np.ndarray]:
    """The previews of image 0, in order."""
    return [
        np.asarray(Image.open(io.BytesIO(preview.image_bytes)).convert("RGB"), dtype=int)
        for preview in stream.of("preview")
        if preview.image_index == 0
    ]


def test_events_come_in_order(server: RunningServer) -> None:
    stream = server.generate(prompt="x", num_inference_steps=6, num_images=2, seed=5, request_id="in-order")
    sequences = [event.sequence for event in stream.events]
    assert sequences == sorted(set(sequences))
    replaced = stream.kinds.count("step") - stream.kinds.count("preview")  # previews that newer ones replaced
    assert len(sequences) + replaced == sequences[-1]
    assert {event.request_id for event in stream.events} == {"in-order"}
    assert stream.kinds[0] == "accepted"
    assert stream.kinds[-1] == "completed"
    for index in range(2):
        events = [
            (kind, getattr(event, kind))
            for event, kind in zip(stream.events, stream.kinds, strict=True)
            if kind in ("step", "preview", "image") and getattr(event, kind).image_index == index
        ]
        assert [event.step for kind, event in events if kind == "step"] == [1, 2, 3, 4, 5, 6]
        assert events[-1][0] == "image"
        last_step = 0
        for kind, event in events[:-1]:
            assert kind != "preview" or event.step == last_step
            last_step = event.step


@pytest.mark.parametrize(("scheduler", "evaluations"), [("heun", 9), ("kdpm2-ancestral", 9), ("pndm", 6), ("ddim", 5)])
def test_steps_count_what_the_user_asked_for(server: RunningServer, scheduler: str, evaluations: int) -> None:
    ticks = server.app.engine.ticks
    stream = server.generate(prompt="x", num_inference_steps=5, scheduler=scheduler)
    assert stream.of("accepted")[0].step_count == 5
    assert [step.step for step in stream.of("step")] == [1, 2, 3, 4, 5]
    assert {step.step_count for step in stream.of("step")} == {5}
    assert server.app.engine.ticks - ticks == evaluations


def test_steps_say_where_they_are(server: RunningServer) -> None:
    steps = server.generate(prompt="x", num_inference_steps=10, scheduler="euler").of("step")
    timesteps = [step.timestep for step in steps]
    assert timesteps == sorted(timesteps, reverse=True)
    heun = server.generate(prompt="x", num_inference_steps=10, scheduler="heun").of("step")
    assert [round(step.timestep) for step in heun] == [round(timestep) for timestep in timesteps]
    assert timesteps[0] > 900
    assert [step.sigma for step in steps] == sorted((step.sigma for step in steps), reverse=True)
    assert [step.elapsed_seconds for step in steps] == sorted(step.elapsed_seconds for step in steps)
    assert steps[-1].eta_seconds == 0
    assert all(step.eta_seconds > 0 for step in steps[:-1])


@pytest.mark.parametrize("scheduler", ["dpmpp-2m", "unipc", "dpmpp-sde", "deis", "sa-solver"])
def test_many_beta_sigmas(server: RunningServer, scheduler: str) -> None:
    """The first two timesteps are equal then; diffusers' own pipeline begins at the second, and runs off the end."""
    spec = pb.SchedulerSpec(name=scheduler, sigma_schedule=pb.SIGMA_SCHEDULE_BETA)
    stream = server.generate(prompt="x", num_inference_steps=50, scheduler=spec)
    assert [step.step for step in stream.of("step")] == list(range(1, 51))


def test_accepted_resolves_everything(server: RunningServer) -> None:
    accepted = server.generate(prompt="x", num_images=2, num_inference_steps=2).of("accepted")[0]
    parameters = accepted.parameters
    assert parameters.task == "txt2img"
    assert parameters.model == "tiny"
    assert (parameters.width, parameters.height, parameters.num_images) == (32, 32, 2)
    assert parameters.scheduler.name == "pndm"
    assert parameters.guidance_scale == 7.5
    assert not parameters.HasField("negative_prompt")
    assert 0 <= parameters.seed < 2**32
    assert list(accepted.seeds) == [parameters.seed, parameters.seed + 1]
    assert accepted.preview.mode == pb.PREVIEW_MODE_LATENT_RGB
    assert accepted.output.format == pb.IMAGE_FORMAT_PNG


def test_accepted_parameters_make_the_same_picture_again(server: RunningServer) -> None:
    first = server.generate(prompt="x", negative_prompt="", num_inference_steps=3, scheduler="euler_a")
    request = generate_request()
    request.parameters.CopyFrom(first.of("accepted")[0].parameters)
    assert alike(server.start(request).read().pixels, first.pixels)


def test_the_picture_carries_its_recipe(server: RunningServer) -> None:
    stream = server.generate(prompt="a é 🎨", num_inference_steps=3, seed=2**62 + 1, num_images=2, scheduler="euler")
    for index, (picture, image) in enumerate(zip(stream.pictures(), stream.of("image"), strict=True)):
        recipe = json.loads(picture.text["darkroom"])
        assert recipe["parameters"]["seed"] == str(2**62 + 1 + index)
        assert image.seed == 2**62 + 1 + index
        assert image.metadata["parameters"]["prompt"] == "a é 🎨"
        assert picture.text["parameters"].startswith("a é 🎨\nSteps: 3, Sampler: euler, CFG scale: 7.5, Seed: ")
        request = generate_request()
        ParseDict(recipe["parameters"], request.parameters)
        again = server.start(request).read()
        assert np.abs(again.pixels[0] - stream.pixels[index]).max() <= 1  # alone now, then in a batch of two


def test_metadata_can_be_left_out_of_the_file(server: RunningServer) -> None:
    output = pb.OutputOptions(embed_metadata=False)
    stream = server.generate(prompt="secret", num_inference_steps=2, output=output)
    assert stream.pictures()[0].info == {}
    assert b"secret" not in stream.files()[0]
    assert stream.of("image")[0].metadata["parameters"]["prompt"] == "secret"


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_output_formats(server: RunningServer, format: str) -> None:
    output = pb.OutputOptions(format=f"IMAGE_FORMAT_{format}", quality=90)
    stream = server.generate(prompt="x", num_inference_steps=2, seed=1, output=output)
    picture = stream.pictures()[0]
    assert picture.format == format
    assert stream.of("image")[0].media_type == f"image/{format.lower()}"
    comment = picture.getexif().get_ifd(0x8769)[0x9286]
    assert comment[8:].decode("utf-16-be").startswith("x\nSteps: 2")


@needs_demo
@pytest.mark.parametrize("scheduler", ["ddim", "dpmpp-2m", "unipc", "pndm", "euler-ancestral", "heun", "deis"])
def test_previews_turn_into_the_picture(server: RunningServer, scheduler: str) -> None:
    request = {"model": "shapes", "prompt": "a red circle on a blue background", "seed": 1, "scheduler": scheduler}
    stream = server.generate(**request, num_inference_steps=25, preview=pb.PreviewOptions(**PNG_PREVIEWS))
    distances = [np.abs(preview - stream.pixels[0]).mean() for preview in shown(stream)]
    replaced = stream.events[-1].sequence - len(stream.events)  # by newer ones, on a busy machine
    assert len(distances) + replaced == 25
    assert distances[-1] < 4  # levels: the last estimate is the picture
    assert distances[len(distances) // 2] < 0.6 * distances[0] + 4  # and it gets nearer on the way
    assert shown(stream)[0].std() < 90  # not noise: that of the decoded first latents is far greater


@needs_demo
def test_latent_rgb_previews_resemble_the_picture(server: RunningServer) -> None:
    request = {"model": "shapes", "prompt": "a red circle on a blue background", "seed": 1, "num_inference_steps": 12}
    options = pb.PreviewOptions(mode=pb.PREVIEW_MODE_LATENT_RGB, format=pb.IMAGE_FORMAT_PNG)
    stream = server.generate(**request, preview=options)
    assert np.abs(shown(stream)[-1] - stream.pixels[0]).mean() < 45  # levels


def test_previews_can_be_thinned_out(server: RunningServer) -> None:
    every = server.generate(prompt="x", num_inference_steps=9, preview=pb.PreviewOptions(every_n_steps=4))
    assert [preview.step for preview in every.of("preview")] == [4, 8]
    seldom = server.generate(prompt="x", num_inference_steps=9, preview=pb.PreviewOptions(min_interval_seconds=600))
    assert [preview.step for preview in seldom.of("preview")] == [1]
    off = server.generate(prompt="x", num_inference_steps=9, preview=pb.PreviewOptions(mode=pb.PREVIEW_MODE_OFF))
    assert off.of("preview") == []


def test_previews_have_the_size_asked_for(server: RunningServer) -> None:
    small = server.generate(prompt="x", num_inference_steps=2).of("preview")[0]
    assert (small.width, small.height) == (64, 64)  # enlarged from 16 latents
    assert small.media_type == "image/jpeg"
    wide = server.generate(
        prompt="x",
        num_inference_steps=1,
        width=80,
        height=40,
        preview=pb.PreviewOptions(mode=pb.PREVIEW_MODE_FULL_VAE, max_edge=70, format=pb.IMAGE_FORMAT_WEBP),
    )
    preview = wide.of("preview")[0]
    assert (preview.width, preview.height) == (70, 35)
    assert Image.open(io.BytesIO(preview.image_bytes)).size == (70, 35)
    assert preview.decoder == pb.PREVIEW_MODE_FULL_VAE


def test_a_long_prompt_is_cut_off_with_a_warning(server: RunningServer) -> None:
    stream = server.generate(prompt="z" * 200, num_inference_steps=1)
    warnings = stream.of("completed")[0].warnings
    assert len(warnings) == 1
    assert "75 tokens" in warnings[0]
    assert list(server.generate(prompt="z", num_inference_steps=1).of("completed")[0].warnings) == []


def test_completed_says_where_the_time_went(server: RunningServer) -> None:
    timings = server.generate(prompt="x", num_inference_steps=5).of("completed")[0].timings
    parts = timings.queue_seconds + timings.encode_prompt_seconds + timings.denoise_seconds
    assert timings.denoise_seconds > 0
    assert parts <= timings.total_seconds


def test_waiting_jobs_are_told_their_place(tiny_model: Path) -> None:
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], limits={"max_batch_rows": 2}) as server:
        first = server.start(generate_request(prompt="x", num_inference_steps=200))
        first.read_until("step")
        others = [server.start(generate_request(prompt="x", num_inference_steps=2)) for _ in range(3)]
        positions = sorted(other.read_until("queued").position for other in others)
        assert positions == [0, 1, 2]
        first.call.cancel()
        for other in others:
            assert other.read().kinds[-1] == "completed"
            assert other.of("completed")[0].timings.queue_seconds > 0


@pytest.fixture(scope="module")
def noise_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of a model whose pictures are large at once."""
    folder = save_noise(tmp_path_factory.mktemp("noise") / "noise")
    model = {"name": "noise", "path": folder, "max_edge": 2048, "max_pixels": 2048 * 2048}
    with RunningServer(plugins={"noise": noise_family}, models=[model]) as running:
        yield running


def test_a_picture_over_4_mib_comes_in_chunks(noise_server: RunningServer) -> None:
    """With gRPC's default limit of 4 MiB a message."""
    stream = noise_server.generate(prompt="x", num_inference_steps=2, width=1600, height=1600)
    image, file = stream.of("image")[0], stream.files()[0]
    assert len(file) == image.total_bytes > 7_000_000
    assert len(image.image_bytes) == 3 * 2**20
    assert stream.kinds[-4:] == ["image", "chunk", "chunk", "completed"]
    assert stream.pictures()[0].size == (1600, 1600)
    assert "darkroom" in stream.pictures()[0].text


def test_a_job_whose_client_does_not_read_can_be_cancelled(noise_server: RunningServer) -> None:
    preview = pb.PreviewOptions(mode=pb.PREVIEW_MODE_FULL_VAE, format=pb.IMAGE_FORMAT_PNG, max_edge=1024)
    size = {"width": 1024, "height": 1024, "num_inference_steps": 400}
    stuck = noise_server.start(generate_request(prompt="x", request_id="stuck", preview=preview, **size))
    stuck.read_until("preview")
    while noise_server.app.engine.ticks < 100:  # until its buffer is full
        assert noise_server.generate(prompt="y", num_inference_steps=4).kinds[-1] == "completed"
    assert noise_server.images.Cancel(CancelRequest(request_id="stuck")).cancelled
    assert noise_server.app.jobs.active_jobs == 0
    again = noise_server.generate(prompt="x", request_id="stuck", num_inference_steps=1)
    assert again.kinds[-1] == "completed"
    assert noise_server.app.engine.idle
    stuck.call.cancel()


def test_a_slow_reader_loses_previews_and_nothing_else(noise_server: RunningServer) -> None:
    """A stream that does not read fills its buffer and stops taking previews; its job and its neighbours go on."""
    preview = pb.PreviewOptions(mode=pb.PREVIEW_MODE_FULL_VAE, format=pb.IMAGE_FORMAT_PNG, max_edge=1024)
    request = generate_request(prompt="x", num_inference_steps=40, width=1024, height=1024, preview=preview)
    channel = grpc.insecure_channel(noise_server.address, options=[("grpc.use_local_subchannel_pool", 1)])
    slow = Stream(ImageServiceStub(channel).Generate(request, timeout=100))
    slow.read_until("step")
    while not noise_server.app.engine.idle:  # the whole job is stepped while nobody reads
        assert noise_server.generate(prompt="y", num_inference_steps=1).kinds[-1] == "completed"
    slow.read()
    channel.close()
    assert [step.step for step in slow.of("step")] == list(range(1, 41))
    assert slow.kinds[-1] == "completed"
    assert 1 <= len(slow.of("preview")) < 40
    steps = [preview.step for preview in slow.of("preview")]
    assert steps == sorted(steps)
    assert slow.pictures()[0].size == (1024, 1024)
