"""The client's types, as `mypy --strict` shows them to a user."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")
ROOT = Path(__file__).parents[2]
SOUND = """
import asyncio
from io import BytesIO
from pathlib import Path

import PIL.Image

from darkroom_client import (
    Accepted,
    AsyncClient,
    AsyncStream,
    Client,
    Completed,
    ConnectionOptions,
    ControlImage,
    ControlSpec,
    DarkroomError,
    Event,
    Image,
    ImageLike,
    JobOptions,
    Loading,
    LoraSpec,
    Model,
    OutputOptions,
    Preview,
    PreviewModeName,
    PreviewOptions,
    SchedulerSpec,
    ServerInfo,
    SizeConditioning,
    Step,
    Stream,
    Violation,
    read_recipe,
)
from darkroom_client.contact_sheet import Tile, contact_sheet
from darkroom_client.options import ImageFormatName


def progress(event: Loading) -> None:
    done: int = event.bytes_done
    phase: str | None = event.phase
    print(done, phase)


def watch(stream: Stream) -> list[PIL.Image.Image]:
    previews: list[PIL.Image.Image] = []
    for event in stream:
        match event:
            case Step(step=step, step_count=count):
                print(step / count)
            case Preview():
                mode: PreviewModeName | None = event.decoder
                previews.append(event.pil)
    accepted: Accepted | None = stream.accepted
    completed: Completed | None = stream.completed
    if accepted is not None and completed is not None:
        print(accepted.parameters.seed + accepted.seeds[0], completed.timings.total_seconds + 1.0)
    return previews


def work(picture: ImageLike, format: ImageFormatName = "png", mode: PreviewModeName = "latent-rgb") -> Path:
    connection: ConnectionOptions = {"token": "secret", "tls": True}
    options: JobOptions = {"seed": 7, "output": OutputOptions(format), "preview": PreviewOptions(mode)}
    options["scheduler"] = SchedulerSpec("euler", "karras")
    options["loras"] = ["a:0.5", LoraSpec("b", 1.0)]
    options["size_conditioning"] = SizeConditioning(original_width=1024)
    with Client("127.0.0.1:50051", **connection) as client:
        models: list[Model] = client.models()
        modes: tuple[PreviewModeName, ...] = models[0].preview_modes
        loaded: Model = client.load_model(models[0].name, progress)
        previews = watch(client.generate("a", **options))
        contact_sheet([Tile(each, "label") for each in previews]).save("sheet.png")
        maps: list[ControlImage] = client.preprocess(picture, "canny", format="webp").control_images()
        controls = [ControlSpec("canny", maps[0].pil, scale=0.5), ControlSpec("depth", maps[0])]
        client.edit(BytesIO(maps[0].image_bytes), "a", mask=Path("a.png").open("rb"))
        images: list[Image] = client.edit(picture, "a", mask=Path("mask.png"), controls=controls).images()
        cancelled: bool = client.cancel("job")
        return client.generate(parameters=read_recipe(images[0].save("a.png"))).image().save("b.png")


async def main() -> list[Event]:
    async with AsyncClient() as client:
        stream: AsyncStream = client.generate("a", preview="off")
        first: Event = await anext(aiter(stream))
        events = [event async for event in stream]
        image: Image = await stream.image()
        info: ServerInfo = await client.server_info()
        print(image.seed + 1, info.version.upper())
        return events


try:
    asyncio.run(main())
except DarkroomError as error:
    violations: tuple[Violation, ...] = error.violations
    wait: float | None = error.retry_after
"""
MISTAKES = [
    "darkroom_client.Clinet()",
    'client.generate("a", steps=3)',
    'client.generate("a", seed="seven")',
    'client.generate("a", preview="full")',
    'client.edit("a.png", resize_mode="zoom")',
    'client.edit(3, "a")',
    "client.models()[0].residency == 4",
    'client.generate("a", output=darkroom_client.OutputOptions("gif"))',
    "client.generate(3)",
    "client.models()[0].nam",
    'client.generate("a").image().seed.upper()',
    "darkroom_client.Client(password=3)",
]


def test_a_user_gets_whole_types(tmp_path):
    start = "import darkroom_client\n\nclient = darkroom_client.Client()\n"
    (tmp_path / "sound.py").write_text(SOUND)
    (tmp_path / "mistakes.py").write_text(start + "\n".join(MISTAKES) + "\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--explicit-package-bases"]
    result = subprocess.run(
        [*command, "--no-error-summary", "sound.py", "mistakes.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": f"{ROOT / 'client'}{os.pathsep}{ROOT / 'protos'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.findall(r"^(.*\.py):(\d+): error: (.*)$", result.stdout, re.MULTILINE)
    assert [each for each in found if each[0] == "sound.py"] == [], result.stdout + result.stderr
    first = start.count("\n") + 1
    lines = {int(line) - first for name, line, _ in found if name == "mistakes.py"}
    assert [mistake for line, mistake in enumerate(MISTAKES) if line not in lines] == [], result.stdout
