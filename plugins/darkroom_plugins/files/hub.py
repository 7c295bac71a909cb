"""Downloads from the Hugging Face hub. Of a model the configuration is fetched when it is opened, weights when it is
loaded; assets are fetched whole. Files in the local cache are used without network access."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Self

from huggingface_hub import DryRunFileInfo, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from darkroom_plugins.files.model_files import LIBRARIES, ModelFiles, Report, read_json
from darkroom_plugins.files.safetensors_files import choose, shards

if TYPE_CHECKING:
    from darkroom_plugins.files.hub_paths import HubPlace

CONFIGURATION = ["*.json", "*.txt", "*.model"]  # and tokenizers


@dataclass(frozen=True, kw_only=True)
class HubFiles(ModelFiles):
    """A model in a repository of the hub. `folder` is its snapshot in the local cache."""

    repository: str

    @classmethod
    def find(
        cls, repository: str, revision: str | None, variant: str | None = None, parts: Mapping[str, Path] | None = None
    ) -> Self:
        """The model of this repository, "owner/name", at a branch, tag or commit (None: its main branch), with its
        configuration fetched or from the cache.

        :raises OSError, ValueError: it does not exist, or cannot be reached
        """
        folder = _snapshot(repository, revision, _complete)
        return cls(folder, variant, parts=parts or {}, repository=repository)

    def fetched(self, parts: Iterable[str]) -> bool:
        try:
            return all(self._sources(part) for part in parts)
        except OSError:
            return False

    def fetch_bytes(self, parts: Iterable[str]) -> int:
        return sum(each.file_size or 0 for each in self._missing(parts))

    def fetch(self, parts: Iterable[str], report: Report | None = None) -> None:
        for file in self._missing(parts):
            with _hub_errors(self.repository, self._commit):
                bar = _progress_bar(file.filename, report)
                hf_hub_download(self.repository, file.filename, revision=self._commit, tqdm_class=bar)

    @property
    def _commit(self) -> str:
        return self.folder.name

    def _missing(self, parts: Iterable[str]) -> list[DryRunFileInfo]:
        parts = [part for part in parts if not self.fetched([part])]
        return [each for each in self._listed(parts) if each.will_download]

    def _listed(self, parts: list[str]) -> list[DryRunFileInfo]:
        """The hub's entries of these parts' weights files."""
        if not parts:
            return []
        with _hub_errors(self.repository, self._commit):
            listed = snapshot_download(
                self.repository,
                revision=self._commit,
                allow_patterns=[_in_repository(part, "*") for part in parts],
                tqdm_class=_Hidden,
                dry_run=True,
            )
        known = {each.filename: each for each in listed}
        return [known[name] for part in parts for name in self._weights_files(part, known)]

    def _weights_files(self, part: str, known: Iterable[str]) -> list[str]:
        start = _in_repository(part, "")
        names = [name.removeprefix(start) for name in known if name.startswith(start)]
        try:
            chosen = choose(names, self.variant)
        except OSError as error:
            raise OSError(f"hub: {part} of {self.repository} has {error}") from None
        found = shards(self.folder / part / chosen) if chosen.endswith(".json") else [chosen]
        if lacking := set(found) - set(names):
            raise OSError(f"hub: {part} of {self.repository} lacks {', '.join(sorted(lacking))}")
        return [_in_repository(part, name) for name in found]


def _in_repository(part: str, name: str) -> str:
    """A part's file by its path in the repository; the part "" is the root."""
    return f"{part}/{name}" if part else name


def commit_of(repository: str, revision: str | None) -> str:
    """The commit at which a branch or tag is now (None: the main branch); without a network, when it was last asked.

    :raises OSError, ValueError: it does not exist, or cannot be reached
    """
    with _hub_errors(repository, revision):
        folder = snapshot_download(repository, revision=revision, allow_patterns=CONFIGURATION, tqdm_class=_Hidden)
    return Path(folder).name


