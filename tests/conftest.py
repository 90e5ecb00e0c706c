"""What all tests share: no network, one thread, tiny models, and where real images are."""

import os
import resource

# Read when the libraries are imported, hence before them. The tests of the Hub start clients with their own settings.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_EVALUATE_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation

from .variants import TINY

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def bounded_memory() -> Iterator[None]:
    """No case of a module, however hostile, may make the process larger by more than 1 GiB (of resident memory)."""

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    before = peak()
    yield
    assert peak() - before < 1024, f"{peak() - before} MiB"


@pytest.fixture
def fives_dir() -> Path:
    """The folder of the FIVES images."""
    if not os.environ.get("FIVES_DIR"):
        pytest.skip("FIVES_DIR, the folder of the FIVES images, is not set")
    return Path(os.environ["FIVES_DIR"])


@pytest.fixture
def tiny_config() -> Callable[..., Reg4PruConfig]:
    """Makes configurations of the tiny model, see [`~tests.variants.TINY`]."""

    def make(**overrides) -> Reg4PruConfig:
        return Reg4PruConfig(**{**TINY, **overrides})

    return make


@pytest.fixture
def tiny_model(tiny_config) -> Callable[..., Reg4PruForSemanticSegmentation]:
    """Makes models of [`tiny_config`] from a fixed seed, in evaluation mode."""

    def make(**overrides) -> Reg4PruForSemanticSegmentation:
        torch.manual_seed(1)
        return Reg4PruForSemanticSegmentation(tiny_config(**overrides)).eval()

    return make


@pytest.fixture
def pixel_values() -> torch.Tensor:
    """Three images."""
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def labels() -> torch.Tensor:
    """Their label maps: vessels, background, and a corner to be ignored."""
    maps = (torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(3)) < 0.2).long()
    maps[:, 32:] = 0  # patches without any vessel
    maps[:, :4, :4] = 255
    return maps
