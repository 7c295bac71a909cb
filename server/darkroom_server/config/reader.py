"""Reads the settings. Precedence, highest first: flags, environment, darkroom.toml, defaults."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, PydanticBaseSettingsSource, SettingsError

from darkroom_plugins.files.hub_paths import PREFIX
from darkroom_server.config.consistency import Location
from darkroom_server.config.settings import Settings
from darkroom_server.config.toml_lines import line_of

FILE = "darkroom.toml"
PATHS = ("path", "config", "vae", "tiny_vae")  # keys with paths, in arrays of tables
FOLDERS = ("state_dir", "lora_folder", "embedding_folder")  # at the top
TLS_PATHS = ("certificate", "key", "client_ca")  # in [tls]
SIZE = 'a size is needed, as "20 GiB", or a number of bytes'
WORDS = {  # by pydantic's error type
    "extra_forbidden": "there is no such key",
    "missing": "must be set",
    "byte_size": SIZE,
    "byte_size_unit": SIZE,
}


class ConfigurationError(Exception):
    """Invalid settings: `violations` has one line each, with its location."""

    def __init__(self, violations: list[str]) -> None:
        self.violations = violations
        super().__init__("\n".join(violations))


class _File(PydanticBaseSettingsSource):
    """The file as a settings source, with case-sensitive keys; pydantic-settings' own TOML source ignores case."""

    def __init__(self, settings_cls: type[Settings], table: dict[str, Any]) -> None:
        super().__init__(settings_cls)
        self._table = table

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self._table.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._table


def default_file() -> Path | None:
    """The default file: darkroom.toml in the working directory, if it exists."""
    return Path(FILE) if Path(FILE).exists() else None


def read_settings(flags: Mapping[str, Any], file: Path | None = None) -> Settings:
    """The settings from flags, environment and file. Tables are merged across sources; a list comes whole from the
    source of highest precedence.

    :raises ConfigurationError: invalid settings, or an unreadable file
    """
    _, table = document(file)

    class Read(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: Any,
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, _File(settings_cls, table)

    try:
        return Read(**flags)
    except SettingsError as error:
        name = re.search(r'field "(\w+)"', str(error))
        raise ConfigurationError(
            [f"environment: {name[1]}: must be JSON" if name else f"environment: {error}"]
        ) from error
    except ValidationError as error:
        found = [(each["loc"], _words(each["type"], each["msg"])) for each in error.errors()]
        raise ConfigurationError(located(found, flags, file)) from error


def _words(kind: str, message: str) -> str:
    """What pydantic finds wrong, in the words of the other checks."""
    return WORDS.get(kind, message.replace("Input should be", "must be", 1))


def located(found: Iterable[tuple[Location, str]], flags: Mapping[str, Any], file: Path | None = None) -> list[str]:
    """One line per invalid value of what was read from flags, environment and file: source and line, keys, messages;
    sorted by source, then line.

    :raises ConfigurationError: the file cannot be read any more
    """
    text, table = document(file)
    environment = EnvSettingsSource(Settings)()
    return _violations(found, [("", flags), ("environment: ", environment), (f"{file}:", table)], text)


def document(file: Path | None) -> tuple[str, dict[str, Any]]:
    """The file's text, and what it says; nothing without a file.

    :raises ConfigurationError: it cannot be read, or is no TOML
    """
    if file is None:
        return "", {}
    text = _text(file)
    return text, _table(text, file)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError([f"{file}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError([f"{file}: is not UTF-8, as TOML is"]) from error


def _table(text: str, file: Path) -> dict[str, Any]:
    """The parsed file; its relative paths are resolved against its folder."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message, _, place = str(error).partition(" (at ")
        found = re.search(r"line (\d+)", place)
        line = found[1] if found else len(text.splitlines())  # at the end of the document
        raise ConfigurationError([f"{file}:{line}: {message}"]) from error
    arrays = [entries for entries in table.values() if isinstance(entries, list)]
    for entry in (entry for entries in arrays for entry in entries if isinstance(entry, dict)):
        entry |= {key: _resolved(file, entry[key]) for key in PATHS if isinstance(entry.get(key), str)}
    table |= {key: _resolved(file, table[key]) for key in FOLDERS if isinstance(table.get(key), str)}
    if isinstance(tls := table.get("tls"), dict):
        tls |= {key: _resolved(file, tls[key]) for key in TLS_PATHS if isinstance(tls.get(key), str)}
    return table


def _resolved(file: Path, path: str) -> Path:
    return Path(path) if path.startswith(PREFIX) else file.parent / Path(path).expanduser()


def _violations(invalid: Iterable[tuple[Location, str]], sources: list[tuple[str, Any]], text: str) -> list[str]:
    """See `located`; the last source is the file with this text."""
    found: dict[str, tuple[int, int, list[str]]] = {}
    for location, message in invalid:
        rank = next(rank for rank, (_, source) in enumerate(sources) if _gives(source, location))
        start, source = sources[rank]
        keys = _keys(source, location)
        line = line_of(keys, text) if rank == len(sources) - 1 else None
        place = f"{start}{line}: " if line else start
        found.setdefault(place + ".".join(map(str, keys)), (rank, line or 0, []))[-1].append(message)
    in_order = sorted(found.items(), key=lambda item: item[1][:2])
    return [f"{place}: {'; or: '.join(messages)}" for place, (_, _, messages) in in_order]


def _gives(source: Any, location: Location) -> bool:
    """Whether a value comes from this source; so does all of a list, as lists are not merged."""
    for key in location:
        if not isinstance(source, Mapping):
            return True
        if key not in source:
            return False
        source = source[key]
    return True


def _keys(source: Any, location: Location) -> Location:
    """A location without the union tags that pydantic appends."""
    for depth, key in enumerate(location):
        if not isinstance(source, dict | list):
            return location[:depth]
        source = source.get(key) if isinstance(source, dict) else source[int(key)]
    return location
