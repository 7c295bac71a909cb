"""client/examples/tutorial.py, against a real server of the demo model."""

import importlib.util
from pathlib import Path

import numpy as np

from darkroom_client import Client
from darkroom_client.contact_sheet import contact_sheet
from tests.support import RunningServer

TUTORIAL = Path(__file__).parents[2] / "client/examples/tutorial.py"


def test_every_step_of_the_tutorial() -> None:
    spec = importlib.util.spec_from_file_location("tutorial", TUTORIAL)
    assert spec is not None
    assert spec.loader is not None
    tutorial = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tutorial)
    with RunningServer() as server, Client(server.address) as client:
        tiles = tutorial.steps(client, num_inference_steps=3)
        memory = tutorial.memory(client)
    assert len({np.asarray(tile.image.convert("RGB")).tobytes() for tile in tiles}) == len(tiles) == 18
    assert contact_sheet(tiles).width > 4 * 128
    assert memory.startswith("shapes: 2")
