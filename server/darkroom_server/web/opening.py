"""HTTP's door where it is wanted, and its packages are there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from darkroom_server.api.listening import CannotListen

if TYPE_CHECKING:
    from darkroom_server.api.in_process import InProcessCalls
    from darkroom_server.config.settings import Settings
    from darkroom_server.web.door import HttpDoor


def http_door(settings: Settings, calls: InProcessCalls) -> HttpDoor | None:
    """HTTP's door, not open yet, if there shall be one.

    :raises CannotListen: its packages are not installed
    """
    if settings.http is None:
        return None
    try:
        from darkroom_server.web.door import HttpDoor
    except ModuleNotFoundError as error:
        install = "pip install 'darkroom-diffusion[web]'"
        raise CannotListen(f"http wants the packages of the extra `web`, {error.name} for one: {install}") from error
    return HttpDoor(settings, calls)
