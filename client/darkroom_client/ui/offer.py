"""What a server offers, as the page shows it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from darkroom_client._aio import AsyncClient
from darkroom_client.catalog import ControlNet, Lora, Model, Preprocessor, Preset, Scheduler, ServerInfo, Task

Choices = list[tuple[str, str]]  # label and value
_FEATURED = ("ddim", "euler", "euler-ancestral", "heun", "dpmpp-2m", "dpmpp-2m-sde", "unipc", "ddpm", "lms")


@dataclass(frozen=True, slots=True)
class Offer:
    """The lists of a server's catalog."""

    info: ServerInfo
    models: list[Model]
    tasks: list[Task]
    schedulers: list[Scheduler]
    loras: list[Lora]
    control_nets: list[ControlNet]
    preprocessors: list[Preprocessor]

    @classmethod
    async def of(cls, client: AsyncClient) -> "Offer":
        """Asks the server.

        :raises DarkroomError: if a call fails.
        """
        lists: Sequence[Any] = await asyncio.gather(
            client.server_info(),
            client.models(),
            client.tasks(),
            client.schedulers(),
            client.loras(),
            client.control_nets(),
            client.preprocessors(),
        )
        return cls(*lists)

    def model(self, name: str | None) -> Model:
        """The model of this name, or the default one."""
        named = [model for model in self.models if model.name == name]
        return (named or [model for model in self.models if model.is_default] or self.models)[0]

    def model_choices(self) -> Choices:
        """All models."""
        return [(model.name, model.name) for model in self.models]

    def preset_choices(self, model: str) -> Choices:
        """The presets of a model, with what they are good for."""
        named = ((each.name, _short(each.description)) for each in self.model(model).presets)
        return [("none", ""), *((f"{name} · {text}" if text else name, name) for name, text in named)]

    def preset(self, model: str, name: str) -> Preset | None:
        """The preset of this name of a model."""
        return next((each for each in self.model(model).presets if each.name == name), None)

    def scheduler_choices(self) -> Choices:
        """All schedulers, with what they are good for."""
        return [(f"{entry.name} · {_short(entry.description)}", entry.name) for entry in self.schedulers]

    def scheduler_names(self) -> list[str]:
        """All schedulers, in short."""
        return [entry.name for entry in self.schedulers]

    def sigma_choices(self, scheduler: str | None) -> Choices:
        """The spacings of noise levels that a scheduler knows."""
        entry = next((entry for entry in self.schedulers if scheduler in (entry.name, *entry.aliases)), None)
        return [("as configured", ""), *((name, name) for name in (entry.sigma_schedules if entry else ()))]

    def featured_schedulers(self) -> list[str]:
        """Those to compare, unless others are asked for."""
        names = self.scheduler_names()
        return [name for name in _FEATURED if name in names][:6] or names[:6]

    def steps_for(self, scheduler: str, wanted: int) -> int:
        """As many steps as wanted, or the nearest that a scheduler takes."""
        entry = next((entry for entry in self.schedulers if entry.name == scheduler), None)
        return wanted if entry is None else max(entry.min_steps, min(wanted, entry.max_steps or wanted))

    def lora_choices(self, model: str) -> Choices:
        """The LoRAs that fit a model."""
        return [(lora.name, lora.name) for lora in self.loras if model in lora.models]

    def control_choices(self, model: str) -> Choices:
        """The ControlNets that fit a model."""
        fitting = (net.name for net in self.control_nets if model in net.models)
        return [("none", ""), *((name, name) for name in fitting)]

    def preprocessor_choices(self) -> Choices:
        """All preprocessors."""
        entries = ((f"{each.name} · {_short(each.description)}", each.name) for each in self.preprocessors)
        return [("none: the picture is the map", ""), *entries]

    def default_preprocessor(self, control_net: str) -> str:
        """What makes a ControlNet's maps; empty if it is not known."""
        return next((net.preprocessor for net in self.control_nets if net.name == control_net), "")


def _short(description: str) -> str:
    """The first part of a description, without the full stop; after the authors, if it begins with them."""
    head, _, tail = description.partition(": ")
    text = tail if tail and any(character.isdigit() for character in head) else head
    return text.split(";")[0].removesuffix(".")
