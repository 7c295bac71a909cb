"""A PostgreSQL server for tests, of this machine's programs."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

USER = "darkroom"
INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # where Debian has it


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty database, on a unix socket in a folder of its own."""
    found = shutil.which("initdb") or next((str(each / "initdb") for each in INSTALLED), None)
    if found is None:
        pytest.skip("no PostgreSQL: initdb is neither on the PATH nor in /usr/lib/postgresql")
    programs = Path(found).resolve().parent
    folder = Path(tempfile.mkdtemp(prefix="darkroom-postgres-"))  # short, as paths of sockets must be
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # as which PostgreSQL does not run
        user = {"user": "nobody", "group": "nogroup"}
        shutil.chown(folder, **user)
    data = folder / "data"
    making = [
        programs / "initdb",
        "-D",
        data,
        "-U",
        USER,
        "--auth",
        "trust",
        "--no-sync",
        "-E",
        "UTF8",
        "--locale",
        "C",
    ]
    subprocess.run(making, check=True, stdout=subprocess.DEVNULL, cwd=folder, **user)
    options = ("-c", "listen_addresses=", "-c", "fsync=off", "-c", f"unix_socket_directories={folder}")
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([programs / "postgres", "-D", data, *options], stderr=log, cwd=folder, **user)
    url = f"postgresql://{USER}@/postgres?host={folder}"
    try:
        for attempt in range(200):
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(url).close()
                break
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.05 if attempt < 199 else 0)
        yield url
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder)


def empty(url: str) -> None:
    """Make the database empty again, and end what is connected to it."""
    with psycopg.connect(url, autocommit=True) as connection:
        disconnect(connection)
        connection.execute("DROP SCHEMA IF EXISTS darkroom CASCADE")


def disconnect(connection: psycopg.Connection[Any]) -> None:
    """End all other connections, as a restart of the database does."""
    others = "datname = current_database() AND pid <> pg_backend_pid()"
    connection.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
