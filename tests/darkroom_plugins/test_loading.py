"""Plugins are found, checked and listed, and no two claim one name."""

import types
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from darkroom_plugins import hookimpl, manager
from darkroom_plugins.contract import Adapter, Conditioner, Finisher, Preprocessor, PreviewDecoder, SchedulerEntry, Task
from darkroom_plugins.manager import KINDS, PluginError, list_plugins, load_plugins
from darkroom_plugins.version import VERSION
from tests.noise_family import Noise


def plugin(version: int | None = 1, **hooks: Callable[[], Any]) -> types.SimpleNamespace:
    """A plugin whose hooks, named without prefix, are these functions."""
    implementations = {f"darkroom_{name}": hookimpl(_fresh(function)) for name, function in hooks.items()}
    return types.SimpleNamespace(**implementations, **({} if version is None else {"darkroom_api_version": version}))


def _fresh(function: Callable[[], Any]) -> Callable[[], Any]:
    def implementation() -> Any:
        return function()

    return implementation


def refusal(extra: dict[str, object] | None = None, **arguments: Any) -> str:
    with pytest.raises(PluginError) as caught:
        load_plugins(extra=extra, **arguments)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------ loading


def test_builtins_and_the_installed_example_are_found() -> None:
    infos = {info.name: info for info in load_plugins().infos}
    assert list(infos) == sorted(infos)
    assert {name for name, info in infos.items() if info.builtin} == {
        *("controlnet", "img2img", "inpaint", "lora", "preprocessors", "previews"),
        *("prompt-weighting", "recipe", "safety", "schedulers", "sd", "sdxl", "textual-inversion", "txt2img"),
    }
    vignette = infos["vignette"]
    assert (vignette.version, vignette.hooks, vignette.builtin) == ("0.1.0", ("darkroom_finishers",), False)
    assert vignette.parameters is not None
    assert vignette.parameters.model_json_schema()["properties"]["strength"]["maximum"] == 1
    assert infos["txt2img"].version == VERSION
    assert infos["schedulers"].hooks == ("darkroom_schedulers",)


@pytest.mark.parametrize("blocked", [[], ["vignette", "sdxl"]])
def test_the_list_of_plugins_is_that_of_those_loaded(blocked: list[str]) -> None:
    assert list_plugins(blocked) == load_plugins(blocked).infos


def test_owners_are_known() -> None:
    plugins = load_plugins()
    assert plugins.owner("finishers", "vignette") == "vignette"
    assert plugins.owner("tasks", "txt2img") == "txt2img"
    assert set(plugins.extensions) == {"vignette"}


def test_the_example_is_small() -> None:
    """A finisher with a parameter in ten lines or so: that is what a plugin costs its author."""
    example = Path(__file__).parents[2] / "plugins/examples/vignette/darkroom_vignette.py"
    lines = [line for line in example.read_text().splitlines() if line.strip()]
    assert len(lines) <= 25


def test_a_blocked_plugin_is_absent() -> None:
    plugins = load_plugins(blocked=["vignette", "txt2img"])
    assert {"vignette", "txt2img"}.isdisjoint(info.name for info in plugins.infos)
    assert set(plugins.tasks) == {"img2img", "inpaint", "outpaint"}
    assert plugins.extensions == {}


@pytest.mark.parametrize("listing", [load_plugins, list_plugins])
def test_what_is_blocked_must_be_there(listing: Callable[..., object]) -> None:
    with pytest.raises(PluginError) as caught:
        listing(blocked=["vignete", "lora", "nothing-like-it"])
    kind = "there is no plugin to block"
    assert str(caught.value) == f"{kind} 'nothing-like-it'; {kind} 'vignete' (did you mean 'vignette'?)"


def test_a_blocked_extra_plugin_is_absent_and_not_asked() -> None:
    def never() -> Any:
        raise AssertionError("a blocked plugin was asked")

    plugins = load_plugins(blocked=["extra"], extra={"extra": plugin(tasks=never)})
    assert "extra" not in [info.name for info in plugins.infos]


def test_a_plugin_without_a_version_is_told_what_to_write() -> None:
    class Silent:
        @hookimpl
        def darkroom_tasks(self) -> list[Task]:
            return []

    assert "write `darkroom_api_version = 1` in it" in refusal({"silent": Silent()})


def test_parameters_that_are_no_pydantic_model_are_refused() -> None:
    finisher = type("Plain", (SomeFinisher,), {"name": "plain", "Parameters": dict})()
    message = refusal({"mine": plugin(finishers=lambda: [finisher])})
    assert all(word in message for word in ("'mine'", "'plain'", "pydantic.BaseModel"))


def test_a_name_of_a_built_in_contribution_is_refused() -> None:
    entry = SchedulerEntry(name="euler", scheduler=object)
    message = refusal({"mine": plugin(schedulers=lambda: [entry])})
    assert all(word in message for word in ("'mine'", "'euler'", "built-in plugin 'schedulers'"))


