"""What all tests share: the markers that skip where a machine lacks something."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from tests.betons import Beton, write_beton

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # the shell's way with `pytest &`; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
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
