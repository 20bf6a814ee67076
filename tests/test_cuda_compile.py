"""Runs with train.compile on a GPU: they train as without.

On the CPU `test_recipe_keys.py` asks what needs no device; a compiler takes too long there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ffcv_prune import config
from ffcv_prune.training.trainer import train
from tests.betons import Beton, write_run
from tests.devices import without_tf32
from tests.test_cuda_training import losses_of

pytestmark = pytest.mark.usefixtures("unpainted")

RTOL = 1e-3  # of losses: a compiled step adds in another order


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory, beton: Beton, test_beton: Beton) -> Path:
    """Of a random selection: one by losses could differ in a sample where they differ in the last bits."""
    path, more = tmp_path_factory.mktemp("compile") / "small.yaml", "augment: pad_crop_flip, num_workers: 1"
    return write_run(path, beton, test_beton, 3, data=more, prune="method: random, keep: 0.5, period: 1")


def run_of(device: str, config_file: Path, out: Path, *more: str) -> list[float]:
    """The losses of a run of three epochs."""
    torch.compiler.reset()
    options = [f"--run.out={out}", f"--train.device={device}", "--model.name=resnet_tiny", *more]
    with without_tf32():
        return losses_of(train(config.load(["--config", str(config_file), *options])).folder)


@pytest.mark.cuda
def test_a_compiled_run_trains_as_one_that_is_not(config_file: Path, tmp_path: Path) -> None:
    expected = run_of("cuda", config_file, tmp_path / "off")
    found = run_of("cuda", config_file, tmp_path / "compiled", "--train.compile=default")
    np.testing.assert_allclose(found, expected, rtol=RTOL)


@pytest.mark.cuda
def test_a_run_of_cuda_graphs_in_fp16_learns(config_file: Path, tmp_path: Path) -> None:
    """Its selections are by scoring passes, in which the same model is not compiled."""
    more = ["--prune.method=ucb", "--prune.random_share=0.5", "--train.amp=fp16", "--train.compile=reduce-overhead"]
    losses = run_of("cuda", config_file, tmp_path, *more)
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
