"""Batches of which only views are left to make: the consumer makes them itself, and no thread stands in between."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from ffcv.transforms import ToTorchImage

from ffcv_prune import PrunedLoader
from ffcv_prune.data.beton import check_beton
from ffcv_prune.loading import native_code
from ffcv_prune.loading.augment import PadCropFlip, StoredImage
from ffcv_prune.loading.epoch import LoaderError
from ffcv_prune.loading.pipelines import score_pipelines, train_pipelines
from ffcv_prune.loading.ring import Ring
from tests.betons import Beton
from tests.test_workers import Identity

BATCH = 8


def make_loader(beton: Beton, direct: bool = True, **options: Any) -> PrunedLoader:
    pipelines = train_pipelines(check_beton(beton.path), "pad_crop_flip")
    if not direct:
        pipelines["image"][-1] = ToTorchImage(channels_last=False)  # a copy
    options = {"batch_size": BATCH, "pipelines": pipelines, "shuffle": True, "with_ids": True, "seed": 2} | options
    return PrunedLoader(beton.path, **options)


@pytest.fixture(scope="module")
def kept_loader(beton: Beton) -> PrunedLoader:
    loader = make_loader(beton)
    assert loader.ring.direct
    return loader


@pytest.fixture
def loader(kept_loader: PrunedLoader) -> PrunedLoader:
    kept_loader.close()
    kept_loader.set_epoch(0)
    return kept_loader


def copies(batches: Any) -> list[list[torch.Tensor]]:
    return [[output.clone() for output in batch] for batch in batches]


def assert_equal(found: list[list[torch.Tensor]], expected: list[list[torch.Tensor]]) -> None:
    assert len(found) == len(expected)
    for own, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("batches_ahead", [1, 3])
def test_batches_are_those_of_a_thread(workers: int, batches_ahead: int, loader: PrunedLoader, beton: Beton) -> None:
    threaded = make_loader(beton, direct=False, num_workers=workers, batches_ahead=batches_ahead)
    assert not threaded.ring.direct
    for first in (0, 3, len(loader)):
        for one in (loader, threaded):
            one.set_epoch(1, first)
        assert_equal(copies(loader), copies(threaded))


def test_what_is_more_than_views_has_a_thread(beton: Beton, monkeypatch: pytest.MonkeyPatch) -> None:
    last = train_pipelines(check_beton(beton.path), "none")["image"][1:]
    for decoders in ([Identity()], [Identity(), PadCropFlip()], [StoredImage(), PadCropFlip(), PadCropFlip()]):
        assert not make_loader(beton, pipelines={"image": [*decoders, *last]}).ring.direct
    monkeypatch.setattr(native_code, "library", lambda: None)
    assert not make_loader(beton).ring.direct


def test_the_next_permutation_is_drawn_meanwhile(loader: PrunedLoader) -> None:
    copies(loader)
    drawn = loader.traversal_order._drawn
    assert drawn is not None and drawn[0] == (2, 1)


def test_batches_asked_for_in_inference_mode_are_ordinary_ones(loader: PrunedLoader) -> None:
    with torch.inference_mode():
        batches = list(loader)
    assert not any(output.is_inference() for images, labels, _ in batches for output in (images, labels))


@pytest.mark.parametrize("step", ["begin_batch", "finish_batch"])
@pytest.mark.parametrize("after", [False, True])
def test_after_ctrl_c_the_epoch_goes_on_where_it_was(
    step: str, after: bool, loader: PrunedLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = copies(loader)
    loader.set_epoch(0)
    epoch = iter(loader)
    found, whole = copies(next(epoch) for _ in range(3)), getattr(Ring, step)

    def interrupted(*arguments: Any) -> Any:
        if after:
            whole(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Ring, step, interrupted)
        next(epoch)
    assert epoch.running and loader.state_dict()["batch"] == 3
    found += copies(next(epoch) for _ in expected[3:])
    assert loader.ring.workers.submitted() == len(expected)  # none of them twice
    assert_equal(found, expected)


def test_an_epoch_is_closed_while_somebody_waits_for_a_batch(loader: PrunedLoader) -> None:
    begun, ended = threading.Event(), list[BaseException]()
    epoch = iter(loader)

    def consume() -> None:
        try:
            for _ in epoch:
                begun.set()
        except LoaderError as error:
            ended.append(error)

    wait = loader.ring.workers.wait
    loader.ring.workers.wait = lambda batch: wait(batch if batch < 2 else len(loader) + 1)  # which is never made
    consumer = threading.Thread(target=consume)
    consumer.start()
    try:
        assert begun.wait(10)
        epoch.close()
        consumer.join(10)
        assert not consumer.is_alive() and "closed" in str(ended)
    finally:
        loader.ring.workers.wait = wait
    assert len(copies(loader)) == len(loader)


def test_a_fork_may_leave_the_epoch_of_its_parent(beton: Beton) -> None:
    """While the parent's threads, which the fork lacks, are at work."""
    pipelines = score_pipelines(check_beton(beton.path), size=600)
    loader = make_loader(beton, pipelines=pipelines, batch_size=100)
    assert loader.ring.direct
    with closing(iter(loader)) as epoch:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)  # rather than wait for ever
            epoch.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert sum(1 for _ in epoch) == 2


def test_an_error_names_the_batch(loader: PrunedLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = iter(loader)
    next(epoch)
    calls: list[int] = []

    def fail(*_: Any) -> None:
        calls.append(1)
        raise OSError("the disk is gone")

    monkeypatch.setattr(Ring, "finish_batch", fail)
    with pytest.raises(LoaderError, match=r"batch 1 of epoch 0 failed .* OSError: the disk is gone"):
        next(epoch)
    assert not epoch.running and calls == [1]
    with pytest.raises(StopIteration):
        next(epoch)


def test_a_failure_to_begin_a_batch_names_it(loader: PrunedLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    list(loader)

    def fail(*_: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(Ring, "begin_batch", fail)
    batches = iter(loader)
    with pytest.raises(LoaderError, match=r"batch 0 of epoch 1 failed .* OSError: the disk is gone"):
        next(batches)
    assert not batches.running


def test_an_epoch_after_one_that_was_broken_off_in_its_beginning(
    loader: PrunedLoader, beton: Beton, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its batches in the making are not taken for those of the next epoch, though a traceback keeps it."""
    list(loader)
    begin_batch, begun, kept = Ring.begin_batch, list[int](), None

    def breaks_off(*arguments: Any) -> None:
        begin_batch(*arguments)
        begun.append(1)
        if len(begun) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Ring, "begin_batch", breaks_off)
        try:
            next(iter(loader))
        except KeyboardInterrupt as error:
            kept = error
    assert kept is not None and loader.ring.workers.submitted() == 2
    for _, labels, ids in loader:
        np.testing.assert_array_equal(labels.flatten(), beton.labels[ids])


def test_a_batch_whose_memory_is_shared_leaves_the_others_alone(loader: PrunedLoader, beton: Beton) -> None:
    for images, labels, ids in loader:
        np.testing.assert_array_equal(labels.flatten(), beton.labels[ids])
        labels.share_memory_()
        images.share_memory_()


def test_an_epoch_of_the_parent_ends_in_a_fork(loader: PrunedLoader) -> None:
    batches = iter(loader)
    next(batches)
    child = os.fork()
    if not child:
        try:
            next(batches)
        except LoaderError:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert len(list(batches)) == len(loader) - 1
