"""darkroom.toml: what it says, what goes before it, and what is said of each mistake in it."""

import json
import tomllib
from hashlib import sha256
from pathlib import Path

import pytest
from typer.testing import CliRunner

from darkroom_client.cli._app import app
from darkroom_server.cli.flags import file as lora_flag
from darkroom_server.cli.flags import model as model_flag
from darkroom_server.config.reader import PATHS, ConfigurationError, read_settings
from darkroom_server.config.settings import AssetSettings, ModelSettings, Settings
from darkroom_server.config.toml_lines import line_of

HASH = sha256(b"t0ken").hexdigest()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with something at some paths."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sd").mkdir()
    for name in ("one.safetensors", "old.ckpt", "old.BIN", "notes.txt"):
        (tmp_path / name).touch()
    return tmp_path


def read(text, flags=None):
    file = Path("darkroom.toml")
    file.write_text(text)
    return read_settings(flags or {}, file)


def violations(text, flags=None):
    with pytest.raises(ConfigurationError) as caught:
        read(text, flags)
    return caught.value.violations


MODEL = '[[models]]\nname = "a"\n'
PATH = MODEL + 'path = "sd"\n'
ONE = MODEL + 'path = "one.safetensors"\n'
HUB = MODEL + 'path = "hub:o/n"\n'

