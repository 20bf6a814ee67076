from __future__ import annotations

import gc
import io
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import numba.core.event as numba_event
import numpy as np
import pytest
import torch
from ffcv.pipeline.operation import Operation

from ffcv_prune import PrunedLoader
from ffcv_prune.data.beton import check_beton
from ffcv_prune.errors import UserError
from ffcv_prune.loading.arguments import usable_cores
from ffcv_prune.loading.augment import CentreCrop, PadCropFlip, RandomResizedCrop, StoredImage
from ffcv_prune.loading.epoch import LoaderError
from ffcv_prune.loading.pipelines import score_pipelines, train_pipelines
from tests.betons import Beton, write_label_first
from tests.left_epochs import WAYS, leave

BATCH = 32


def make_loader(beton: Beton, **options: Any) -> PrunedLoader:
    options = {
        "batch_size": BATCH,
        "pipelines": score_pipelines(check_beton(beton.path)),
        "shuffle": True,
        "with_ids": True,
    } | options
    return PrunedLoader(beton.path, **options)


@pytest.fixture(scope="module")
def kept_loader(beton: Beton) -> PrunedLoader:
    return make_loader(beton, drop_last=False, seed=3)


@pytest.fixture
def loader(kept_loader: PrunedLoader) -> PrunedLoader:
    """One loader for the module (FFCV compiles each), reset for each test."""
    kept_loader.close()
    kept_loader.drop_last = kept_loader.traversal_order.drop_last = False
    kept_loader.set_selection(None)
    kept_loader.set_epoch(0)
    return kept_loader


