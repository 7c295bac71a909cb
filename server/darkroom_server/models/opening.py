"""Opens the configured models: reads their configuration files, without weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from darkroom_plugins.contract import SAFETY_CHECKER, TINY_VAE
from darkroom_plugins.deferred import torch
from darkroom_plugins.errors import DarkroomError, no_such
from darkroom_plugins.files import MetaNetworks, ModelFiles
from darkroom_plugins.files.hub_paths import hub_place, located, located_config
from darkroom_plugins.files.single_file import stated_options
from darkroom_server.device.cuda import is_cpu
from darkroom_server.models import extras
from darkroom_server.models.model import Model, ModelError
from darkroom_server.networks.memory_checks import check, needs_trial
from darkroom_server.networks.sizes import device_bytes
from darkroom_server.schedulers.schedule import ZERO_SNR, lacks_zero_snr

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from darkroom_plugins.contract import Family, SchedulerEntry
    from darkroom_plugins.manager import Plugins
    from darkroom_server.config.settings import ModelSettings, Settings


class StandIn(NamedTuple):
    """For the CPU as torch's device, or for a dtype of torch's, where nothing is computed."""

    type: str
    itemsize: int = 0

    def __str__(self) -> str:
        return self.type


CPU = StandIn("cpu")
DTYPES = {"float32": StandIn("float32", 4), "float16": StandIn("float16", 2), "bfloat16": StandIn("bfloat16", 2)}


def open_models(settings: Settings, plugins: Plugins, by_headers: bool = False) -> dict[str, Model]:
    """All configured models, by name, without weights. `by_headers`: nothing is made of their files that serving needs
    and checking does not; where families allow it (`Family.reads_headers_only`), without torch.

    :raises ModelError: a model is invalid, or no family supports it
    """
    return {
        each.name: _open(each, plugins, each.device or settings.device, each.dtype or settings.dtype, by_headers)
        for each in settings.models
    }


def check_budget(models: Mapping[str, Model], budget: int | None) -> None:
    """:raises ModelError: some models exceed the memory budget alone"""
    sizes = {name: model.device_bytes for name, model in models.items()}
    if budget is not None and (large := {name: size for name, size in sizes.items() if size > budget}):
        taken = ", ".join(f"{name!r} takes {size:,}" for name, size in large.items())
        raise ModelError(f"memory_budget: {budget:,} bytes are too few: {taken}")


def choose_device(name: str) -> torch.device:
    """The device of this name; ``auto`` is CUDA if available, else the CPU.

    :raises ModelError: there is no such device
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:
        raise ModelError(f"there is no device {name!r}") from error
    return device


def _open(settings: ModelSettings, plugins: Plugins, device_name: str, dtype: str, by_headers: bool) -> Model:
    try:
        files = files_of(settings)
    except (OSError, ValueError) as error:
        raise ModelError(f"model {settings.name!r}: {error}") from error
    try:
        index = files.index
    except (OSError, ValueError) as error:
        raise ModelError(f"model {settings.name!r}: {files.folder} has no readable model_index.json") from error
    found = [family for family in plugins.families.values() if family.detect(index)]
    if len(found) != 1:
        known = ", ".join(sorted(f.name for f in found)) or "none"
        raise ModelError(f"model {settings.name!r}: one family should know {index.get('_class_name')}, but {known} do")
    try:
        family = _opened(found[0], files, device_name, dtype, by_headers and not needs_trial(settings))
        if family.own_scheduler.get("_class_name") not in {each.class_name for each in plugins.schedulers.values()}:
            _ = family.scheduler_config  # only its library knows the class
    except (OSError, ValueError, KeyError, DarkroomError) as error:
        raise ModelError(f"model {settings.name!r}: {files.folder} does not load: {error}") from error
    wanted = settings.default_scheduler or entry_of(family.own_scheduler, plugins.schedulers)
    added, problems = extras.open_extras(family, files, settings, plugins)
    problems += check(settings, family)
    if wanted not in plugins.scheduler_names:
        problems.append(f"default_scheduler: {no_such('scheduler', wanted, plugins.schedulers)}")
    elif family.own_scheduler.get(ZERO_SNR):
        if family.info.prediction_type == "epsilon" and files.scheduler_options.get(ZERO_SNR):
            problems.append(
                f"{ZERO_SNR}: needs prediction_type 'v_prediction'; nothing can be told from the noise alone"
            )
        entry = plugins.schedulers[plugins.scheduler_names[wanted]]
        if problem := lacks_zero_snr(entry, plugins.schedulers, settings.name):
            problems.append(f"default_scheduler: {problem}")
    if problems:
        raise ModelError(f"model {settings.name!r}: {'; '.join(problems)}")
    family.meta_components = MetaNetworks(family.meta_components, added)
    if not by_headers:
        for name in added:
            added[name]
    modes, size = extras.preview_modes(family, settings, plugins), device_bytes(family, settings)
    return Model(settings, files, family, plugins.scheduler_names[wanted], modes, size)


