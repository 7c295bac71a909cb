"""The planner's own parts, without models."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from darkroom_plugins import AssetInfo
from darkroom_server.errors import LoadFailed
from darkroom_server.jobs.planner import EmbeddingCache, PlanningAssets, needs
from darkroom_server.models.assets import Asset

MODEL: Any = SimpleNamespace(name="model", family=None)


class Loads:
    """An asset's plugin, which counts what it loads."""

    asset_kind = "embedding"

    def __init__(self) -> None:
        self.loaded: list[str] = []

    def load_asset(self, path: Path, model: Any) -> Any:
        self.loaded.append(path.name)
        if path.name == "broken":
            raise RuntimeError("not what it seems")
        return object()


def embedding(user: Any, name: str, size: int = 1) -> Asset:
    settings: Any = SimpleNamespace(name=name)
    return Asset(settings, Path(name), user, AssetInfo(weight_bytes=size), {}, ("model",))


def test_embeddings_are_read_once() -> None:
    user, cache = Loads(), EmbeddingCache()
    asset = embedding(user, "cat")
    assert cache.get(asset, MODEL) is cache.get(asset, MODEL)
    assert user.loaded == ["cat"]


def test_embeddings_read_longest_ago_are_forgotten() -> None:
    user, cache = Loads(), EmbeddingCache(capacity=2)
    assets = {name: embedding(user, name) for name in "abc"}
    for name in ("a", "b", "a", "c", "a", "b"):
        cache.get(assets[name], MODEL)
    assert user.loaded == ["a", "b", "c", "b"]


def test_one_larger_than_the_cache_is_kept_while_it_is_the_only_one() -> None:
    user, cache = Loads(), EmbeddingCache(capacity=2)
    large = embedding(user, "large", size=9)
    for _ in range(2):
        cache.get(large, MODEL)
    assert user.loaded == ["large"]


def test_one_that_does_not_load_says_so_each_time() -> None:
    cache = EmbeddingCache()
    for _ in range(2):
        with pytest.raises(LoadFailed, match="embedding broken for model model does not load") as caught:
            cache.get(embedding(Loads(), "broken"), MODEL)
        assert caught.value.key == ("embedding", "broken", "model")


def test_while_planning_only_embeddings_are_there() -> None:
    asset = embedding(Loads(), "cat")
    assets = PlanningAssets(EmbeddingCache(), MODEL, {"embedding": {"cat": asset}, "lora": {"ink": asset}})
    assert assets.names("embedding") == ["cat"]
    assert assets.get("embedding", "cat") is not None
    with pytest.raises(KeyError, match="before the job's turn"):
        assets.get("lora", "ink")


def test_what_has_no_effect_is_not_needed() -> None:
    request: Any = SimpleNamespace(
        model="sd",
        controls=[SimpleNamespace(model="edges", scale=1.0), SimpleNamespace(model="depth", scale=0.0)],
        loras=[SimpleNamespace(name="ink", weight=0.5), SimpleNamespace(name="oil", weight=0.0)],
    )
    assert needs(request) == (("model", "sd"), ("controlnet", "edges", "sd"), ("lora", "ink", "sd"))