WRONG = {  # the file, and the beginning of each violation
    "value": ("\n\ndrain_seconds = -1", ["3: drain_seconds: must be greater than or equal to 0"]),
    "choice": (
        PATH + 'offload = "disk"',
        ["4: models.0.offload: must be 'none', 'model', 'sequential' or 'gr"],
    ),
    "either": (PATH + 'attention_slicing = "x"', ["4: models.0.attention_slicing: must be a valid integer"]),
    "type": ("models = 3", ["1: models: must be a valid list"]),
    "size": ('memory_budget = "lots"', ['1: memory_budget: a size is needed, as "20 GiB", or a number of bytes']),
    "unit": ('memory_budget = "2 parsecs"', ["1: memory_budget: a size is needed"]),
    "small": (
        "[limits]\nmax_request_bytes = 1",
        ["2: limits.max_request_bytes: must be greater than or equal"],
    ),
    "key": ("# no\ncolour = 1", ["2: colour: there is no such key"]),
    "key on Windows": ("# no\r\ncolour = 1\r\n", ["2: colour: there is no such key"]),
    "key in capitals": ('Listen = "127.0.0.1:1"', ["1: Listen: there is no such key"]),
    "key of a table": ("[limits]\nmax_edge = 64\nx.y = 1", ["3: limits.x: there is no such key"]),
    "key of an entry": (PATH + "[[models]]\npath = 'sd'\nname = 'b'\nx = 1", ["7: models.1.x: there is no such key"]),
    "table": ("[x.y]\nz = 1", ["1: x: there is no such key"]),
    "missing": (f'\n[[tokens]]\nsha256 = "{HASH}"', ["2: tokens.0.name: must be set"]),
    "inline": ('loras = [{ name = "a", path = "sd", x = 1 }]', ["1: loras.0.x: there is no such key"]),
    "dotted": ("limits.max_edge = 1", ["1: limits.max_edge: must be greater than or equal to 64"]),
    "name": (PATH.replace('"a"', '"a b"'), ["2: models.0.name: String should match pattern"]),
    "syntax": ("listen = 1\nx = = 2", ["2: Invalid value"]),
    "http": ('http = "8080"', ["1: http: '8080' has no port"]),
    "http for all": ('http = "0.0.0.0:8080"', ["1: http: 0.0.0.0 is reached from other machines, and no tokens are"]),
    "origin": ('cors_origins = ["https://a.b/"]', ["1: cors_origins.0: 'https://a.b/' is no origin: https://example"]),
    "collector": ('traces = "localhost:4317"', ["1: traces: 'localhost:4317' is no collector: http://HOST:PORT is"]),
    "database": (
        'job_log = "mysql://a:secret@b"\nstate_dir = "x"',
        ["1: job_log: is the log of kept jobs in place of state_dir: remove one of them; or: it is no database: post"],
    ),
    "slash in a password": ('job_log = "postgresql://a:s/t@b/c"', ["1: job_log: it cannot be read: what is special"]),
    "at in a password": ('job_log = "postgresql://a:s@t@b/c"', ["1: job_log: it cannot be read: what is special"]),
    "percent in a password": ('job_log = "postgresql://a:%zz@b/c"', ["1: job_log: it cannot be read: what is special"]),
    "end": ('\nx = """\nabc', ["3: Unterminated string"]),
    "twice": ("device = 'cpu'\n\ndevice = 'cpu'", ["3: Cannot overwrite a value"]),
    "same name": (PATH + "\n" + PATH, ["6: models.1.name: 'a' as that of models.0; each must have its own"]),
    "same LoRA": (
        "[[loras]]\nname = 'x'\npath = 'one.safetensors'\n" * 2,
        ["5: loras.1.name: 'x' as that of loras.0; each must have its own"],
    ),
    "same token": (
        f"tokens = [\n{{ name = 'a', sha256 = '{HASH}' }},\n{{ name = 'b', sha256 = '{HASH}' }}]",
        ["1: tokens.1.sha256: the same as that of tokens.0"],
    ),
    "default": ("default_model = 'b'\n" + PATH, ["1: default_model: there is no model 'b'; there are: a"]),
    "default of none": ("default_model = 'b'", ["1: default_model: there is no model 'b'; there are: shapes"]),
    "open": (
        "listen = '0.0.0.0:1'",
        ["1: listen: 0.0.0.0 is reached from other machines, and no tokens are configured"],
    ),
    "no hash": ("[[tokens]]\nname = 'a'\nsha256 = 't0ken'", ["3: tokens.0.sha256: String should match pattern"]),
    "no source": (MODEL, ["1: models.0.path: must be set"]),
    "hub": (MODEL + "path = 'hub:n@v1'", ["3: models.0.path: hub:n@v1 is not hub:OWNER/NAME@REVISION or hub:OWNER/N"]),
    "unpinned": (HUB, ["3: models.0.path: hub:o/n is not hub:OWNER/NAME@REVISION"]),
    "branch": (HUB.replace("o/n", "o/n@main"), ["3: models.0.path: a tag or a commit is needed: a branch moves"]),
    "folder of the hub": (
        HUB.replace("o/n", "o/n@v1/x"),
        ["3: models.0.path: a model of the hub is a whole repository"],
    ),
    "file of the hub": (
        HUB.replace("o/n", "o/n@v1/x.safetensors") + "variant = 'fp16'",
        ["1: models.0.config: a single-file checkpoint needs", "4: models.0.variant: a single-file checkpoint has no"],
    ),
    "pickle of the hub": (PATH + "vae = 'hub:o/n@v1/vae.pt'", ["4: models.0.vae: vae.pt: pickle files are refused"]),
    "LoRA of the hub": ("[[loras]]\nname = 'x'\npath = 'hub:o/n'", ["3: loras.0.path: hub:o/n is not hub:OWNER/NAME"]),
    "variant of a file": (
        ONE + "config = 'sd'\nvariant = 'fp16'",
        ["5: models.0.variant: a single-file checkpoint has no variants"],
    ),
    "file": (ONE, ["1: models.0.config: a single-file checkpoint needs, in darkroom.toml, a diffusers folder"]),
    "config of a folder": (PATH + "config = 'sd'", ["4: models.0.config: only a single-file checkpoint"]),
    "config of the hub": (
        HUB.replace("o/n", "o/n@v1") + "config = 'sd'",
        ["4: models.0.config: only a single-file checkpoint"],
    ),
    "config a file": (ONE + "config = 'one.safetensors'", ["4: models.0.config: one.safetensors is a file; a folder"]),
    "missing file": (MODEL + "path = 'x/y'", ["3: models.0.path: there is nothing at x/y"]),
    "pickle": (
        MODEL + "path = 'old.ckpt'",
        ["3: models.0.path: old.ckpt: pickle files are refused because they can run code; convert it to safetensors"],
    ),
    "pickled VAE": (PATH + "vae = 'old.BIN'", ["4: models.0.vae: old.BIN: pickle files are refused"]),
    "no weights": (
        PATH + "tiny_vae = 'notes.txt'",
        ["4: models.0.tiny_vae: notes.txt is neither a folder nor a safete"],
    ),
    "pickled LoRA": ("[[loras]]\nname = 'x'\npath = 'old.ckpt'", ["3: loras.0.path: old.ckpt: pickle files"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_mistake_is_said_with_its_line(folder, name):
    text, expected = WRONG[name]
    found = violations(text)
    assert len(found) == len(expected), found
    for violation, start in zip(found, expected, strict=True):
        assert violation.startswith(f"darkroom.toml:{start}")


def test_all_mistakes_are_said_at_once(folder):
    text = (
        "listen = '0.0.0.0:1'\ndefault_model = 'z'\nmemory_budget = 'x'\n"
        "[[models]]\nname = 'a'\npath = 'x'\nsafety = 'x'\n[[models]]\nname = 'a'\npath = 'hub:o/n'\ncolour = 1\n"
        "[limits]\nmax_edge = 1\n"
    )
    places = [violation.split(": ")[:2] for violation in violations(text, {"dtype": "x"})]
    assert places[0][0] == "dtype"  # of the flags
    assert [(int(place.removeprefix("darkroom.toml:")), keys) for place, keys in places[1:]] == [
        (1, "listen"),
        (2, "default_model"),
        (3, "memory_budget"),
        (6, "models.0.path"),
        (7, "models.0.safety"),
        (9, "models.1.name"),
        (10, "models.1.path"),
        (11, "models.1.colour"),
        (13, "limits.max_edge"),
    ]


def test_a_file_that_is_none(folder):
    Path("latin.toml").write_bytes(b"listen = '\xe4'")
    for name, words in (("latin.toml", "is not UTF-8"), ("none.toml", "cannot be read"), ("sd", "cannot be read")):
        with pytest.raises(ConfigurationError, match=f"{name}: {words}"):
            read_settings({}, Path(name))


DOCUMENT = '''# 1
"listen" = """
[models]
x = 1
"""
limits.max_edge = 64
limits . "max images" = 3

blocked_plugins = [  # 9
    "a",
    ["[[x]]", { inner = [1] }],
]
[ other ]
key = { a = 1, b.c = 2 }
[[models]]
name = "a"
[models.deep]
key = 1
[[models.parts]]
key = 1
[[models.parts]]
key = \'\'\'
[[models]]\'\'\'
[[models]]
name = "b"
[[models.parts]]
'''


def test_lines_of_a_document():
    expected = {
        ("listen",): 2,
        ("limits", "max_edge"): 6,
        ("limits", "max images"): 7,
        ("blocked_plugins",): 9,
        ("blocked_plugins", 1, 1, "inner", 0): 9,
        ("other",): 13,
        ("other", "key", "b", "c"): 14,
        ("models", 0): 15,
        ("models", 0, "name"): 16,
        ("models", 0, "missing"): 15,
        ("models", 0, "deep"): 17,
        ("models", 0, "deep", "key"): 18,
        ("models", 0, "parts", 0): 19,
        ("models", 0, "parts", 1): 21,
        ("models", 0, "parts", 1, "key"): 22,
        ("models", 1, "name"): 25,
        ("models", 1, "parts", 0): 26,
        ("missing",): None,
    }
    tomllib.loads(DOCUMENT)
    assert {location: line_of(location, DOCUMENT) for location in expected} == expected


def test_flags_go_before_the_environment_and_that_before_the_file(folder, monkeypatch):
    file = "device = 'file'\ndtype = 'float32'\nencoder_threads = 3\n[limits]\nmax_edge = 100\nmax_images = 3\n" + PATH
    monkeypatch.setenv("DARKROOM_DEVICE", "environment")
    monkeypatch.setenv("DARKROOM_DTYPE", "bfloat16")
    monkeypatch.setenv("DARKROOM_LIMITS__MAX_EDGE", "200")
    monkeypatch.setenv("DARKROOM_LORAS", json.dumps([{"name": "x", "path": "one.safetensors"}]))
    monkeypatch.setenv("DARKROOM_TOKEN", "a client's")
    settings = read(file, {"device": "flag", "limits": {"max_batch_rows": 4}})
    assert (settings.device, settings.dtype, settings.encoder_threads, settings.reader_threads) == (
        *("flag", "bfloat16", 3),
        2,
    )
    limits = settings.limits
    assert (limits.max_batch_rows, limits.max_edge, limits.max_images, limits.max_queued_jobs) == (4, 200, 3, 1000)
    assert [model.name for model in settings.models] == ["a"]
    assert [lora.path for lora in settings.loras] == [Path("one.safetensors")]
    flag = {"models": [{"name": "b", "path": "sd"}]}
    assert [model.name for model in read(file, flag).models] == ["b"]


def test_mistakes_of_flags_and_the_environment_have_no_line(folder, monkeypatch):
    monkeypatch.setenv("DARKROOM_LIMITS__MAX_EDGE", "1")
    monkeypatch.setenv("DARKROOM_LORAS", '[{"name": "x"}]')
    assert violations("limits.max_edge = 64\nmodels = []", {"models": [{"name": "b", "path": "x"}]}) == [
        "models.0.path: there is nothing at x",
        "environment: loras.0.path: must be set",
        "environment: limits.max_edge: must be greater than or equal to 64",
    ]
    monkeypatch.setenv("DARKROOM_LORAS", "x")
    assert violations("") == ["environment: loras: must be JSON"]


def test_relative_paths_start_at_the_file(folder):
    (folder / "etc").mkdir()
    file = folder / "etc" / "darkroom.toml"
    file.write_text(
        "[[models]]\nname = 'a'\npath = '../one.safetensors'\nconfig = '../sd'\nvae = '../sd'\ntiny_vae = '../sd'\n"
        "[[loras]]\nname = 'a'\npath = '../one.safetensors'\n"
    )
    settings = read_settings({"embeddings": [{"name": "a", "path": "one.safetensors"}]}, file)
    model = settings.models[0]
    found = [model.path, model.config, model.vae, model.tiny_vae, settings.loras[0].path]
    assert [str(path.resolve().relative_to(folder)) for path in found] == [
        *("one.safetensors", "sd", "sd", "sd"),
        "one.safetensors",
    ]
    assert settings.embeddings[0].path == Path("one.safetensors")
    assert paths_of(ModelSettings, AssetSettings) == set(PATHS)


def paths_of(*kinds):
    """The keys whose values are paths."""
    return {
        name
        for kind in kinds
        for name, schema in kind.model_json_schema()["properties"].items()
        if '"format": "path"' in json.dumps(schema)
    }


def test_sizes_have_units(folder):
    text = "memory_budget = '20 GiB'\npark_budget = 5\n[limits]\nmax_request_bytes = '1MB'"
    settings = read(text)
    assert (settings.memory_budget, settings.park_budget, settings.limits.max_request_bytes) == (20 * 2**30, 5, 10**6)


@pytest.mark.parametrize("spelled", ["tiny-vae", "tiny_vae", "TINY_VAE"])
def test_preview_modes_are_read_in_any_spelling(folder, spelled):
    (folder / "darkroom.toml").write_text(f"{PATH}default_preview_mode = '{spelled}'\n")
    assert read_settings({}, folder / "darkroom.toml").models[0].default_preview_mode == "tiny-vae"


# ----------------------------------------------------------------------------------------------------------- commands


def test_what_a_model_flag_names(folder):
    assert model_flag("o/n.x@v1") == {"name": "n.x", "path": Path("hub:o/n.x@v1")}
    assert model_flag("xl=o/n@v2") == {"name": "xl", "path": Path("hub:o/n@v2")}
    assert model_flag("xl=hub:o/n@v2") == {"name": "xl", "path": Path("hub:o/n@v2")}
    assert lora_flag("hub:o/n@v2/a.safetensors") == {"name": "a", "path": Path("hub:o/n@v2/a.safetensors")}
    (folder / "o").mkdir()
    (folder / "o" / "n").mkdir()
    assert model_flag("o/n") == {"name": "n", "path": Path("o/n")}
    assert model_flag("xl=o/n") == {"name": "xl", "path": Path("o/n")}


def test_a_token_is_made_with_its_hash(folder):
    result = CliRunner().invoke(app, ["token", "--role", "operator", "--name", "me"])
    assert result.exit_code == 0, result.output
    made, _, lines = result.stdout.partition("\n")
    (token,) = read(lines).tokens
    assert (token.name, token.role, token.sha256) == ("me", "operator", sha256(made.encode()).hexdigest())
    assert len(made) == 43
    assert CliRunner().invoke(app, ["token", "--name", "a b"]).exit_code == 2


def test_check_says_what_is_wrong(folder, monkeypatch):
    Path("other.toml").write_text(HUB)
    monkeypatch.setenv("DARKROOM_CONFIG", "other.toml")
    result = CliRunner().invoke(app, ["check"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: other.toml:3: models.0.path: hub:o/n is not")
    Path("darkroom.toml").write_text("x = 1")
    assert CliRunner().invoke(app, ["serve", "--config", "darkroom.toml"]).stderr == (
        "error: darkroom.toml:1: x: there is no such key\n"
    )
    Path("none.toml").write_text(PATH)
    result = CliRunner().invoke(app, ["check", "--config", "none.toml"])
    assert (result.exit_code, result.stderr) == (1, "error: model 'a': sd has no readable model_index.json\n")
    monkeypatch.delenv("DARKROOM_CONFIG")
    assert CliRunner().invoke(app, ["serve"]).stderr == "error: darkroom.toml:1: x: there is no such key\n"


@pytest.mark.parametrize(("settings", "most"), [({}, 32), ({"limits": {"max_batch_rows": 8}}, 8)])
def test_a_bucket_of_more_rows_than_a_batch_is_refused(settings: dict[str, object], most: int) -> None:
    with pytest.raises(ValueError, match=rf"deterministic_rows\s+{most + 1} are more than .*max_batch_rows, {most}"):
        Settings(deterministic_rows=most + 1, **settings)  # type: ignore[arg-type]
    assert Settings(deterministic_rows=most, **settings).deterministic_rows == most  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"row_buckets.1\s+{most + 1} are more than .*max_batch_rows, {most}"):
        Settings(row_buckets=[1, most + 1], **settings)  # type: ignore[arg-type]
