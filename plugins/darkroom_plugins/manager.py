"""Discovers and validates plugins, and collects their contributions by name."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from importlib.metadata import Distribution, EntryPoint, entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from darkroom_plugins import API_VERSION, ENTRY_POINT_GROUP, hookspecs
from darkroom_plugins.errors import no_such
from darkroom_plugins.version import VERSION

if TYPE_CHECKING:
    from pydantic import BaseModel

    from darkroom_plugins.contract import (
        Adapter,
        Conditioner,
        Family,
        Finisher,
        Preprocessor,
        PreviewDecoder,
        SchedulerEntry,
        Task,
    )


log = logging.getLogger(__name__)


class PluginError(Exception):
    """An unusable plugin: the server does not start."""


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """A registered plugin."""

    name: str
    version: str
    hooks: tuple[str, ...]
    builtin: bool
    parameters: type[BaseModel] | None  # of `extensions` under the plugin's name


@dataclass(slots=True)
class Plugins:
    """All contributions, by name. `owners` names the plugin of each, by hook and name."""

    infos: list[PluginInfo]
    owners: dict[tuple[str, str], str] = field(default_factory=dict)
    families: dict[str, type[Family]] = field(default_factory=dict)
    schedulers: dict[str, SchedulerEntry] = field(default_factory=dict)
    scheduler_names: dict[str, str] = field(default_factory=dict)  # names and aliases to names
    preprocessors: dict[str, Preprocessor] = field(default_factory=dict)
    preview_decoders: dict[str, PreviewDecoder] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    conditioners: dict[str, Conditioner] = field(default_factory=dict)
    adapters: dict[str, Adapter] = field(default_factory=dict)
    finishers: dict[str, Finisher] = field(default_factory=dict)

    @property
    def extensions(self) -> Mapping[str, type[BaseModel]]:
        """The Parameters that validate `extensions`, by plugin name."""
        return {info.name: info.parameters for info in self.infos if info.parameters}

    def owner(self, kind: str, name: str) -> str:
        """The name of the plugin of this contribution; `kind` is the hook's name without its prefix."""
        return self.owners[(kind, name)]

    def with_components(self) -> list[Any]:
        """The contributions that may add components to a model."""
        kinds = (self.tasks, self.conditioners, self.adapters, self.finishers, self.preview_decoders)
        return [each for kind in kinds for each in kind.values()]

    def release(self) -> None:
        """Call `release` of tasks, conditioners and adapters."""
        for each in (*self.tasks.values(), *self.conditioners.values(), *self.adapters.values()):
            try:
                each.release()
            except Exception as error:
                log.warning("%s does not let go of memory", each.name, exc_info=error)


BUILTIN = {  # name → its module in `builtin`, and the hook that it implements
    "controlnet": ("conditioners.controlnet", "conditioners"),
    "img2img": ("tasks.img2img", "tasks"),
    "inpaint": ("tasks.inpaint", "tasks"),
    "lora": ("lora", "adapters"),
    "preprocessors": ("preprocessors", "preprocessors"),
    "previews": ("previews", "preview_decoders"),
    "prompt-weighting": ("conditioners.prompt_weighting", "conditioners"),
    "recipe": ("recipe", "finishers"),
    "safety": ("safety", "finishers"),
    "schedulers": ("schedulers", "schedulers"),
    "sd": ("families.sd", "families"),
    "sdxl": ("families.sdxl", "families"),
    "textual-inversion": ("conditioners.textual_inversion", "conditioners"),
    "txt2img": ("tasks.txt2img", "tasks"),
}
KINDS = (
    "families",
    "schedulers",
    "preprocessors",
    "preview_decoders",
    "tasks",
    "conditioners",
    "adapters",
    "finishers",
)


def load_plugins(blocked: Iterable[str] = (), extra: Mapping[str, object] | None = None) -> Plugins:
    """All plugins: built-in ones, installed ones, and `extra`, by name.

    :raises PluginError: one does not load, declares another version of the contract, implements an unknown hook, or
        claims a name that is taken; or there is none of a name that is blocked
    """
    return _loaded(blocked, _builtins(), extra or {})


def list_plugins(blocked: Iterable[str] = ()) -> list[PluginInfo]:
    """What is registered of all plugins by `load_plugins`, sorted by name. Built-in ones are not imported, which takes
    seconds; so names that contributions of a plugin share with theirs go unnoticed.

    :raises PluginError: as `load_plugins`
    """
    others = _loaded(blocked, {}, {}).infos
    left = (each for each in BUILTIN.items() if each[0] not in set(blocked))
    builtin = [PluginInfo(name, VERSION, (f"darkroom_{hook}",), True, None) for name, (_, hook) in left]
    return sorted([*builtin, *others], key=lambda info: info.name)


def _loaded(blocked: Iterable[str], builtin: Mapping[str, object], extra: Mapping[str, object]) -> Plugins:
    manager = pluggy.PluginManager("darkroom")
    manager.add_hookspecs(hookspecs)
    blocked = set(blocked)
    entries = entry_points(group=ENTRY_POINT_GROUP)
    known = {*BUILTIN, *extra, *(entry.name for entry in entries)}
    if missing := sorted(blocked - known):
        raise PluginError("; ".join(no_such("plugin to block", name, known, listed=False) for name in missing))
    for name in blocked:
        manager.set_blocked(name)
    installed = _installed(manager, entries)
    loaded = {name: _load(entry) for name, entry in installed.items()}
    for name, plugin in [*builtin.items(), *loaded.items(), *extra.items()]:
        _register(manager, name, plugin, name in BUILTIN and plugin is not builtin.get(name))
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(str(error)) from error
    plugins = Plugins([])
    for name, plugin in sorted(manager.list_name_plugin()):
        if plugin is not None:
            distribution = installed[name].dist if name in installed else None
            try:
                plugins.infos.append(_collect(manager, plugins, name, name in builtin, distribution))
            except PluginError:
                raise
            except Exception as error:
                raise PluginError(f"plugin {name!r} does not say what it contributes: {error!r}") from error
    return plugins


