"""Who shares an evaluation with whom, and that nobody waits for ever."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import torch

from darkroom_plugins import hookimpl
from darkroom_plugins.contract import BatchContract, Conditioner
from tests.support import RunningServer, Stream, details, generate_request


class Explosive(Conditioner):
    """Fails every evaluation that has a row of a sample whose prompt says so, from a given step on."""

    name = "explosive"

    def wants(self, request, parameters):
        return True

    def condition(self, evaluation, parameters):
        for row in evaluation.rows:
            if row.sample.request.prompt == "boom" and row.sample.evaluation == 3:
                raise RuntimeError("out of order")


class Keyed(Conditioner):
    """Keeps samples of different negative prompts apart."""

    name = "keyed"
    contract = BatchContract.KEYED

    def wants(self, request, parameters):
        return True

    def key(self, request, parameters):
        return request.negative_prompt == "apart"


class Scaling(Conditioner):
    """Changes what one prompt means, and adds an argument to the denoiser's forward."""

    name = "scaling"

    def wants(self, request, parameters):
        return request.prompt == "scaled"

    def condition(self, evaluation, parameters):
        scales = [0.0 if row.sample.request.prompt == "scaled" else 1.0 for row in evaluation.rows]
        evaluation.prompts = evaluation.prompts * torch.tensor(scales)[:, None, None]


class Plugin:
    darkroom_api_version = 1

    @hookimpl
    def darkroom_conditioners(self):
        return [Explosive(), Keyed(), Scaling()]


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[RunningServer]:
    with RunningServer(plugins={"test": Plugin()}, models=[{"name": "tiny", "path": tiny_model}]) as running:
        yield running


def begin(server: RunningServer, **parameters: object) -> Stream:
    stream = server.start(generate_request(**{"prompt": "x", "num_inference_steps": 60, **parameters}))
    stream.read_until("step")
    return stream


def test_a_failing_sample_fails_alone(server: RunningServer) -> None:
    request = {"prompt": "fine", "seed": 1, "num_inference_steps": 30}
    alone = server.generate(**request)
    fine = begin(server, **request)
    others = [begin(server, seed=seed) for seed in range(4)]
    with pytest.raises(grpc.RpcError) as caught:
        server.generate(prompt="boom", num_inference_steps=10)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert details(caught.value)[0] == "PLUGIN_FAILED"
    assert caught.value.details() == "the plugin 'test' failed in condition: RuntimeError: out of order"
    for other in others:
        assert [step.step for step in other.read().of("step")] == list(range(1, 61))
    assert abs(fine.read().pixels - alone.pixels).max() <= 1


def test_a_plugin_that_exits_fails_its_job_alone(tiny_model: Path) -> None:
    class Exits(Scaling):
        name = "exits"

        def begin(self, sample, parameters):
            raise SystemExit("no")

    class ExitPlugin:
        darkroom_api_version = 1

        @hookimpl
        def darkroom_conditioners(self):
            return [Exits()]

    models = [{"name": "tiny", "path": tiny_model}]
    with RunningServer(plugins={"exits": ExitPlugin()}, models=models) as server:
        with pytest.raises(grpc.RpcError) as caught:
            server.generate(prompt="scaled")
        assert details(caught.value)[0] == "PLUGIN_FAILED"
        assert server.generate(prompt="x", num_inference_steps=1).kinds[-1] == "completed"


def test_rows_are_shared_and_counted(server: RunningServer) -> None:
    first = begin(server, guidance_scale=1.0)
    second = begin(server, guidance_scale=3.0, num_images=2, scheduler="heun")
    assert max(step.batch_rows for step in first.read().of("step")) == 1 + 4
    assert {step.batch_rows for step in second.read().of("step")} >= {5, 4}


def test_keys_keep_samples_apart(server: RunningServer) -> None:
    together, apart = begin(server), begin(server, negative_prompt="apart")
    assert {step.batch_rows for stream in (together, apart) for step in stream.read().of("step")} == {2}


def test_a_conditioner_changes_its_own_rows_only(server: RunningServer) -> None:
    request = {"seed": 4, "num_inference_steps": 20}
    alone = server.generate(prompt="plain", **request).pixels
    scaled_alone = server.generate(prompt="scaled", **request).pixels
    plain, scaled = begin(server, prompt="plain", **request), begin(server, prompt="scaled", **request)
    assert max(step.batch_rows for step in scaled.read().of("step")) == 4
    assert abs(plain.read().pixels - alone).max() <= 1
    assert abs(scaled.pixels - scaled_alone).max() <= 1
    assert abs(scaled_alone - alone).max() > 8


def test_lanes_take_turns(server: RunningServer) -> None:
    """Two sizes, and a deterministic job beside a batch: all go on, and show previews, all the time."""
    streams = [
        begin(server),
        begin(server),
        begin(server, width=48, height=48),
        begin(server, deterministic=True),
    ]
    ticks = server.app.engine.ticks
    for stream in streams:
        stream.read()
        steps = stream.of("step")
        assert [step.step for step in steps] == list(range(1, 61))
        assert len(stream.of("preview")) > 20
    assert {step.batch_rows for step in streams[3].of("step")} == {2}
    assert max(step.batch_rows for step in streams[0].of("step")) == 4
    assert server.app.engine.ticks - ticks <= 3 * 60
    # Three lanes share the time: when the quickest steps are all done, the others' are well under way.
    ends = [stream.of("step")[-1].elapsed_seconds for stream in streams]
    assert all(stream.of("step")[15].elapsed_seconds < min(ends) for stream in streams)


def test_more_rows_than_fit_wait_in_order(tiny_model: Path) -> None:
    limits = {"max_batch_rows": 4}
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], limits=limits) as server:
        long = [begin(server, num_inference_steps=40), begin(server, num_inference_steps=20)]
        late = [server.start(generate_request(prompt="x", num_inference_steps=2, seed=seed)) for seed in range(2)]
        for stream in [*long, *late]:
            stream.read()
            assert stream.kinds[-1] == "completed"
            assert max(step.batch_rows for step in stream.of("step")) <= 4


def test_many_images_of_one_request(server: RunningServer) -> None:
    stream = server.generate(prompt="x", num_images=16, num_inference_steps=3, seed=10)
    assert [image.seed for image in sorted(stream.of("image"), key=lambda image: image.image_index)] == [*range(10, 26)]
    assert {step.batch_rows for step in stream.of("step")} == {32}
    one = server.generate(prompt="x", num_inference_steps=3, seed=25)
    assert abs(one.pixels[0] - stream.pixels[15]).max() <= 1