def fetched(place: HubPlace) -> Path:
    """The local path of a weights file or a network's folder of the hub, fetched; weights of PEFT with their
    configuration beside them.

    :raises OSError: it cannot be fetched
    """
    repository, revision, inner = place
    if place.is_file:
        with _hub_errors(repository, revision):
            _fetch_beside(repository, revision, PurePosixPath(inner))
            return _file(repository, revision, inner)
    folder = _snapshot(repository, revision, lambda folder: (folder / inner / "config.json").exists())
    HubFiles(folder, repository=repository).fetch([inner])
    return folder / inner


def fetched_config(place: HubPlace) -> Path:
    """The local path of a model's folder of the hub, with its configuration only."""
    return _snapshot(place.repository, place.revision, lambda folder: _complete(folder / place.inner)) / place.inner


def _fetch_beside(repository: str, revision: str, weights: PurePosixPath) -> None:
    """Fetch the configuration of PEFT's weights, which has their scale, unless the repository has none."""
    if weights.name != "adapter_model.safetensors":
        return
    config = str(weights.with_name("adapter_config.json"))
    if try_to_load_from_cache(repository, config, revision=revision) is None:
        with suppress(RemoteEntryNotFoundError):
            hf_hub_download(repository, config, revision=revision, tqdm_class=_Hidden)


def _file(repository: str, revision: str, name: str) -> Path:
    download = partial(hf_hub_download, repository, name, revision=revision, tqdm_class=_progress_bar(name))
    try:
        return Path(download(local_files_only=True))
    except LocalEntryNotFoundError:
        return Path(download())


def _snapshot(repository: str, revision: str | None, complete: Callable[[Path], bool]) -> Path:
    """The repository's snapshot folder in the cache; its configuration is fetched unless `complete`."""
    download = partial(snapshot_download, repository, revision=revision, allow_patterns=CONFIGURATION)
    with _hub_errors(repository, revision):
        try:
            found = Path(download(local_files_only=True))
        except LocalEntryNotFoundError:
            found = None
        if found is None or not complete(found):
            found = Path(download(tqdm_class=_Hidden))
    if not complete(found):  # without network access an incomplete snapshot is returned
        raise OSError(f"hub: {repository} lacks the configuration of a model or of a part of it")
    return found


def _complete(folder: Path) -> bool:
    """Whether each part has a configuration; not so after an interrupted or a partial download."""
    index = folder / "model_index.json"
    if not index.exists():
        return False
    parts = [name for name, kind in read_json(index).items() if isinstance(kind, list) and kind[0] in LIBRARIES]
    return all(any((folder / part).glob("*config.json")) for part in parts)


class _Hidden(tqdm):
    """The progress bar of what takes a moment: the hub's own are three for each call, and stay."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]


def _progress_bar(name: str, report: Report | None = None) -> type[tqdm]:
    """A progress bar class of a weights file, shown on terminals, that also reports bytes."""

    class Reporting(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "desc": name, "disable": None})  # type: ignore[no-untyped-call]
            if report and (initial := kwargs.get("initial")):  # bytes of a resumed download
                report(initial)

        def update(self, n: float | None = 1) -> bool | None:
            if report and n:
                report(int(n))
            return super().update(n)  # type: ignore[no-any-return]

    return Reporting


@contextmanager
def _hub_errors(repository: str, revision: str | None) -> Iterator[None]:
    """Context manager: the hub's exceptions become OSError and ValueError."""
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"hub: {repository!r} is not the name of a repository, owner/name") from error
    except GatedRepoError as error:
        raise OSError(f"hub: {repository} asks for its terms to be accepted, and for a token (HF_TOKEN)") from error
    except RepositoryNotFoundError as error:
        raise OSError(f"hub: there is no repository {repository}, or it is private and HF_TOKEN is not set") from error
    except RevisionNotFoundError as error:
        raise OSError(f"revision: {repository} has no {revision!r}") from error
    except (EntryNotFoundError, OSError) as error:
        where = f"{repository} at {revision or 'main'}"
        raise OSError(f"hub: {where} is not in the cache, and was not fetched: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error.__cause__ or error).strip().splitlines()), type(error).__name__)