def serve(loader: PrunedLoader) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All images [m, H, W, 3], labels and ids of one epoch."""
    batches = [(images.clone(), labels.clone(), ids.clone()) for images, labels, ids in loader]
    images, labels, ids = (torch.cat(part) for part in zip(*batches, strict=True))
    return images.permute(0, 2, 3, 1).numpy(), labels.numpy(), ids.numpy()


class CompilationCounter(numba_event.Listener):
    def __init__(self) -> None:
        self.count = 0

    def on_start(self, event: Any) -> None:
        self.count += 1

    def on_end(self, event: Any) -> None:
        pass


@pytest.fixture
def compilations() -> Iterator[CompilationCounter]:
    counter = CompilationCounter()
    numba_event.register("numba:compile", counter)
    yield counter
    numba_event.unregister("numba:compile", counter)


def loader_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "ffcv_prune-loader"]


def at_work(loader: PrunedLoader) -> bool:
    """Whether an epoch has a thread, or batches in the making."""
    return bool(loader_threads() or loader.ring.workers.submitted())


def test_every_sample_arrives_as_it_was_written(loader: PrunedLoader, beton: Beton) -> None:
    images, labels, ids = serve(loader)
    assert sorted(ids) == list(range(len(beton)))
    np.testing.assert_array_equal(images, beton.images[ids])
    np.testing.assert_array_equal(labels, beton.labels[ids])
    np.testing.assert_array_equal(loader.labels, beton.labels)


def test_a_file_with_numbers_and_labels_before_the_images(beton: Beton, tmp_path: Path) -> None:
    """They are told apart by field; the labels are the field of that name, not the first integers."""
    beton = write_label_first(tmp_path / "label_first.beton", beton)
    pipelines = score_pipelines(check_beton(beton.path))
    for _ in range(2):  # the caller's pipelines stay as they are
        loader = make_loader(beton, pipelines=pipelines, drop_last=False)
        for batch in loader.batches(0):
            images = batch.inputs.permute(0, 2, 3, 1)
            np.testing.assert_array_equal(images, beton.images[batch.ids])
            np.testing.assert_array_equal(batch.targets, beton.labels[batch.ids])
            assert batch.outputs[0] is batch.targets  # in the order of the file, as FFCV delivers them
        np.testing.assert_array_equal(loader.labels, beton.labels)


def test_labels_that_cannot_be_told_from_other_integers(beton: Beton, tmp_path: Path) -> None:
    path = write_label_first(tmp_path / "unclear.beton", beton, label="class").path
    with pytest.raises(UserError, match="has integer fields number, class, none called label: write it again"):
        score_pipelines(check_beton(path))
    assert PrunedLoader(path, BATCH).labels is None  # served all the same, with the user's own pipelines


@pytest.mark.parametrize("drop_last", [False, True])
def test_growing_and_shrinking_selections(loader: PrunedLoader, beton: Beton, drop_last: bool) -> None:
    loader.drop_last = loader.traversal_order.drop_last = drop_last
    rng = np.random.default_rng(0)
    for size in (100, 33, 32, 64, 203, 150, 1, 203):
        if drop_last and size < BATCH:
            continue
        selection = None if size == len(beton) else rng.permutation(len(beton))[:size]
        loader.set_selection(selection)
        expected = set(range(len(beton)) if selection is None else selection.tolist())
        assert set(loader.selection.tolist()) == expected
        batches = size // BATCH if drop_last else -(-size // BATCH)
        assert len(loader) == batches
        lengths = [len(ids) for _, _, ids in loader]
        assert len(lengths) == batches
        images, labels, ids = serve(loader)
        assert len(ids) == (batches * BATCH if drop_last else size)
        assert set(ids.tolist()) <= expected
        assert len(set(ids.tolist())) == len(ids)
        np.testing.assert_array_equal(images, beton.images[ids])
        np.testing.assert_array_equal(labels, beton.labels[ids])


def test_a_swap_compiles_nothing(loader: PrunedLoader, compilations: CompilationCounter) -> None:
    serve(loader)
    compilations.count = 0
    for ids in (np.arange(0, 200, 3), np.arange(150)[::-1], None):
        loader.set_selection(ids)
        serve(loader)
    assert compilations.count == 0


def test_the_counter_sees_compilations(compilations: CompilationCounter, beton: Beton) -> None:
    next(iter(PrunedLoader(beton.path, BATCH)))  # FFCV's own decoders, which numba cannot keep
    assert compilations.count > 0


@pytest.mark.parametrize(
    "variants",
    [
        [[StoredImage(), PadCropFlip(4, (0, 0, 0))], [StoredImage(), PadCropFlip(4, (1, 2, 3))]],
        [[StoredImage(), PadCropFlip(4)], [StoredImage(), PadCropFlip(2)]],
        [[CentreCrop(8, 1.0)], [CentreCrop(8, 0.5)]],
        [[RandomResizedCrop(8)], [RandomResizedCrop(8, scale=(0.5, 1.0))]],
    ],
)
def test_what_was_compiled_once_is_kept_for_the_same_parameters_only(
    beton: Beton, compilations: CompilationCounter, variants: list[list[Operation]]
) -> None:
    def images(operations: list[Operation]) -> np.ndarray:
        compilations.count = 0
        loader = PrunedLoader(beton.path, BATCH, pipelines={"image": list(operations), "label": None})
        return np.concatenate([images.copy() for (images,) in loader])

    first, second = (images(operations) for operations in variants)
    assert (first != second).any()
    np.testing.assert_array_equal(images(variants[0]), first)
    assert compilations.count == 0


def test_refused_selections_change_nothing(loader: PrunedLoader) -> None:
    loader.set_selection(np.arange(50))
    for bad in (
        np.array([0, 203]),
        np.array([-1]),
        np.array([4, 4]),
        np.array([0.5]),
        np.array([], dtype=np.int64),
    ):
        with pytest.raises(UserError):
            loader.set_selection(bad)
    assert loader.selection.tolist() == list(range(50))


def test_fewer_samples_than_a_batch_under_drop_last(loader: PrunedLoader, beton: Beton) -> None:
    loader.drop_last = loader.traversal_order.drop_last = True
    with pytest.raises(UserError, match="31 samples do not fill one batch of 32"):
        loader.set_selection(np.arange(31))
    with pytest.raises(UserError, match="do not fill one batch"):
        make_loader(beton, batch_size=500, drop_last=True)


def test_order_depends_on_seed_and_epoch_alone(loader: PrunedLoader, beton: Beton) -> None:
    first, second = serve(loader)[2], serve(loader)[2]
    assert (first != second).any()
    twin = make_loader(beton, drop_last=False, seed=3, num_workers=1)
    np.testing.assert_array_equal(serve(twin)[2], first)
    np.testing.assert_array_equal(serve(twin)[2], second)


def test_leaving_an_epoch_early_leaks_nothing(loader: PrunedLoader) -> None:
    for _ in range(20):
        for _batch in loader:
            assert at_work(loader)
            break
        del _batch
    gc.collect()
    assert not at_work(loader)
    iterator = iter(loader)
    next(iterator)
    assert len(serve(loader)[2]) == 203  # a new epoch ends the old one
    with pytest.raises(LoaderError, match="closed"):
        next(iterator)


def test_an_exhausted_epoch_stays_exhausted(loader: PrunedLoader) -> None:
    iterator = iter(loader)
    assert len(list(iterator)) == len(loader)
    for _ in range(3):
        with pytest.raises(StopIteration):
            next(iterator)
    assert not loader_threads()


def test_a_running_epoch_is_not_disturbed_by_a_new_selection(loader: PrunedLoader) -> None:
    iterator = iter(loader)
    next(iterator)
    loader.set_selection(np.arange(10))
    assert sum(1 for _ in iterator) == 6
    assert len(loader) == 1


def test_a_state_holds_the_running_epochs_selection_and_the_next_one(loader: PrunedLoader) -> None:
    loader.set_selection(np.arange(160))
    expected = serve(loader)[2]
    loader.set_epoch(0)
    iterator = iter(loader)
    next(iterator)
    loader.set_selection(np.arange(100, 160))
    state = loader.state_dict()
    iterator.close()
    following = serve(loader)[2]
    for _ in range(2):  # the second time from a state taken right after resuming
        loader.set_selection(None)
        loader.load_state_dict(state)
        assert len(loader) == 4
        state = loader.state_dict()
    np.testing.assert_array_equal(serve(loader)[2], expected[BATCH:])
    assert loader.selection.tolist() == list(range(100, 160))
    np.testing.assert_array_equal(serve(loader)[2], following)


@pytest.mark.parametrize("taken", [0, 1, 3, 7])
def test_state_dict_resumes_in_the_middle_of_an_epoch(loader: PrunedLoader, taken: int) -> None:
    loader.set_selection(np.arange(0, 203, 2)[:70])
    loader.set_selection(None)
    expected = serve(loader)[2], serve(loader)[2]
    loader.set_epoch(0)
    iterator = iter(loader)
    for _ in range(taken):
        next(iterator)
    state = loader.state_dict()
    iterator.close()
    loader.set_selection(np.arange(5))
    loader.set_epoch(40)
    loader.load_state_dict(state)
    assert len(loader) == 7 - taken
    if taken < 7:
        np.testing.assert_array_equal(serve(loader)[2], expected[0][taken * BATCH :])
    else:
        assert list(loader) == []
    np.testing.assert_array_equal(serve(loader)[2], expected[1])


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("taken", [1, 3, 7])
def test_an_epoch_that_was_left_is_resumed_where_it_was_left(loader: PrunedLoader, taken: int, how: str) -> None:
    """Defect: the state told of the start of the next epoch, and the rest was never served."""
    expected = serve(loader)[2], serve(loader)[2]
    loader.set_epoch(0)
    leave(loader, taken, how)
    state = loader.state_dict()
    np.testing.assert_array_equal(serve(loader)[2], expected[1])  # whoever does not resume goes on with the next epoch
    loader.load_state_dict(state)
    rest = [ids.clone() for _, _, ids in loader]
    np.testing.assert_array_equal(torch.cat(rest) if rest else [], expected[0][taken * BATCH :])
    np.testing.assert_array_equal(serve(loader)[2], expected[1])


def test_what_forgets_an_epoch_that_was_left(loader: PrunedLoader) -> None:
    go_on: list[tuple[Callable[[], object], tuple[int, int]]] = [
        (lambda: None, (0, 2)),
        (lambda: list(loader.batches(7)), (0, 2)),  # a pass over the data does not touch the position
        (lambda: loader.set_selection(np.arange(50)), (1, 0)),
        (lambda: loader.set_epoch(5, 1), (5, 1)),
        (lambda: list(loader), (2, 0)),
    ]
    for after_leaving, expected in go_on:
        loader.set_epoch(0)
        leave(loader, 2, "break")
        after_leaving()
        state = loader.state_dict()
        assert (state["epoch"], state["batch"]) == expected


def test_a_position_is_of_plain_whole_numbers(loader: PrunedLoader) -> None:
    """Defect: a state with a numpy scalar could not be loaded, and -1 failed in the next epoch only."""
    loader.set_epoch(np.int64(3), np.int32(1))  # type: ignore[arg-type]
    stored = io.BytesIO()
    torch.save(loader.state_dict(), stored)
    stored.seek(0)
    loader.set_epoch(0)
    loader.load_state_dict(torch.load(stored, weights_only=True))
    assert (loader.next_epoch, loader.first_batch) == (3, 1)
    for wrong, message in [
        ((-1,), "epoch is -1: it must be at least 0"),
        ((0, -1), "first_batch is -1: it must be at least 0"),
        ((1.5,), "epoch is 1.5: it must be a whole number"),
        ((4, "2"), "first_batch is '2': it must be a whole number"),
    ]:
        with pytest.raises(UserError, match=message):
            loader.set_epoch(*wrong)
        assert (loader.next_epoch, loader.first_batch) == (3, 1)


def test_another_epoch_supersedes_one_that_runs(loader: PrunedLoader) -> None:
    """Defect: the state led back into the epoch that was left, once its iterator was gone."""
    batches = iter(loader)
    next(batches)
    loader.set_epoch(5)
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (0, 1)
    del batches
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (5, 0)


def test_an_epoch_that_fails_to_start_is_not_skipped(loader: PrunedLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defect: who tried again got the epoch after it."""
    expected = serve(loader)[2]
    loader.set_epoch(0)

    def fail(start: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(loader, "_start", fail)
        with pytest.raises(MemoryError):
            iter(loader)
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (0, 0)
    np.testing.assert_array_equal(serve(loader)[2], expected)


def test_foreign_state_is_refused(loader: PrunedLoader) -> None:
    state = loader.state_dict()
    changes = {"num_samples": 5, "seed": 5, "batch_size": 5, "shuffle": False, "drop_last": True}
    for key, value in changes.items():
        with pytest.raises(UserError, match=f"the loader's state has {key} {value}, but .* is loaded with"):
            loader.load_state_dict(state | {"epoch": 7, key: value})
    with pytest.raises(UserError, match="outside the data set"):
        loader.load_state_dict(state | {"epoch": 7, "next_selection": torch.tensor([999])})
    assert loader.next_epoch == 0


def test_the_selection_cannot_be_written_to(loader: PrunedLoader) -> None:
    for ids in (None, np.arange(50)):
        loader.set_selection(ids)
        with pytest.raises(ValueError, match="read-only"):
            loader.selection[0] = 100_000  # in native code, a segmentation fault


def test_thread_counts_are_left_alone(beton: Beton) -> None:
    before = torch.get_num_threads()
    serve(make_loader(beton, num_workers=1))
    assert torch.get_num_threads() == before


def test_all_cores_work_unless_fewer_are_asked_for(loader: PrunedLoader, beton: Beton) -> None:
    assert loader.num_workers == min(len(os.sched_getaffinity(0)), numba.config.NUMBA_NUM_THREADS)
    assert make_loader(beton, num_workers=1).num_workers == 1


def test_pipelines_of_the_caller_are_left_alone(beton: Beton) -> None:
    pipelines = score_pipelines(check_beton(beton.path))
    lengths = {name: len(ops) for name, ops in pipelines.items()}
    make_loader(beton, pipelines=pipelines)
    assert {name: len(ops) for name, ops in pipelines.items()} == lengths


def test_without_ids_and_with_default_pipelines(beton: Beton) -> None:
    loader = PrunedLoader(beton.path, batch_size=100, shuffle=False, drop_last=False)
    images, labels = next(iter(loader))
    np.testing.assert_array_equal(images.numpy(), beton.images[:100])
    np.testing.assert_array_equal(labels.numpy()[:, 0], beton.labels[:100])


def test_too_many_workers(beton: Beton) -> None:
    with pytest.raises(UserError, match="may use"):
        make_loader(beton, num_workers=os.cpu_count() + 1)  # type: ignore[operator]


def test_a_negative_seed(beton: Beton) -> None:
    with pytest.raises(UserError, match="seed is -1"):
        make_loader(beton, seed=-1)


def test_filter_is_not_offered(loader: PrunedLoader) -> None:
    with pytest.raises(NotImplementedError, match="set_selection"):
        loader.filter("label", lambda label: label == 0)


def test_a_replaced_or_deleted_file_is_noticed(beton: Beton, tmp_path: Path) -> None:
    copy = Beton(tmp_path / "copy.beton", beton.images, beton.labels)
    shutil.copy(beton.path, copy.path)
    loader = make_loader(copy)
    next(iter(loader))
    os.utime(copy.path, (1, 1))
    with pytest.raises(UserError, match="replaced, changed or deleted"):
        iter(loader)
    copy.path.unlink()
    with pytest.raises(UserError, match="replaced, changed or deleted"):
        iter(loader)


def test_a_relative_path_is_that_of_the_directory_it_was_given_in(
    beton: Beton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(beton.path, tmp_path / "train.beton")
    monkeypatch.chdir(tmp_path)
    loader = PrunedLoader("train.beton", BATCH)
    monkeypatch.chdir("/")
    assert len(list(loader)) == len(loader)
    with pytest.raises(UserError, match=r"^/train\.beton does not exist"):
        PrunedLoader("train.beton", BATCH)


class FailingOperation(Operation):
    """Runs in the loader's thread, outside compiled code."""

    def __init__(self, fail: Callable[[], None]) -> None:
        super().__init__()
        self.fail = fail

    def generate_code(self) -> Callable[..., Any]:
        def step(inp: Any, _: Any) -> Any:
            self.fail()
            return inp

        return step

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, None]:
        return previous_state, None


def failing_loader(beton: Beton, fail: Callable[[], None]) -> PrunedLoader:
    pipelines = score_pipelines(check_beton(beton.path))
    pipelines["image"].append(FailingOperation(fail))
    return make_loader(beton, pipelines=pipelines)


def test_an_exception_in_the_thread_reaches_the_consumer(beton: Beton) -> None:
    calls = iter(range(100))

    def fail() -> None:
        if next(calls) == 3:
            raise OSError("the disk is gone")

    loader = failing_loader(beton, fail)
    start = time.perf_counter()
    with pytest.raises(LoaderError, match=r"batch 3 of epoch 0 .* OSError: the disk is gone") as caught:
        serve(loader)
    assert isinstance(caught.value.__cause__, OSError)
    assert time.perf_counter() - start < 60  # compilation included; a hang would be for ever
    assert not loader_threads()
    assert len(serve(loader)[2]) == 192  # the next epoch runs


def test_a_thread_that_vanishes_is_noticed(beton: Beton) -> None:
    iterator = iter(failing_loader(beton, lambda: None))
    next(iterator)
    # As if the thread had been killed: it ends and neither a batch nor an exception is left behind.
    iterator._producer.shut_down()
    with pytest.raises(LoaderError, match="ended without a word"):
        for _ in range(10):
            next(iterator)


def test_memory_is_pinned_for_a_device_only(beton: Beton, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with a GPU pinning would open a CUDA context, which takes seconds and hundreds of MB."""
    pinned: list[torch.Size] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: (pinned.append(tensor.shape), tensor)[1])
    loader = PrunedLoader(beton.path, 16, 1, pipelines=train_pipelines(check_beton(beton.path), "pad_crop_flip"))
    assert len(list(loader)) == len(loader)
    assert not pinned


@pytest.mark.parametrize("augment", ["pad_crop_flip", "random_resized_crop"])
def test_augmentations_are_keyed_by_epoch_and_sample(beton: Beton, augment: str) -> None:
    info = check_beton(beton.path)

    def augmented(loader: PrunedLoader) -> dict[int, np.ndarray]:
        images, _, ids = serve(loader)
        return dict(zip(ids.tolist(), images, strict=True))

    def make(**options: Any) -> PrunedLoader:
        return make_loader(beton, pipelines=train_pipelines(info, augment), drop_last=False, seed=1, **options)

    loader = make()
    first = augmented(loader)
    one_thread = make(num_workers=1, batch_size=50)
    one_thread.set_selection(np.arange(0, 203, 2))
    for i, image in augmented(one_thread).items():
        np.testing.assert_array_equal(image, first[i])
    second = augmented(loader)
    assert sum((first[i] != second[i]).any() for i in first) > 180  # a new epoch draws anew
    loader.seed = 2
    loader.set_epoch(0)
    other_seed = augmented(loader)
    assert sum((first[i] != other_seed[i]).any() for i in first) > 180


@pytest.mark.parametrize("size", [3, 40])
def test_a_batch_size_set_between_epochs_holds(beton: Beton, size: int) -> None:
    """Larger batches once went beyond the buffers of the smaller ones."""
    loader = PrunedLoader(beton.path, batch_size=8, shuffle=False, drop_last=False)
    assert len(list(loader)) == -(-203 // 8)
    loader.batch_size = size
    for _ in range(2):
        batches = [[part.clone() for part in batch] for batch in loader]
        assert {len(part) for part in batches[0]} == {size}
        assert sum(len(batch[0]) for batch in batches) == 203


def test_a_number_of_workers_set_between_epochs_holds(beton: Beton) -> None:
    loader = make_loader(beton, num_workers=1)
    expected = serve(loader)
    loader.num_workers = usable_cores()
    loader.set_epoch(0)
    for one, other in zip(serve(loader), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert loader.ring.size[2] == usable_cores()
    with pytest.raises(UserError, match="this process may use"):
        loader.num_workers = usable_cores() + 1
    loader.num_workers = -1
    assert loader.num_workers == usable_cores()


def test_an_epoch_that_its_own_thread_drops_ends_without_a_word(beton: Beton, monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector runs in any thread: the loader's once waited for its own end."""
    errors: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", errors.append)
    loader = make_loader(beton, batch_size=50)
    dropped, collected = threading.Event(), threading.Event()

    def draw_ahead(epoch: int) -> None:
        dropped.wait(60)
        gc.collect()
        collected.set()

    monkeypatch.setattr(loader.traversal_order, "draw_ahead", draw_ahead)
    gc.disable()
    try:
        circle: list[Any] = [iter(loader)]
        circle.append(circle)
        next(circle[0])
        del circle
        dropped.set()
        assert collected.wait(60)
    finally:
        gc.enable()
    assert not errors
    monkeypatch.undo()
    assert len(serve(loader)[0]) == 200