def _opened(kind: type[Family], files: ModelFiles, device_name: str, dtype: str, by_headers: bool) -> Family:
    on_cpu = is_cpu(device_name)
    if by_headers and kind.reads_headers_only and on_cpu:
        stand_ins: Any = CPU, DTYPES["float32" if dtype == "auto" else dtype]
        return kind.open(files, *stand_ins)
    device = choose_device(device_name)
    family = kind.open(files, device, _dtype(dtype, device))
    if not by_headers:
        family.build()
    return family


def entry_of(config: Mapping[str, object], entries: Mapping[str, SchedulerEntry]) -> str:
    """The name of the scheduler entry that matches the model's configuration most closely, by default ddim."""
    fitting = [
        entry
        for entry in entries.values()
        if entry.class_name == config.get("_class_name")
        and all(config.get(option) == value for option, value in entry.options.items())
    ]
    return max(fitting, key=lambda entry: len(entry.options)).name if fitting else "ddim"


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return getattr(torch, name)  # type: ignore[no-any-return]


def files_of(settings: ModelSettings) -> ModelFiles:
    """A model's files, with what they and the settings say of its scheduler (see `_found`).

    :raises OSError, ValueError: they cannot be read, or contradict the settings
    """
    files = _found(settings)
    return replace(files, scheduler_options=_scheduler_options(settings, files.checkpoint))


def _scheduler_options(settings: ModelSettings, checkpoint: Path | None) -> dict[str, Any]:
    """The options by the settings, and where these are silent by the checkpoint.

    :raises ValueError: they contradict each other
    """
    stated = stated_options(checkpoint) if checkpoint else {}
    options: dict[str, Any] = {}
    for key in ("prediction_type", ZERO_SNR):
        values, given = stated.get(key, {}), getattr(settings, key)
        says = " and ".join(f"{value!r} ({where})" for value, where in values.items())
        if given is not None and values and given not in values:
            raise ValueError(f"{key}: it is set to {given!r}, but {checkpoint.name} says {says}")  # type: ignore[union-attr]
        if given is None and len(values) > 1:
            raise ValueError(f"{key}: {checkpoint.name} says {says}; set it")  # type: ignore[union-attr]
        if given is not None or values:
            options[key] = next(iter(values)) if given is None else given
    return options


def _found(settings: ModelSettings) -> ModelFiles:
    """A model's files. Downloads from the hub what is not cached: the configuration of a model repository; single-file
    checkpoints and separate components entirely.

    :raises OSError: the repository does not exist or cannot be reached
    """
    parts = {name: located(path) for name, path in (("vae", settings.vae), (TINY_VAE, settings.tiny_vae)) if path}
    place = hub_place(settings.path)
    if settings.config is not None:
        config = located_config(settings.config)
        if settings.safety != "off":  # single-file checkpoints never contain it
            parts[SAFETY_CHECKER] = located(settings.config / SAFETY_CHECKER)
        return ModelFiles(config, checkpoint=located(settings.path), parts=parts)
    if place:
        from darkroom_plugins.files.hub import HubFiles

        return HubFiles.find(place.repository, place.revision, settings.variant, parts)
    return ModelFiles(settings.path, settings.variant, parts=parts)
