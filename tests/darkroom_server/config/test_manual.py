"""server/configuration.md has every key of the settings, with its values and its default."""

import re
import tomllib
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import TypeAdapter

from darkroom_server.config.presets import PresetSettings
from darkroom_server.config.reader import read_settings
from darkroom_server.config.settings import (
    AssetSettings,
    ClusterSettings,
    Limits,
    ModelSettings,
    Settings,
    TlsSettings,
    TokenSettings,
)

MANUAL = (Path(__file__).parents[3] / "server/configuration.md").read_text()


def test_the_example_is_valid(tmp_path):
    (example,) = re.findall(r"```toml\n(.*?)```", MANUAL, re.DOTALL)
    for path in re.findall(r'^(?:path|config|vae|tiny_vae) = "(.*)"$', example, re.MULTILINE):
        place = tmp_path / path
        place.parent.mkdir(exist_ok=True)
        place.touch() if place.suffix else place.mkdir(exist_ok=True)
    file = tmp_path / "darkroom.toml"
    file.write_text(example)
    settings = read_settings({}, file)
    assert [model.name for model in settings.models] == ["sd15", "xl", "ink"]
    assert settings.memory_budget == 20 * 2**30


SECTIONS = {
    "The server": Settings,
    "`[[models]]`": ModelSettings,
    "`[models.presets.NAME]`": PresetSettings,
    "`[[controlnets]]`, `[[loras]]`, `[[embeddings]]`": AssetSettings,
    "`[limits]`": Limits,
    "`[[tokens]]`": TokenSettings,
    "`[tls]`": TlsSettings,
    "`[cluster]`": ClusterSettings,
}


def column(title, number):
    """A column of a section's table, by key."""
    section = MANUAL.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = [re.split(r"(?<!\\)\|", line) for line in section.splitlines() if line.startswith("| `")]
    return {key: row[number].strip() for row in rows for key in re.findall(r"`(\w+)`", row[1])}


def bounds(schema):
    """The choices and limits of a value: names of JSON schema, and what they say."""
    for name, value in schema.items():
        if name in ("enum", "const", "minimum", "maximum"):
            yield name, value
        elif name in ("anyOf", "items"):
            for each in value if isinstance(value, list) else [value]:
                yield from bounds(each)


@pytest.mark.parametrize("title", SECTIONS)
def test_the_manual_has_the_values_of_every_key(title):
    written = column(title, 2)
    for name, schema in SECTIONS[title].model_json_schema()["properties"].items():
        choices, limits = set(), set()
        for kind, value in bounds(schema):
            if kind in ("enum", "const"):
                choices |= set(value) if isinstance(value, list) else {value}
            else:
                limits |= {str(value)} - {"0"}  # of sizes, and of presets, which say more than their schema
        if written[name] != "as above":
            assert not choices or set(re.findall(r'"(.+?)"', written[name])) == choices, name
            assert limits <= set(re.findall(r"\d+", written[name])), name


@pytest.mark.parametrize("title", SECTIONS)
def test_the_manual_has_every_key_with_its_default(title):
    written = column(title, 3)
    fields = SECTIONS[title].model_fields
    assert set(written) == set(fields)
    for name, default in written.items():
        field = fields[name]
        if not default:
            continue  # a table of its own
        if default == "—":
            assert field.is_required() or field.default is None, name
        else:
            value = tomllib.loads(f"x = {default.strip('`')}")["x"]
            kind = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            assert TypeAdapter(kind).validate_python(value) == field.default, name
