"""What all tests share: the markers that skip where a machine lacks something, small data, and loaders of a run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from ffcv_prune.config import Config, load
from ffcv_prune.training.loaders import Loaders
from tests.betons import Beton, write_beton
from tests.reports import painting_nothing

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # the shell's way with `pytest &`; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Files of tests that start processes or train for long. They come first: begun last, one of them would keep one of two
# processes busy alone.
LONG = (
    *("resume", "experiments", "torch_loader", "distributed", "faults", "payoff", "commands", "findings"),
    *("adapter_transformers", "adapter_lightning", "adapter_accelerate", "two_hosts", "startup", "wheel", "run_writer"),
    *("profile", "warm_up", "readme", "walkthrough", "torch_pages", "recipe_keys", "plan", "score_benchmarks"),
    *("loader_benchmarks", "loader_throughput", "run_script", "workers", "trackers", "without_ffcv", "static_command"),
    *("augment", "writer", "site", "jobs", "compatibility", "gpu_benchmark", "payoff_seconds", "payoff_confirm"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))
    lacking = {
        "cuda": (not torch.cuda.is_available(), "needs a CUDA device"),
        "requires_root": (os.geteuid() != 0, "needs root"),
    }
    for item in items:
        for marker, (lacks, reason) in lacking.items():
            if lacks and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    """203 raw images of 16 x 16 in ten classes."""
    return write_beton(tmp_path_factory.mktemp("beton") / "train.beton")


@pytest.fixture(scope="session")
def jpg_beton(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    """50 JPEG images of 24 x 24."""
    return write_beton(tmp_path_factory.mktemp("beton") / "jpg.beton", n=50, size=24, mode="jpg")


@pytest.fixture(scope="session")
def test_beton(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    """83 images: not a multiple of any batch."""
    return write_beton(tmp_path_factory.mktemp("beton") / "test.beton", n=83, seed=1)


@pytest.fixture
def settings(config_file: Path, tmp_path: Path) -> Callable[..., Config]:
    """The module's `config_file`, with changes written as section__key=value, in a folder of the test's own."""

    def make(**changes: Any) -> Config:
        options = [f"--{name.replace('__', '.')}={value}" for name, value in changes.items()]
        return load(["--config", str(config_file), f"--run.out={tmp_path / 'runs'}", *options])

    return make


@pytest.fixture(scope="module")
def loaders(config_file: Path) -> Iterator[Loaders]:
    """Those of the module's `config_file`, compiled once."""
    with closing(Loaders(load(["--config", str(config_file)]))) as made:
        yield made


@pytest.fixture(scope="module")
def unpainted() -> Iterator[None]:
    with painting_nothing():
        yield