@pytest.mark.parametrize("version", [0, 2, "1"])
def test_another_version_of_the_contract_is_refused(version: Any) -> None:
    message = refusal({"old": plugin(version, tasks=list)})
    assert "'old'" in message
    assert str(version) in message


def test_a_misspelled_hook_is_refused() -> None:
    assert "darkroom_finisher" in refusal({"typo": plugin(finisher=list)})


def test_a_hook_with_other_arguments_is_refused() -> None:
    class Wrong:
        darkroom_api_version = 1

        @hookimpl
        def darkroom_tasks(self, nonsense: int) -> list[Task]:
            return []

    assert "'wrong'" in refusal({"wrong": Wrong()})


def boom() -> Any:
    raise RuntimeError("boom")


@pytest.mark.parametrize("answer", [boom, lambda: None, lambda: [object()]], ids=["raises", "gives None", "nameless"])
def test_a_hook_that_fails_is_told_by_its_plugin(answer: Callable[[], Any]) -> None:
    assert "'broken'" in refusal({"broken": plugin(tasks=answer)})


def entry_point(name: str, value: str = "tests.noise_family") -> EntryPoint:
    return EntryPoint(name=name, value=value, group="darkroom.plugins")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes these the installed plugins."""

    def install(*entries: EntryPoint) -> None:
        monkeypatch.setattr(manager, "entry_points", lambda group: list(entries))

    return install


def test_a_plugin_that_does_not_load_is_named(install: Callable[..., None]) -> None:
    install(entry_point("ghost", "no_such_module_anywhere"))
    assert "'ghost'" in refusal()


def test_a_plugin_that_does_not_load_can_be_blocked(install: Callable[..., None]) -> None:
    install(entry_point("ghost", "no_such_module_anywhere"))
    assert "ghost" not in [info.name for info in load_plugins(blocked=["ghost"]).infos]


def test_two_distributions_with_one_plugin_name_are_refused(install: Callable[..., None]) -> None:
    install(entry_point("twin", "tests.noise_family"), entry_point("twin", "darkroom_vignette"))
    assert "twin" in refusal()


def test_a_plugin_cannot_take_the_name_of_a_builtin(install: Callable[..., None]) -> None:
    install(entry_point("recipe"))
    assert "'recipe'" in refusal()


# ------------------------------------------------------------------------------------------------ names claimed twice


class SomeTask(Task):
    name = "some"
    rpcs = ("Generate",)

    def begin(self, sample: Any, parameters: Any) -> None: ...


class SomeConditioner(Conditioner):
    name = "some"

    def wants(self, request: Any, parameters: Any) -> bool:
        return False


class SomeAdapter(Adapter):
    name = "some"

    def wants(self, request: Any, parameters: Any) -> bool:
        return False

    def applied(self, model: Any, evaluation: Any, parameters: Any) -> Any: ...


class SomeFinisher(Finisher):
    name = "some"

    def finish(self, picture: Any, request: Any, parameters: Any) -> Any:
        return picture


SOME: dict[str, Callable[[], Any]] = {
    "families": lambda: [Noise],
    "schedulers": lambda: [SchedulerEntry(name="some", scheduler=object)],
    "preprocessors": lambda: [Preprocessor(name="some", run=lambda pixels, parameters: pixels)],
    "preview_decoders": lambda: [PreviewDecoder(name="some", build=lambda model: model.decode)],
    "tasks": lambda: [SomeTask()],
    "conditioners": lambda: [SomeConditioner()],
    "adapters": lambda: [SomeAdapter()],
    "finishers": lambda: [SomeFinisher()],
}


@pytest.mark.parametrize("kind", KINDS)
def test_two_plugins_that_claim_one_name_are_refused(kind: str) -> None:
    assert load_plugins(extra={"one": plugin(**{kind: SOME[kind]})})
    message = refusal({"one": plugin(**{kind: SOME[kind]}), "two": plugin(**{kind: SOME[kind]})})
    assert all(word in message for word in ("'one'", "'two'", kind))


def test_one_name_may_be_used_among_several_kinds() -> None:
    plugins = load_plugins(extra={"one": plugin(**SOME)})
    assert plugins.tasks["some"]
    assert plugins.finishers["some"]


@pytest.mark.parametrize(
    ("name", "aliases"), [("euler", ()), ("euler_a", ()), ("mine", ("ddim",)), ("mine", ("x", "dpm++"))]
)
def test_a_scheduler_alias_counts_as_a_name(name: str, aliases: tuple[str, ...]) -> None:
    entry = SchedulerEntry(name=name, scheduler=object, aliases=aliases)
    message = refusal({"mine": plugin(schedulers=lambda: [entry])})
    assert "'mine'" in message
    assert "'schedulers'" in message


def test_a_plugin_has_one_class_of_parameters() -> None:
    def finisher(title: str) -> Finisher:
        return type(title, (SomeFinisher,), {"name": title, "Parameters": type(title, (BaseModel,), {})})()

    assert "'two'" in refusal({"two": plugin(finishers=lambda: [finisher("A"), finisher("B")])})