def _builtins() -> dict[str, ModuleType]:
    return {name: import_module(f"darkroom_plugins.builtin.{module}") for name, (module, _) in BUILTIN.items()}


def _installed(manager: pluggy.PluginManager, entries: Iterable[EntryPoint]) -> dict[str, EntryPoint]:
    """Those of installed plugins that are not blocked."""
    found: dict[str, EntryPoint] = {}
    for entry in entries:
        if manager.is_blocked(entry.name):
            continue
        if entry.name in found:
            raise PluginError(f"two installed plugins have the name {entry.name!r}; block it, or remove one")
        found[entry.name] = entry
    return found


def _load(entry: EntryPoint) -> object:
    try:
        return entry.load()
    except Exception as error:
        raise PluginError(f"plugin {entry.name!r} does not load: {error!r}; block it, or remove it") from error


def _register(manager: pluggy.PluginManager, name: str, plugin: object, taken: bool) -> None:
    if manager.is_blocked(name):
        return
    declared = getattr(plugin, "darkroom_api_version", None)
    if declared is None:
        raise PluginError(
            f"plugin {name!r} does not declare the version of the contract that it was written for; "
            f"write `darkroom_api_version = {API_VERSION}` in it"
        )
    if declared != API_VERSION:
        raise PluginError(
            f"plugin {name!r} declares darkroom_api_version = {declared}; this server has version {API_VERSION}"
        )
    if taken:
        raise PluginError(f"plugin {name!r} has the name of a built-in plugin; give it another, or remove it")
    try:
        manager.register(plugin, name)
    except (ValueError, pluggy.PluginValidationError) as error:
        raise PluginError(f"plugin {name!r}: {error}") from error


def _collect(
    manager: pluggy.PluginManager, plugins: Plugins, name: str, builtin: bool, distribution: Distribution | None
) -> PluginInfo:
    hooks, parameters = [], set()
    for kind, implementation in _implementations(manager, name):
        hooks.append(f"darkroom_{kind}")
        for contribution in implementation():
            _check_parameters(name, contribution)
            _add(plugins, kind, name, _with_plugin(contribution, name))
            if kind not in ("schedulers", "preprocessors") and getattr(contribution, "Parameters", None):
                parameters.add(contribution.Parameters)
    if len(parameters) > 1:
        raise PluginError(f"plugin {name!r} has {len(parameters)} classes of parameters; one is possible")
    its_version = VERSION if builtin else distribution.version if distribution else ""
    return PluginInfo(name, its_version, tuple(sorted(hooks)), builtin, next(iter(parameters), None))


def _implementations(manager: pluggy.PluginManager, name: str) -> Iterator[tuple[str, Callable[[], Iterable[Any]]]]:
    for kind in KINDS:
        for implementation in getattr(manager.hook, f"darkroom_{kind}").get_hookimpls():
            if implementation.plugin_name == name:
                yield kind, implementation.function


def _check_parameters(plugin: str, contribution: Any) -> None:
    from pydantic import BaseModel

    if isinstance(inspect.getattr_static(type(contribution), "Parameters", None), cached_property):
        return  # made at first use
    parameters = getattr(contribution, "Parameters", None)
    if parameters is not None and not (isinstance(parameters, type) and issubclass(parameters, BaseModel)):
        raise PluginError(
            f"plugin {plugin!r}: the Parameters of {contribution.name!r} are no pydantic model; "
            "derive the class from pydantic.BaseModel"
        )


def _claimed_twice(kind: str, name: str, one: str, other: str) -> str:
    builtin = [each for each in (one, other) if each in BUILTIN]
    if len(builtin) == 1:
        outside = other if builtin == [one] else one
        claim = f"claims the name {name!r} among {kind}, which the built-in plugin {builtin[0]!r} has"
        return f"plugin {outside!r} {claim}; give another name, or block one of them"
    return f"plugins {one!r} and {other!r} both claim the name {name!r} among {kind}; block one of them"


def _with_plugin(contribution: Any, plugin: str) -> Any:
    """The contribution, with its `plugin` set."""
    if dataclasses.is_dataclass(contribution) and not isinstance(contribution, type):
        contribution = copy.copy(contribution)
        object.__setattr__(contribution, "plugin", plugin)  # it may be frozen
        return contribution
    contribution.plugin = plugin
    return contribution


def _add(plugins: Plugins, kind: str, plugin: str, contribution: Any) -> None:
    table: dict[str, Any] = getattr(plugins, kind)
    names = (contribution.name, *getattr(contribution, "aliases", ()))
    taken = plugins.scheduler_names if kind == "schedulers" else table
    for name in names:
        if name in taken:
            owner = plugins.owner(kind, plugins.scheduler_names.get(name, name))
            raise PluginError(_claimed_twice(kind, name, *sorted([owner, plugin])))
    table[contribution.name] = contribution
    plugins.owners[(kind, contribution.name)] = plugin
    if kind == "schedulers":
        plugins.scheduler_names |= dict.fromkeys(names, contribution.name)
