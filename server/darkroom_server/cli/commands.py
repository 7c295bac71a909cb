"""The server's commands of `darkroom`. Imports are inside functions, so that `darkroom --help` is fast."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from darkroom_server.cli.report import USAGE, fail, print_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from darkroom_plugins.manager import PluginInfo
    from darkroom_server.config.settings import Settings
    from darkroom_server.models.model import InvalidPresets


RAY_EXTRA = "clusters want the packages of the extra `ray`: pip install 'darkroom-diffusion[ray]'"

Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        envvar="DARKROOM_CONFIG",
        exists=True,
        dir_okay=False,
        help="The configuration file.  [default: darkroom.toml, if it exists]",
    ),
]


def serve(
    config: Config = None,
    listen: Annotated[str | None, typer.Option(help="Where to listen, HOST:PORT.  [default: 127.0.0.1:50051]")] = None,
    http: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Where Connect, gRPC-Web and the OpenAI images API listen.  [default: none]"
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]MODEL",
            help="A diffusers folder, or OWNER/NAME@REVISION of the hub; repeat for more. None: the demo model.",
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]FILE", help="A LoRA to offer, a safetensors file; repeat for more."),
    ] = None,
    controlnet: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]FOLDER", help="A ControlNet to offer, in diffusers' format; repeat for more."),
    ] = None,
    preprocessor: Annotated[
        list[str] | None,
        typer.Option(metavar="CONTROLNET=NAME", help="What makes a ControlNet's maps, from `darkroom preprocessors`."),
    ] = None,
    embedding: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]FILE", help="A textual inversion to offer, a safetensors file; repeat for more."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …  [default: CUDA where there is one]")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16, bfloat16, or auto: float16 on CUDA.  [default: auto]")
    ] = None,
    max_batch_rows: Annotated[int | None, typer.Option(help="The most rows in one batch.")] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", file_okay=False, help="Where kept jobs outlive the server's process."),
    ] = None,
    block: Annotated[list[str] | None, typer.Option(help="A plugin not to load; repeat for more.")] = None,
    engine: Annotated[
        str | None, typer.Option(help="local, in this process; or ray, replicas on Ray Serve.  [default: local]")
    ] = None,
    replicas: Annotated[int | None, typer.Option(help="Of --engine ray.  [default: 1]")] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="The Ray cluster to join, HOST:PORT or auto.  [default: a local one]"),
    ] = None,
    tls_self_signed: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            file_okay=False,
            help="Speak TLS with certificates made in this folder, for a first try. Your own: [tls] in darkroom.toml.",
        ),
    ] = None,
) -> None:
    """Serve the models of --model or darkroom.toml, else the embedded demo model.

    Precedence, highest first: flags, environment (DARKROOM_…), file. Lists are not merged: with --model, no model of
    the file is offered.
    """
    from darkroom_server.cli.flags import Flags
    from darkroom_server.device.allocator import tune_malloc
    from darkroom_server.device.cuda import choose_allocator, is_cpu
    from darkroom_server.device.threads import limit_openmp_spinning, shorten_switch_interval

    choose_allocator()
    limit_openmp_spinning()
    shorten_switch_interval()
    flags = Flags()
    given: dict[str, Any] = {
        "engine": engine,
        "listen": listen,
        "http": http,
        "device": device,
        "dtype": dtype,
        "blocked_plugins": block,
        "state_dir": state_dir,
        "models": flags.models(model),
        "loras": flags.files("--lora", lora),
        "controlnets": flags.control_nets(controlnet, preprocessor),
        "embeddings": flags.files("--embedding", embedding),
    }
    if max_batch_rows is not None:
        given["limits"] = {"max_batch_rows": max_batch_rows}
    cluster = {"replicas": replicas, "address": ray_address}
    given["cluster"] = {name: value for name, value in cluster.items() if value is not None} or None
    given = {name: value for name, value in given.items() if value is not None}
    if tls_self_signed is not None:
        given["tls"] = _make_certificates(tls_self_signed, listen)
    settings = _settings(given, config, flags.problems)
    if settings.engine == "local" and any(map(is_cpu, settings.devices)):
        tune_malloc()
    from darkroom_server.observe.streams import queued_streams

    with queued_streams():
        if settings.engine == "local":
            status = _serve(settings, lambda found: _located(found, given, config))
        else:
            status = _serve_cluster(settings)
    if settings.engine == "local":
        _leave_compiler(status)
    raise typer.Exit(status)


def _make_certificates(folder: Path, listen: str | None) -> dict[str, Any]:
    """The `[tls]` of a folder's certificates; how clients use them is printed.

    :raises typer.Exit: they cannot be made
    """
    from darkroom_server.cli.self_signed import self_signed
    from darkroom_server.config.address import TcpAddress, parse_address

    try:
        address = parse_address(listen) if listen else None
    except ValueError:
        address = None  # which the settings refuse, with the reason
    try:
        files = self_signed(folder.expanduser(), address.host if isinstance(address, TcpAddress) else None)
    except (OSError, ValueError) as error:
        fail(f"--tls-self-signed {folder}: {error}", status=USAGE)
    typer.echo(
        f"Certificates are in {folder}. Clients trust the server by its CA:\n"
        f'  darkroom generate "a red circle" --root-certificate {files.ca}\n'
        f'  Client(root_certificate="{files.ca}")\n'
        f'With client_ca = "{files.ca}" under [tls] it takes only clients that have a certificate, too:\n'
        f"  --client-certificate {files.client} --client-key {files.client_key}",
        err=True,
    )
    return {"certificate": files.certificate, "key": files.key}


def _serve(settings: Settings, located: Callable[[InvalidPresets], list[str]]) -> int:
    """The exit code. `located`: the lines that say what is wrong with presets."""
    _quiet_libraries(settings.log_format)
    import diffusers

    from darkroom_plugins.manager import PluginError
    from darkroom_server.api.listening import CannotListen
    from darkroom_server.app import run
    from darkroom_server.jobs.log_sqlite import StateDirInUse
    from darkroom_server.models.model import InvalidPresets, ModelError

    diffusers.utils.logging.disable_progress_bar()  # transformers' switch would also disable the hub's
    try:
        return _run_event_loop(run(settings, owns_process=True))
    except InvalidPresets as error:
        print_errors(*located(error))
        return USAGE
    except (CannotListen, ModelError, PluginError, StateDirInUse) as error:
        print_errors(str(error))
        return 1


def _serve_cluster(settings: Settings) -> int:
    """The edge of a cluster, in a process without torch."""
    from darkroom_server.api.listening import CannotListen
    from darkroom_server.jobs.log_sqlite import StateDirInUse
    from darkroom_server.observe.log import log_to_stderr

    log_to_stderr(settings.log_format)
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # the cluster's processes are started beside open calls
    try:
        import ray  # noqa: F401  # the edge takes it when it starts

        from darkroom_server.cluster.edge import run
        from darkroom_server.cluster.wire import ClusterError
    except ModuleNotFoundError as error:
        fail(f"{RAY_EXTRA} ({error})")
    try:
        return _run_event_loop(run(settings, owns_process=True))
    except (CannotListen, ClusterError, StateDirInUse) as error:
        fail(str(error))


def _leave_compiler(status: int) -> None:
    """Exit at once if something is being compiled: a thread that the exit ends within C++ would abort the process."""
    from darkroom_server.networks.compiled import is_compiling

    if is_compiling():
        os._exit(status)


def check(config: Config = None) -> None:
    """Show what `darkroom serve` would offer with this configuration. Reads no weights, opens no port."""
    settings = _settings({}, config)
    from darkroom_plugins.manager import PluginError, load_plugins
    from darkroom_server.cli.overview import overview
    from darkroom_server.cli.tables import print_tables
    from darkroom_server.models.model import InvalidPresets, ModelError

    _quiet_libraries()
    try:
        tables, usable = overview(settings, load_plugins(settings.blocked_plugins))
    except InvalidPresets as error:
        fail(*_located(error, {}, config), status=USAGE)
    except (ModelError, PluginError) as error:
        fail(str(error))
    print_tables(*tables)
    if not usable:
        raise typer.Exit(1)


def token(
    role: Annotated[
        Literal["user", "operator"], typer.Option(help="The bearer's role; operators may also load and unload models.")
    ] = "user",
    name: Annotated[str | None, typer.Option(help="The bearer's name.  [default: the role]")] = None,
) -> None:
    """Make a token for clients, and its entry for darkroom.toml."""
    import secrets
    from hashlib import sha256

    from darkroom_server.cli.flags import checked_name

    name = checked_name(name or role)
    made = secrets.token_urlsafe(32)
    typer.echo("The token. It is shown this once; clients take it as --token or DARKROOM_TOKEN:\n", err=True)
    typer.echo(made)
    typer.echo("\nFor darkroom.toml:\n", err=True)
    typer.echo(f'[[tokens]]\nname = "{name}"\nrole = "{role}"\nsha256 = "{sha256(made.encode()).hexdigest()}"')


def deploy(
    config: Config = None,
    replicas: Annotated[int | None, typer.Option(help="How many, each with a device.  [default: 1]")] = None,
) -> None:
    """Print the configuration of Ray Serve for replicas of this configuration, YAML.

    Edges join them: darkroom serve --engine ray --ray-address auto

    Examples:
    darkroom deploy --replicas 4 > serve.yaml && serve deploy serve.yaml
    """
    settings = _settings({"cluster": {"replicas": replicas}} if replicas is not None else {}, config)
    try:
        import yaml

        from darkroom_server.cluster.deployment import serve_config
    except ModuleNotFoundError as error:
        fail(f"{RAY_EXTRA} ({error})")
    typer.echo(yaml.safe_dump(serve_config(settings), sort_keys=False), nl=False)


def _settings(given: dict[str, Any], config: Path | None, problems: Sequence[str] = ()) -> Settings:
    """`problems`: with the flags, said with those of the settings.

    :raises typer.Exit: there are problems; all are printed
    """
    from darkroom_server.config.reader import ConfigurationError, default_file, read_settings

    try:
        settings = read_settings(given, config or default_file())
    except ConfigurationError as error:
        fail(*problems, *error.violations, status=USAGE)
    if problems:
        fail(*problems, status=USAGE)
    return settings


def _located(error: InvalidPresets, given: dict[str, Any], config: Path | None) -> list[str]:
    """A line for each of the presets' violations, with its place in the file."""
    from darkroom_server.config.reader import default_file, located

    return located(error.violations, given, config or default_file())


