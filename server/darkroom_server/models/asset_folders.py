"""Watched folders: their files are offered while they are there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from darkroom_server.models.assets import files_in
from darkroom_server.models.holdings import AssetHolding

if TYPE_CHECKING:
    from darkroom_plugins.contract import AssetKind
    from darkroom_server.models.assets import Asset, File
    from darkroom_server.models.catalog import Catalog
    from darkroom_server.models.residency import Key, ResidencyManager

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0

T = TypeVar("T")
Place: TypeAlias = "tuple[AssetKind, str]"  # kind and name
Files: TypeAlias = "dict[Place, File]"


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a file since the last look. `detail`: why it waits or is refused, or cannot be used."""

    kind: AssetKind
    name: str
    what: Literal["added", "removed", "waiting", "refused"]
    detail: str = ""


class AssetFolders:
    """Takes up new and changed files of the folders, and lets go of those that are gone. For the event loop.

    Jobs that use a file go on with what they have loaded of it. Its name is free for another one when they have ended,
    so that jobs which share a batch mean the same by a name.
    """

    def __init__(self, catalog: Catalog, residency: ResidencyManager, on_gone: Callable[[], None]) -> None:
        """`on_gone` is called when nothing uses a file any more that has gone."""
        self._models, self._assets = catalog.models, catalog.assets
        self._residency, self._on_gone = residency, on_gone
        self._thread = ThreadPoolExecutor(1, "folders")
        self._lock = asyncio.Lock()
        self._leaving: dict[Place, asyncio.Task[None]] = {}
        self._seen: Files = {}  # new or changed files, at the last look
        self._unreadable: set[AssetKind] = set()
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look from time to time, if there are folders."""
        if self._assets.folders:
            self._watching = asyncio.create_task(self._watch())

    def close(self) -> None:
        """Stop looking."""
        for task in (self._watching, *self._leaving.values()):
            if task is not None:
                task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def look(self, *, patient: bool = False) -> list[Change]:
        """Compare the folders with what is offered, and return what has changed. `patient`: files that somebody may
        still be writing, as they are not what they were at the last look, wait for the next."""
        async with self._lock:
            found = await self._run(self._files)
            offered = {asset.key: asset for asset in self._offered()}
            changes = []
            for place, asset in offered.items():
                if place not in found and place[0] not in self._unreadable:
                    await self._withdraw(asset)
                    changes.append(Change(*place, "removed"))
            new = {place: file for place, file in found.items() if place not in offered or offered[place].file != file}
            for place, file in new.items():
                if place in offered:
                    await self._withdraw(offered[place])
                changes.append(await self._take(place, file, patient))
            self._seen = new
        for change in changes:
            if change.what in ("added", "removed") and not change.detail:  # else it is said already
                log.info("%s %s %s", change.kind, change.name, change.what)
        return changes

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look(patient=True)
            except Exception:
                log.exception("the folders of assets cannot be looked at")

    def _offered(self) -> Iterator[Asset]:
        """What is offered of the folders."""
        for kind in self._assets.folders:
            yield from (asset for asset in self._assets.entries[kind].values() if asset.file is not None)

    def _files(self) -> Files:
        """The files in all folders that can be read."""
        found: Files = {}
        for kind, folder in self._assets.folders.items():
            try:
                found |= {(kind, name): file for name, file in files_in(folder).items()}
            except OSError as error:  # a share that will be back: what it had stays offered
                if kind not in self._unreadable:
                    log.warning("%s_folder: %s cannot be read: %s", kind, folder, error.strerror)
                self._unreadable.add(kind)
            else:
                self._unreadable.discard(kind)
        return found

    async def _take(self, place: Place, file: File, patient: bool) -> Change:
        if place in self._leaving:
            return Change(*place, "waiting", "jobs still use the file that was here")
        if patient and self._seen.get(place) != file:
            return Change(*place, "waiting", "it may still be being written")
        if why := self._assets.refusal(*place, file):
            return Change(*place, "refused", why)
        asset = await self._run(lambda: self._assets.open_file(*place, file))
        for holding in self._holdings(asset):
            self._residency.add(holding)
        self._assets.put(asset)
        return Change(*place, "added", asset.problem)

    def _holdings(self, asset: Asset) -> list[AssetHolding]:
        return [AssetHolding(asset, self._models[name]) for name in asset.fits if asset.key[0] != "embedding"]

    async def _withdraw(self, asset: Asset) -> None:
        """Offer an asset no more. Jobs that use it go on."""
        self._assets.remove(asset)
        keys = [holding.key for holding in self._holdings(asset)]
        leaving = self._leaving[asset.key] = asyncio.create_task(self._leave(asset, keys))
        if not any(self._residency.is_wanted(key) for key in keys):
            await leaving

    async def _leave(self, asset: Asset, keys: list[Key]) -> None:
        for key in keys:
            await self._residency.remove(key)
        self._on_gone()
        del self._leaving[asset.key]

    async def _run(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)
