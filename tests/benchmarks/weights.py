"""Memory of the weights for all tasks: shared networks here, against one pipeline per task."""

import io
from pathlib import Path

import grpc
import torch
from PIL import Image

from darkroom.v1 import catalog_service_pb2 as catalog_pb
from darkroom.v1 import catalog_service_pb2_grpc, edits_pb2, image_service_pb2, image_service_pb2_grpc
from tests.benchmarks.bench import Bench
from tests.benchmarks.pipelines import quiet

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
MIB = 2**20


def measure(bench: Bench) -> dict[str, float]:
    """MiB of weights, and the growth of the server's resident memory in the first run of all tasks."""
    quiet()
    served = bench.served
    before = served.memory
    with grpc.insecure_channel(served.address) as channel:
        for request in _edits():
            for _ in image_service_pb2_grpc.ImageServiceStub(channel).Edit(request):
                pass
        models = catalog_service_pb2_grpc.CatalogServiceStub(channel).ListModels(catalog_pb.ListModelsRequest()).models
    result = {
        "server_mib": sum(each.weight_bytes for each in models) / MIB,
        "pipeline_per_task_mib": _pipelines(bench.model, bench.dtype) / MIB,
        "server_grew_mib": (served.memory - before) / MIB,
    }
    print(
        f"weights for text-to-image, image-to-image and inpainting: server {result['server_mib']:.1f} MiB (its memory "
        f"grew by {result['server_grew_mib']:.0f} MiB), a pipeline a task {result['pipeline_per_task_mib']:.1f} MiB"
    )
    return result


def _edits() -> list[image_service_pb2.EditRequest]:
    image, mask = _png(Image.new("RGB", (64, 64), "blue")), _png(Image.new("L", (64, 64), 255))
    return [
        image_service_pb2.EditRequest(image=image, image_to_image=edits_pb2.ImageToImage()),
        image_service_pb2.EditRequest(image=image, inpaint=edits_pb2.Inpaint(mask=mask)),
        image_service_pb2.EditRequest(image=image, outpaint=edits_pb2.Outpaint(left=8)),
    ]


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _pipelines(model: Path, dtype: torch.dtype) -> int:
    import diffusers

    pipes = [getattr(diffusers, name).from_pretrained(model, safety_checker=None, dtype=dtype) for name in PIPELINES]
    networks = [part for pipe in pipes for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return sum(parameter.nbytes for network in networks for parameter in network.parameters())
