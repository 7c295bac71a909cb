"""What the repository promises of itself: layout, import direction, committed stubs and floors."""

import ast
import filecmp
import graphlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

ROOT = Path(__file__).parents[1]
PROTO_PYTHON = ROOT / ".protoenv/bin/python"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = {
    "darkroom_plugins": ROOT / "plugins/darkroom_plugins",
    "darkroom_server": ROOT / "server/darkroom_server",
    "darkroom_demo": ROOT / "server/darkroom_demo",
    "darkroom_client": ROOT / "client/darkroom_client",
}
OURS = {"darkroom", *PACKAGES}
MAY_IMPORT = {
    "darkroom_plugins": set(),
    "darkroom_server": {"darkroom", "darkroom_plugins", "darkroom_demo"},
    "darkroom_demo": set(),
    "darkroom_client": {"darkroom"},
}
# Of darkroom_server, highest first: a unit imports only from units below it; those of one layer know nothing of each
# other. `cli` and `app` put the others together.
LAYERS: tuple[set[str], ...] = (
    {"cli"},
    {"cluster"},
    {"app"},
    {"web"},
    {"api"},
    {"observe"},
    {"job_manager"},
    {"engine"},
    {"jobs"},
    {"models"},
    {"pictures", "networks", "schedulers"},
    {"config", "errors", "device"},
)
needs_generator = pytest.mark.skipif(not PROTO_PYTHON.exists(), reason="no .protoenv; `make test` makes it")


def imports(path: Path, types: bool = True) -> Iterator[tuple[str, str]]:
    """All that a file imports, wherever in it, as modules and the names taken from them; without `types`, what runs."""
    tree = ast.parse(path.read_text())
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if not types and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped |= {inner for statement in node.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package_of(path)[: len(package_of(path)) + 1 - node.level]) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            yield from ((module, alias.name) for alias in node.names)


def package_of(path: Path) -> tuple[str, ...]:
    """The parts of the name of the package that a file is in; none for an example, which is in none."""
    tops = (top.parent for top in PACKAGES.values() if path.is_relative_to(top))
    return next((path.relative_to(top).parent.parts for top in tops), ())


def tops(path: Path) -> set[str]:
    return {module.partition(".")[0] for module, _ in imports(path)}


def sources(package: str) -> list[Path]:
    found = sorted(PACKAGES[package].rglob("*.py"))
    assert found, f"{package} has no sources"
    return found


# ------------------------------------------------------------------------------------------------------------ layout


def test_the_top_level_is_the_layout() -> None:
    folders = {"protos", "server", "plugins", "client", "tests"}
    files = {"Makefile", "README.md", "CHANGELOG.md", "pyproject.toml", "constraints.txt", "LICENSE"}
    made = {"out", "build", "dist"}  # by make and by builds; git ignores them
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")} - made
    assert found == folders | files
    packages = set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert packages == {"protos/darkroom", *(str(folder.relative_to(ROOT)) for folder in PACKAGES.values())}
    assert not (ROOT / "protos/darkroom/__init__.py").exists()


def test_the_readme_is_short_and_shows_how_to_try_and_to_test() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert {"make demo", "make test"} <= {line.partition("#")[0].strip() for line in lines}


def test_each_threat_names_a_test_that_is_there() -> None:
    table = (ROOT / ".github/SECURITY.md").read_text().partition("## Threats")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    named = [re.findall(r"`(darkroom_\S+\.py)((?:::\w+)*)` \|$", row) for row in rows]
    assert all(len(each) == 1 for each in named)
    for ((file, names),) in named:
        text = (ROOT / "tests" / file).read_text()
        assert all(re.search(rf"\b(def|class) {name}\b", text) for name in names.split("::")[1:]), (file, names)


def test_typed_packages_say_so() -> None:
    stubs = ROOT / "protos/darkroom/v1"  # of a namespace package the portion is marked, not the namespace
    assert all((folder / "py.typed").exists() for folder in (stubs, *PACKAGES.values()))


