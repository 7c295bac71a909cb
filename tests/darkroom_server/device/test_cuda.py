"""Settings of CUDA, which can be made where there is none."""

from collections.abc import Iterator

import pytest
import torch

from darkroom_server.device.cuda import choose_allocator, is_cpu, set_tf32


@pytest.fixture(autouse=True)
def same_again() -> Iterator[None]:
    """What compiled code is kept under tells a setting that was made from its default, which only the newer of torch's
    names can set again."""
    matmul = torch.backends.cuda.matmul
    name = "fp32_precision" if hasattr(matmul, "fp32_precision") else "allow_tf32"
    before = torch.backends.cudnn.allow_tf32, getattr(matmul, name)
    yield
    torch.backends.cudnn.allow_tf32 = before[0]
    setattr(matmul, name, before[1])


def test_memory_pools_grow_in_place_unless_the_operator_says_otherwise() -> None:
    environment: dict[str, str] = {}
    choose_allocator(environment)
    assert set(environment.values()) == {"expandable_segments:True"}
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        environment = {name: "max_split_size_mb:64"}
        choose_allocator(environment)
        assert environment == {name: "max_split_size_mb:64"}


@pytest.mark.parametrize("allow", [True, False])
def test_tf32_is_allowed_for_all_or_for_nothing(allow: bool) -> None:
    set_tf32(allow)
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (allow, allow)


def test_without_the_setting_tf32_is_as_torch_has_it() -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    set_tf32(None)
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


@pytest.mark.parametrize(
    ("device", "driver", "cpu"), [("auto", True, False), ("auto", False, True), ("cpu", True, True)]
)
def test_where_a_configured_device_is_the_cpu(
    device: str, driver: bool, cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darkroom_server.device.cuda.has_driver", lambda: driver)
    assert is_cpu(device) is cpu
    assert not is_cpu("cuda:1")
