"""A plugin that kills its process by signal 9, as a driver may: at a job's third step, if its prompt asks for it."""

import os
import signal
from typing import Any

from darkroom_plugins import hookimpl
from darkroom_plugins.contract import Conditioner

darkroom_api_version = 1
PROMPT = "deadly"


class Deadly(Conditioner):
    name = "deadly"

    def wants(self, request: Any, parameters: Any) -> bool:
        return bool(request.prompt == PROMPT)

    def condition(self, evaluation: Any, parameters: Any) -> None:
        if any(row.sample.evaluation == 2 and row.sample.request.prompt == PROMPT for row in evaluation.rows):
            os.kill(os.getpid(), signal.SIGKILL)


@hookimpl
def darkroom_conditioners() -> list[Any]:
    return [Deadly()]