# ------------------------------------------------------------------------------------------------------------ imports


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    for path in sources(package):
        wrong = tops(path) & OURS - MAY_IMPORT[package] - {package}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_examples_import_the_contract_alone() -> None:
    for path in (ROOT / "plugins/examples").rglob("*.py"):
        assert tops(path) & OURS == {"darkroom_plugins"}


def test_plugins_see_no_protobuf_and_no_grpc() -> None:
    for path in sources("darkroom_plugins"):
        assert not tops(path) & {"google", "grpc"}, path.name


def test_protobuf_is_touched_at_the_edge_only() -> None:
    for path in sources("darkroom_server"):
        touched = {module for module, _ in imports(path) if module.startswith(("darkroom.v1", "google."))}
        assert not touched or unit(path) in ("api", "app", "web", "cluster"), f"{path.name} imports {touched}"


def unit(path: Path) -> str:
    """The package or module directly under darkroom_server that a file belongs to."""
    return path.relative_to(PACKAGES["darkroom_server"]).parts[0].removesuffix(".py")


def test_the_layers_are_whole() -> None:
    found = {unit(path) for path in sources("darkroom_server")} - {"__init__"}
    assert found == set().union(*LAYERS)


def test_imports_go_down_the_layers() -> None:
    """Imports for types and those inside functions, too."""
    layer = {name: number for number, names in enumerate(LAYERS) for name in names}
    inner = (path for path in sources("darkroom_server") if unit(path) != "__init__")
    needed = {
        (unit(path), module.removeprefix("darkroom_server."))
        for path in inner
        for module, _ in imports(path)
        if module.startswith("darkroom_server.")
    }
    upward = {
        (own, other)
        for own, other in needed
        if own != other.partition(".")[0] and layer[other.partition(".")[0]] <= layer[own]
    }
    assert not upward


def attributes(path: Path) -> set[str]:
    """The names of all attributes that a file reads or sets."""
    return {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}


def test_a_jobs_progress_is_the_engines() -> None:
    """What the engine's thread notes of a job is read nowhere else: admission goes by what the engine said."""
    for path in sources("darkroom_server"):
        if unit(path) != "engine" and path.name != "job.py":
            assert "progress" not in attributes(path), path.relative_to(ROOT)


def test_the_residency_manager_is_the_event_loops() -> None:
    """The engine and the planner get values, not the manager."""
    for path in sources("darkroom_server"):
        if unit(path) in ("engine", "jobs"):
            taken = {name for module, name in imports(path) if module == "darkroom_server.models.residency"}
            assert taken <= {"Key", "Loading"}, path.relative_to(ROOT)


def test_nothing_imports_what_is_built_in() -> None:
    """What comes in the box uses the contract that outsiders use; the manager has a table of it."""
    users = {
        path.relative_to(ROOT).as_posix()
        for package in ("darkroom_plugins", "darkroom_server")
        for path in sources(package)
        if any(module.startswith("darkroom_plugins.builtin") for module, _ in imports(path))
    }
    outside = {name for name in users if "/builtin/" not in name}
    assert outside == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_there_are_no_circles(package: str) -> None:
    """Imports inside functions count, too: they only hide a circle."""
    modules = {}
    for path in sources(package):
        own = () if path.stem == "__init__" else (path.stem,)
        modules[".".join((*package_of(path), *own))] = path
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        both = ((module, f"{module}.{taken}") for module, taken in imports(path, types=False))
        needed = {inner if inner in modules else module for module, inner in both}
        graph[name] = needed & set(modules) - {name}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_the_client_needs_only_the_base_install() -> None:
    base = {"grpc", "grpc_health", "grpc_status", "google", "PIL", "typer", "rich", "click"}  # click comes with typer
    for path in sources("darkroom_client"):
        extra = {"gradio"} if path.parent.name == "ui" or path.stem == "_ui" else set()  # of the extra of that name
        extra |= {"dynamicprompts", "pyparsing"} if path.stem == "_templates" else set()
        extra |= {"opentelemetry"} if path.stem == "_tracing" else set()  # which has it from the application
        foreign = tops(path) - base - extra - {"darkroom", "darkroom_client"} - sys.stdlib_module_names
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


