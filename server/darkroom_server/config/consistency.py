"""Cross-field validation of settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from darkroom_plugins.errors import no_such
from darkroom_server.config.address import TcpAddress, parse_address

Location: TypeAlias = tuple[str | int, ...]  # path of a value: keys of tables, indices of arrays

NAMED = ("models", "controlnets", "loras", "embeddings", "tokens")
MAX_BATCH_ROWS = 32  # the default
UNIQUE = (*((kind, "name") for kind in NAMED), ("tokens", "sha256"))


def inconsistencies(given: Mapping[str, Any], demo: str) -> Iterator[tuple[Location, str]]:
    """Violations between raw settings, which may also be invalid individually: (location, message).

    :param demo: the name of the model served if none is configured
    """
    for kind, key in UNIQUE:
        values = _each(given, kind, key)
        for index, value in enumerate(values):
            if value is not None and value in values[:index]:
                same = "the same" if key == "sha256" else repr(value)
                yield (kind, index, key), f"{same} as that of {kind}.{values.index(value)}; each must have its own"
    default, names = given.get("default_model"), _each(given, "models", "name") or [demo]
    if default is not None and default not in names:
        yield ("default_model",), no_such("model", str(default), {str(name) for name in names if name})
    most = _most_rows(given.get("limits"))
    for where, rows in _row_counts(given):
        if isinstance(rows, int) and isinstance(most, int) and rows > most:
            yield where, f"{rows} are more than limits.max_batch_rows, {most}"
    for index, allowed in enumerate(_each(given, "tokens", "models")):
        for place, name in enumerate(allowed if isinstance(allowed, list) else ()):
            if name not in names:
                yield ("tokens", index, "models", place), no_such("model", str(name), {str(n) for n in names if n})
    if given.get("job_log") is not None and given.get("state_dir") is not None:
        yield ("job_log",), "is the log of kept jobs in place of state_dir: remove one of them"
    tls = given.get("tls")
    if tls and _is_socket_file(given.get("listen")):
        yield ("tls",), "a unix socket is not encrypted: remove [tls], or listen on HOST:PORT"
    client_ca = tls.get("client_ca") if isinstance(tls, Mapping) else getattr(tls, "client_ca", None)
    for key in ("listen", "http"):
        exposed = _exposed_host(given.get(key))
        if exposed is not None and not given.get("tokens") and not client_ca:
            hint = "make a token by `darkroom token`, set tls.client_ca, or listen on 127.0.0.1"
            yield (key,), f"{exposed} is reached from other machines, and no tokens are configured: {hint}"


def _row_counts(given: Mapping[str, Any]) -> Iterator[tuple[Location, Any]]:
    yield ("deterministic_rows",), given.get("deterministic_rows")
    buckets = given.get("row_buckets")
    for index, rows in enumerate(buckets if isinstance(buckets, list) else ()):
        yield ("row_buckets", index), rows


def _most_rows(limits: Any) -> Any:
    """limits.max_batch_rows as given, or its default."""
    given = limits.get("max_batch_rows") if isinstance(limits, Mapping) else getattr(limits, "max_batch_rows", None)
    return MAX_BATCH_ROWS if given is None else given


def _each(given: Mapping[str, Any], kind: str, key: str) -> list[Any]:
    """The key's values in an array of tables."""
    entries = given.get(kind)
    entries = entries if isinstance(entries, list) else []
    return [each.get(key) if isinstance(each, Mapping) else getattr(each, key, None) for each in entries]


def _is_socket_file(listen: Any) -> bool:
    return isinstance(listen, str) and listen.startswith(("unix:", "unix-abstract:"))


def _exposed_host(listen: Any) -> str | None:
    """The host of an address that other machines reach; None of another, and of text that is no address."""
    try:
        address = parse_address(listen)
    except (TypeError, AttributeError, ValueError):
        return None
    return None if address.is_loopback or not isinstance(address, TcpAddress) else address.host
