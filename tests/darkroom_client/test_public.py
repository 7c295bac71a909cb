"""The package's surface."""

import subprocess
import sys
import types

import darkroom_client
from darkroom_client import _aio, _stream, _sync, errors, events, options, recipes


def test_all_is_everything_public():
    public = {
        name
        for name, value in ((name, getattr(darkroom_client, name)) for name in dir(darkroom_client))
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert set(darkroom_client.__all__) == public
    assert darkroom_client.__all__ == sorted(darkroom_client.__all__)


def test_all_public_classes_of_the_modules_are_there():
    for module in (_aio, _stream, _sync, errors, events, options, recipes):
        for name, value in vars(module).items():
            if isinstance(value, type) and value.__module__ == module.__name__ and not name.startswith("_"):
                assert name in darkroom_client.__all__, name


def test_imports_are_light():
    code = """if True:
        import sys, darkroom_client.cli
        loaded = lambda *names: [name for name in names if name in sys.modules]
        print(loaded("asyncio", "grpc", "google.protobuf", "PIL", "rich.console"))
        darkroom_client.Client, darkroom_client.Image, darkroom_client.AsyncClient
        print(loaded("torch", "darkroom_server", "darkroom_plugins", "numpy", "PIL"))
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n") == ["[]", "[]", ""]


def test_other_names_are_not_there():
    assert not hasattr(darkroom_client, "other")