@pytest.mark.parametrize(
    "code",
    [
        "import darkroom_client as client; [getattr(client, name) for name in client.__all__]",
        "from darkroom_client.cli import main",
    ],
    ids=["client", "cli"],
)
def test_the_client_imports_nothing_heavy(code: str) -> None:
    heavy = ["torch", "diffusers", "transformers", "numpy", "pydantic", "gradio", "opentelemetry"]
    heavy += ["darkroom_server", "darkroom_plugins"]
    assert loaded_by(code, heavy) == []


def loaded_by(code: str, modules: list[str]) -> list[str]:
    """Which of these modules a new interpreter has loaded after this code, which must not warn."""
    code = f"{code}\nimport sys\nprint(*(name for name in {modules} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr == ""
    return result.stdout.split()


def test_the_contract_needs_no_torch_to_be_imported() -> None:
    """Errors, requests and the contract are plain: torch and the rest come with what implements them."""
    code = "from darkroom_plugins import contract, errors, hookspecs, request, sample"
    assert loaded_by(code, ["torch", "diffusers", "google.protobuf", "grpc"]) == []


# ------------------------------------------------------------------------------------------------------------- stubs


@needs_generator
def test_the_stubs_are_those_of_the_protos(tmp_path: Path) -> None:
    protos = sorted(str(path.relative_to(ROOT / "protos")) for path in ROOT.glob("protos/darkroom/v1/*.proto"))
    out = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [PROTO_PYTHON, "-m", "grpc_tools.protoc", "-I", "protos", *out, *protos]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    made = {path.name for path in (tmp_path / "darkroom/v1").iterdir()}
    committed = {path.name for path in (ROOT / "protos/darkroom/v1").iterdir() if path.suffix in (".py", ".pyi")}
    assert committed == made
    for name in made:
        same = filecmp.cmp(tmp_path / "darkroom/v1" / name, ROOT / "protos/darkroom/v1" / name, shallow=False)
        assert same, f"{name} is not what the protos give: `make protos`"


@needs_generator
def test_the_stubs_import_at_the_floors() -> None:
    modules = sorted(path.stem for path in ROOT.glob("protos/darkroom/v1/*_pb2*.py"))
    lines = [f"import darkroom.v1.{module}" for module in modules]
    lines += ["import grpc, google.protobuf", "print(grpc.__version__, google.protobuf.__version__)"]
    command = [PROTO_PYTHON, "-W", "error", "-c", "\n".join(lines)]
    result = subprocess.run(
        command, env={"PYTHONPATH": str(ROOT / "protos")}, capture_output=True, text=True, check=False
    )
    assert result.stderr == ""
    assert result.stdout.split() == [floor("grpcio"), floor("protobuf")]


@needs_generator
def test_the_protos_decode_error_details() -> None:
    """As a client in a language without a package of google.rpc would."""
    info = error_details_pb2.ErrorInfo(reason="INVALID_REQUEST", domain="darkroom")
    status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message="no")
    status.details.add().Pack(info)
    files = [f"google/rpc/{name}.proto" for name in ("status", "error_details", "code")]
    for message, expected in (
        (status, "type.googleapis.com/google.rpc.ErrorInfo"),
        (info, 'reason: "INVALID_REQUEST"'),
    ):
        name = message.DESCRIPTOR.full_name
        command = [PROTO_PYTHON, "-m", "grpc_tools.protoc", "-I", "protos", "--decode", name, *files]
        data = message.SerializeToString()
        shown = subprocess.run(command, cwd=ROOT, input=data, capture_output=True, check=True).stdout
        assert expected in shown.decode()


def test_the_floors_are_the_generators_versions() -> None:
    (tools,) = re.findall(r"^GRPC_TOOLS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    pinned = dict(each.split("==") for each in tools.split())
    assert pinned["grpcio-tools"] == pinned["grpcio"] == floor("grpcio")
    assert pinned["protobuf"] == floor("protobuf")


def floor(name: str) -> str:
    """The least version of a base dependency."""
    (found,) = (each for each in PROJECT["project"]["dependencies"] if each.startswith(f"{name}>="))
    return found.removeprefix(f"{name}>=")


def test_constraints_pin_everything() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.+-]+", line) for line in lines if line and not line.startswith("#"))
