"""The diff of docs/frameworks.md, applied to a script on timm's own loader, prefetcher and mixup."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ffcv_prune import TorchLoader
from ffcv_prune.errors import UserError
from tests.pages import ROOT, code, patched
from tests.plain_loop import BATCH, EPOCHS, LENGTHS, UCB, run_ranks
from tests.torch_data import Coloured, N

pytest.importorskip("timm", reason="needs timm")

SCRIPT = (ROOT / "tests" / "timm_script.py").read_text(encoding="utf-8")
DIFF = code("frameworks", "diff", "timm")
SEED = 42


def write_images(folder: Path) -> Path:
    """Each image is a class of its own: a sample's label is its position, so that batches tell theirs."""
    for i, image in enumerate(Coloured().images.permute(0, 2, 3, 1).numpy()):
        path = folder / "train" / f"{i:03}" / "image.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(image).save(path)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def train(folder: Path, diff: str = DIFF, **options: Any) -> Iterator[dict[str, Any]]:
    """Yields the variables of the script after each epoch."""
    data = {"dataset": "", "data_dir": str(folder), "train_split": "train", "class_map": "", "train_img_sizes": None}
    model = {"model": "resnet10t", "num_classes": N, "input_size": (3, 8, 8), "batch_size": BATCH, "seed": SEED}
    epochs = {"epochs": EPOCHS - 1, "warmup_epochs": 1}  # which is added, so the run has EPOCHS
    rest = {"workers": 0, "distributed": False, "prefetcher": True, "mixup": False} | options
    assert "keep=0.3" in diff
    method = ", ".join(f"{name}={value!r}" for name, value in UCB.items())
    script: dict[str, Any] = {}
    exec(patched(SCRIPT, diff.replace("keep=0.3", method)), script)
    yield from script["main"](Namespace(**data | model | epochs | rest))


@pytest.mark.parametrize(("workers", "prefetcher"), [(0, True), (2, True), (0, False)])
def test_each_step_of_timms_loader_is_of_the_selection(workers: int, prefetcher: bool, images: Path) -> None:
    diff = DIFF if prefetcher else DIFF.replace("loader_train.loader", "loader_train")  # as the page says
    alone = TorchLoader(Coloured(), BATCH, num_workers=0, seed=SEED, with_ids=True)
    lengths = []
    for epoch, seen in enumerate(train(images, diff, workers=workers, prefetcher=prefetcher)):
        alone.set_epoch(epoch)
        alone.set_selection(seen["pruner"].loader.selection)
        assert [positions.tolist() for _, positions in seen["batches"]] == [ids.tolist() for _, _, ids in alone]
        assert {(batch.shape, batch.dtype) for batch, _ in seen["batches"]} == {((BATCH, 3, 8, 8), torch.float32)}
        assert seen["length"] == len(seen["batches"])
        lengths.append(seen["length"])
    assert lengths == LENGTHS


def test_mixup_in_the_collate_function_can_be_switched(images: Path) -> None:
    *mixed, plain = [torch.cat([target for _, target in seen["batches"]]) for seen in train(images, mixup=True)]
    assert all((targets.count_nonzero(dim=1) == 2).any() for targets in mixed)
    assert (plain.count_nonzero(dim=1) == 1).all()


def test_a_loader_whose_batches_differ_in_size_is_refused(images: Path) -> None:
    with pytest.raises(UserError, match="draws from a ScheduledBatchSampler"):
        next(train(images, train_img_sizes=[8, 16]))


RANK = """
import json, sys
from pathlib import Path
import torch.distributed as dist
from tests.test_adapter_timm import train

dist.init_process_group("gloo")
rank, found = dist.get_rank(), []
for seen in train(Path(sys.argv[1]), distributed=True):
    found.append([positions.tolist() for _, positions in seen["batches"]])
scored = seen["pruner"].values.score_loader
(Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps([found, scored.world_size]))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_share_the_selection_and_the_pass_that_scores(tmp_path: Path) -> None:
    (first, scored), (second, _) = run_ranks(RANK, write_images(tmp_path))
    assert scored == 2
    for epoch, (own, others) in enumerate(zip(first, second, strict=True)):
        together = {i for step in own + others for i in step}
        assert len(own) == len(others) == LENGTHS[epoch] // 2
        assert len(together) == LENGTHS[epoch] // 2 * 2 * BATCH