def plugins(
    block: Annotated[list[str] | None, typer.Option(help="A plugin not to load; repeat for more.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the installed plugins: name, version, hooks, parameters. `darkroom info` asks a running server.

    Examples:
    darkroom plugins
    darkroom plugins --json | jq '.[].name'
    """
    from darkroom_plugins.manager import PluginError, list_plugins

    try:
        infos = list_plugins(block or ())
    except PluginError as error:
        fail(str(error))
    if as_json:
        import json

        typer.echo(json.dumps([_plugin_json(info) for info in infos], indent=2))
        return
    from rich.table import Table

    from darkroom_server.cli.tables import print_tables

    table = Table("name", "version", "contributes", "parameters", "")
    for info in infos:
        parameters = ", ".join(info.parameters.model_fields) if info.parameters else ""
        hooks = "\n".join(hook.removeprefix("darkroom_") for hook in info.hooks)
        table.add_row(info.name, info.version, hooks, parameters, "built in" if info.builtin else "")
    print_tables(table)


def _plugin_json(info: PluginInfo) -> dict[str, Any]:
    """As in GetServerInfo."""
    schema = info.parameters.model_json_schema() if info.parameters else None
    names = {"name": info.name, "version": info.version, "hooks": info.hooks}
    return {**names, "extensions_schema": schema, "builtin": info.builtin}


def _run_event_loop(main: Any) -> int:
    import asyncio

    try:
        import uvloop
    except ImportError:  # not available on Windows
        return int(asyncio.run(main))
    return int(uvloop.run(main))


def _quiet_libraries(log_format: Literal["console", "json"] = "console") -> None:
    """Log to stderr, without the libraries' progress bars and advice."""
    import logging

    from darkroom_server.observe.log import log_to_stderr

    log_to_stderr(log_format)
    for library in ("DIFFUSERS", "TRANSFORMERS"):  # which read it when they are imported
        os.environ[f"{library}_VERBOSITY"] = "error"
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # logs each request to the hub
    logging.getLogger("transformers").setLevel(logging.ERROR)
