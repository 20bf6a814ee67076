from __future__ import annotations

import io
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)
from torch.utils.data.distributed import DistributedSampler

from ffcv_prune import PrunedLoader, Pruner, TorchLoader, methods, score_dataset
from ffcv_prune.data.beton import check_beton
from ffcv_prune.errors import UserError
from ffcv_prune.loading.pipelines import score_pipelines
from ffcv_prune.scoring import forward
from ffcv_prune.scoring.proxy import Proxy
from tests import torch_data
from tests.betons import Beton
from tests.devices import BOTH
from tests.left_epochs import WAYS, leave
from tests.nets import SmallNet
from tests.torch_data import Coloured, N, WithTargets

ROOT = Path(__file__).resolve().parent.parent
BATCH = 16
HALF = np.arange(0, N, 2)


def make(dataset: Dataset[Any] | None = None, **options: Any) -> TorchLoader:
    options = {"batch_size": BATCH, "num_workers": 0, "seed": 3, "with_ids": True} | options
    return TorchLoader(Coloured(change=torch_data.position) if dataset is None else dataset, **options)


def served(loader: TorchLoader) -> list[list[int]]:
    """The ids of each batch of the next epoch, which must be those of its samples."""
    ids = []
    for positions, _, of_batch in loader:
        assert positions.tolist() == of_batch.tolist()
        ids.append(of_batch.tolist())
    return ids


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_the_order_is_that_of_a_pruned_loader(shuffle: bool, drop_last: bool, beton: Beton) -> None:
    options: dict[str, Any] = {"seed": 3, "shuffle": shuffle, "drop_last": drop_last, "with_ids": True}
    loader = make(**options)
    pruned = PrunedLoader(beton.path, batch_size=BATCH, pipelines=score_pipelines(check_beton(beton.path)), **options)
    for selection in (None, HALF, np.arange(100, 150)):
        loader.set_selection(selection)
        pruned.set_selection(selection)
        assert len(loader) == len(pruned)
        assert served(loader) == [ids.tolist() for _, _, ids in pruned]
        first = [batch.ids.tolist() for batch in loader.batches(7, HALF, first=2)]
        assert first == [batch.ids.tolist() for batch in pruned.batches(7, HALF, first=2)]


def test_workers_end_at_once_when_the_loader_goes() -> None:
    loader = make(num_workers=2)
    list(loader)
    start = time.perf_counter()
    del loader
    assert not multiprocessing.active_children()
    assert time.perf_counter() - start < 3  # torch would wait for 5 s


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("workers", [1, 3])
def test_order_and_augmentations_are_the_same_on_any_number_of_workers(workers: int) -> None:
    def run(num_workers: int) -> list[Any]:
        loader = make(Coloured(change=torch_data.augmented), num_workers=num_workers)
        epochs = []
        for selection in (None, HALF):
            loader.set_selection(selection)
            epochs.append([[part.tolist() for part in batch] for batch in loader])
        return epochs

    alone = run(0)
    assert run(workers) == alone
    values = [value for epoch in alone for _, of_random, of_numpy, _ in epoch for value in (*of_random, *of_numpy)]
    assert len(set(values)) == len(values)  # no batch, and no epoch, repeats another


def test_without_workers_the_generators_of_the_training_are_left_alone() -> None:
    loader = make(Coloured(change=torch_data.augmented))

    def draw(between: Callable[[], object]) -> list[Any]:
        torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
        between()
        return [torch.rand(3).tolist(), random.random(), np.random.rand()]  # noqa: NPY002

    assert draw(lambda: list(loader)) == draw(lambda: None)


def test_workers_stay_from_epoch_to_epoch_and_selection_to_selection() -> None:
    loader = make(Coloured(change=torch_data.worker), num_workers=2)
    found = []
    for selection in (None, HALF, np.arange(40)):
        loader.set_selection(selection)
        found.append({int(pid) for _, pids, _ in loader for pid in pids})
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 2 and os.getpid() not in found[0]
    loader.end_workers()
    assert found[0].isdisjoint({int(pid) for _, pids, _ in loader for pid in pids})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_selection_takes_effect_at_the_next_epoch(workers: int) -> None:
    loader = make(num_workers=workers)
    assert len(loader) == N // BATCH
    iterator, seen = iter(loader), []
    for _ in range(3):
        seen += next(iterator)[2].tolist()
    loader.set_selection(HALF[::-1])
    assert len(loader) == len(HALF) // BATCH
    seen += [i for batch in iterator for i in batch[2].tolist()]
    assert len(set(seen)) == N // BATCH * BATCH
    epoch = served(loader)
    assert [len(batch) for batch in epoch] == [BATCH] * len(loader)
    assert {i for batch in epoch for i in batch} <= set(HALF.tolist())
    np.testing.assert_array_equal(loader.selection, HALF)
    assert not loader.selection.flags.writeable
    loader.set_selection(None)
    assert len(loader) == N // BATCH


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([1, 1]), "twice"),
        (np.array([N]), "outside"),
        (np.array([0.5]), "int64"),
        (np.zeros(N, bool), "flatnonzero"),
        (np.arange(BATCH - 1), "15 samples do not fill one batch of 16"),
    ],
)
def test_a_wrong_selection_is_refused_and_changes_nothing(ids: Any, message: str) -> None:
    loader = make()
    loader.set_selection(HALF)
    with pytest.raises(UserError, match=message):
        loader.set_selection(ids)
    np.testing.assert_array_equal(loader.selection, HALF)


def test_what_a_batch_looks_like() -> None:
    first = np.arange(4)

    def batch(change: Callable[..., Any], **options: Any) -> Any:
        return next(iter(make(Coloured(change=change), shuffle=False, batch_size=4, **options)))

    images = Coloured().images[:4]
    inputs, labels, ids = batch(torch_data.plain)
    assert torch.equal(inputs, images) and labels.dtype == ids.dtype == torch.int64 and ids.tolist() == first.tolist()
    assert len(batch(torch_data.plain, with_ids=False)) == 2
    assert set(batch(torch_data.named)) == {"pixel_values", "labels", "ids"}
    assert set(batch(torch_data.named, with_ids=False)) == {"pixel_values", "labels"}
    inputs, ids = batch(torch_data.unlabelled)
    assert torch.equal(inputs, images) and ids.tolist() == first.tolist()
    assert torch.equal(batch(torch_data.unlabelled, with_ids=False), images)
    few = Coloured(4)
    (known,) = make(few, batch_size=4, shuffle=False).batches(0)
    assert torch.equal(known.inputs, few.images) and known.targets.tolist() == few.classes.tolist()
    assert known.outputs[0] is known.inputs and known.outputs[2] is known.ids
    (known,) = make(Coloured(4, torch_data.unlabelled), batch_size=4, with_ids=False).batches(0)
    assert known.targets is None and known.outputs == (known.inputs,)


def test_batches_are_a_function_of_their_arguments() -> None:
    loader = make()
    loader.set_epoch(5)
    loader.set_selection(HALF)

    def ids(**options: Any) -> list[list[int]]:
        return [batch.ids.tolist() for batch in loader.batches(2, **options)]

    everything, some = ids(), ids(ids=np.arange(50))
    assert everything != some and ids() == everything and ids(ids=np.arange(50), first=1) == some[1:]
    assert (loader.next_epoch, loader.first_batch) == (5, 0)
    np.testing.assert_array_equal(loader.selection, HALF)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("exchanged", [False, True])
def test_resuming_in_an_epoch_is_bit_identical(workers: int, exchanged: bool) -> None:
    def start() -> TorchLoader:
        loader = make(Coloured(change=torch_data.augmented), num_workers=workers)
        loader.set_selection(HALF)
        return loader

    def values(batches: Any) -> list[Any]:
        return [[part.tolist() for part in batch] for batch in batches]

    stopped = start()
    list(stopped)
    iterator = iter(stopped)
    next(iterator), next(iterator)
    if exchanged:
        stopped.set_selection(np.arange(100))
    stored = io.BytesIO()
    torch.save(stopped.state_dict(), stored)
    expected = [values(iterator), values(stopped)]
    stored.seek(0)
    resumed = start()
    resumed.load_state_dict(torch.load(stored, weights_only=True))
    assert len(resumed) == len(expected[0])
    assert [values(resumed), values(resumed)] == expected


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("after", [2, 12])
def test_an_epoch_that_was_left_is_resumed_where_it_was_left(workers: int, how: str, after: int) -> None:
    """Defect: the state told of the start of the next epoch, and the rest was never served."""
    expected = make()
    batches = [served(expected), served(expected)]
    stopped, resumed = make(num_workers=workers), make(num_workers=workers)
    leave(stopped, after, how)
    state = stopped.state_dict()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert served(resumed) == batches[0][after:] and served(resumed) == batches[1]
    assert (stopped.next_epoch, stopped.first_batch) == (1, 0)
    assert served(stopped) == batches[1]  # whoever does not resume goes on with the next epoch


def where(loader: TorchLoader) -> tuple[int, int]:
    state = loader.state_dict()
    return state["epoch"], state["batch"]


def test_what_forgets_an_epoch_that_was_left() -> None:
    loader = make()
    go_on: list[tuple[Callable[[], object], tuple[int, int]]] = [
        (lambda: None, (0, 2)),
        (lambda: list(loader.batches(7)), (0, 2)),  # a pass over the data does not touch the position
        (lambda: loader.set_selection(HALF), (1, 0)),
        (lambda: loader.set_epoch(5, 1), (5, 1)),
        (lambda: (batches := loader.batches(7), loader.set_epoch(6), next(batches)), (6, 0)),
        (lambda: list(loader), (2, 0)),
    ]
    for after_leaving, expected in go_on:
        loader.set_epoch(0)
        leave(loader, 2, "break")
        after_leaving()
        assert where(loader) == expected
    loader.set_epoch(0)
    leave(loader, 2, "break")
    with pytest.raises(UserError, match="twice"):
        loader.set_selection([1, 1])
    assert where(loader) == (0, 2)


def test_another_epoch_supersedes_one_that_runs() -> None:
    """Defect: the state led back into the epoch that was left, once its iterator was gone."""
    loader = make()
    batches = iter(loader)
    next(batches)
    loader.set_epoch(5)
    assert where(loader) == (0, 1)
    next(batches)
    assert where(loader) == (0, 2)
    del batches
    assert where(loader) == (5, 0)
    leave(loader, 1, "break")
    assert where(loader) == (5, 1)


def test_a_due_selection_supersedes_an_epoch_that_runs() -> None:
    """Defect: as above, where begin_epoch selects for the next epoch."""
    loader = make(Coloured(change=torch_data.position))
    pruner = Pruner(loader, None, "random", keep=0.5, period=1, epochs=4)
    pruner.begin_epoch(0, torch.nn.Identity())
    batches = iter(loader)
    next(batches)
    pruner.begin_epoch(1, torch.nn.Identity())
    assert where(loader) == (0, 1)
    del batches
    assert where(loader) == (1, 0)


def test_an_epoch_that_failed_is_resumed_at_the_batch_that_failed(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    loader = make(Fails(str(flag), kill=False), shuffle=False)
    flag.touch()
    with pytest.raises(OSError, match="cannot read sample 100"):
        served(loader)
    assert where(loader) == (0, 100 // BATCH)


def test_a_selection_exchanged_before_an_epoch_is_left() -> None:
    loader, resumed = make(), make()
    for number, _ in enumerate(loader, 1):
        if number == 2:
            loader.set_selection(HALF)
            break
    resumed.load_state_dict(loader.state_dict())
    assert served(resumed) == served(make())[2:]
    np.testing.assert_array_equal(resumed.selection, HALF)


def test_a_pruner_resumes_an_epoch_that_was_left() -> None:
    def start() -> tuple[TorchLoader, Pruner]:
        loader = make(Coloured(change=torch_data.position))
        return loader, Pruner(loader, None, "random", keep=0.5, period=2, epochs=4)

    def run(loader: TorchLoader, pruner: Pruner, stop_at: int) -> list[list[int]]:
        found = []
        for epoch in range(loader.next_epoch, 4):
            pruner.begin_epoch(epoch, SmallNet())
            for _, _, ids in loader:
                found.append(ids.tolist())
                if len(found) == stop_at:
                    return found
        return found

    whole = run(*start(), 100)
    for stop_at in range(1, len(whole)):
        loader, pruner = start()
        assert run(loader, pruner, stop_at) == whole[:stop_at]
        resumed_loader, resumed = start()
        resumed.load_state_dict(pruner.state_dict())
        assert run(resumed_loader, resumed, 100) == whole[stop_at:]


def test_a_state_of_other_settings_is_refused() -> None:
    state = make().state_dict()
    loader = make(seed=4)
    with pytest.raises(UserError, match=r"seed 3, but the Coloured is loaded with 4"):
        loader.load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_may_be_left_and_a_newer_one_ends_it(workers: int) -> None:
    loader, expected = make(num_workers=workers), served(make())
    for _ in loader:
        break
    loader.set_epoch(0)
    old = iter(loader)
    next(old)
    loader.set_epoch(0)
    assert served(loader) == expected
    with pytest.raises(RuntimeError, match="this epoch was closed"):
        next(old)
    loader.set_epoch(0)
    done = iter(loader)
    assert len(list(done)) == len(expected)
    with pytest.raises(StopIteration):
        next(done)


class Fails(Coloured):
    """Cannot read one sample, or ends the worker that reads it, once."""

    def __init__(self, flag: str, kill: bool) -> None:
        super().__init__(change=torch_data.position)
        self.flag, self.kill = flag, kill

    def __getitem__(self, i: int) -> Any:
        if i == 100 and os.path.exists(self.flag):
            os.unlink(self.flag)
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError("cannot read sample 100")
        return super().__getitem__(i)


@pytest.mark.parametrize(
    ("kill", "workers", "message"),
    [(False, 0, "cannot read sample 100"), (False, 2, "cannot read sample 100"), (True, 2, "exited unexpectedly")],
)
def test_after_a_failure_the_next_epoch_is_whole(kill: bool, workers: int, message: str, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    loader = make(Fails(str(flag), kill), num_workers=workers)
    expected = served(loader)
    flag.touch()
    loader.set_epoch(0)
    with pytest.raises((OSError, RuntimeError), match=message):
        served(loader)
    loader.set_epoch(0)
    assert served(loader) == expected


def test_labels_are_what_the_data_set_states() -> None:
    with_targets = WithTargets()
    labels = make(with_targets).labels
    assert labels is not None and labels.dtype == np.int64
    np.testing.assert_array_equal(labels, with_targets.classes)
    assert make(with_targets).label_range == (0, 9)
    np.testing.assert_array_equal(make(Subset(with_targets, HALF.tolist())).labels, with_targets.classes[HALF])


def test_labels_that_are_not_stated_take_one_pass() -> None:
    reads: list[int] = []

    def counted(image: Tensor, label: int, i: int) -> Any:
        reads.append(i)
        return image, label

    dataset = Coloured(change=counted)
    loader = make(dataset)
    loader.set_selection(HALF)
    assert loader.label_range is None and not reads
    np.testing.assert_array_equal(loader.labels, dataset.classes)
    assert loader.labels is not None and sorted(reads) == list(range(N))
    assert loader.next_epoch == 0
    np.testing.assert_array_equal(loader.selection, HALF)


@pytest.mark.parametrize("workers", [0, 2])
def test_labels_are_read_while_an_epoch_is_running(workers: int) -> None:
    dataset = Coloured(change=torch_data.position)
    loader = make(dataset, num_workers=workers)
    expected = served(loader)
    loader.set_epoch(0)
    epoch = iter(loader)
    first = [next(epoch)]
    np.testing.assert_array_equal(loader.labels, dataset.classes)
    assert [batch[-1].tolist() for batch in [*first, *epoch]] == expected


def test_a_pruner_that_needs_no_labels_reads_none() -> None:
    """Defect: it compared those of both loaders, and made a pass over each for it."""
    reads: list[int] = []

    def counted(image: Tensor, label: int, i: int) -> Any:
        reads.append(i)
        return image, label

    Pruner(make(Coloured(change=counted)), score_loader(Coloured(change=counted)), "ucb", epochs=4)
    assert not reads
    Pruner(make(Coloured(change=counted)), score_loader(Coloured()), "ucb", epochs=4, class_floor=0.5)
    assert sorted(reads) == list(range(N))
    other = WithTargets()
    other.targets = other.targets[::-1]
    with pytest.raises(UserError, match="other labels"):
        Pruner(make(WithTargets()), score_loader(other), "ucb", epochs=4)


class Changed(WithTargets):
    """Serves other labels than its targets say, as torchvision's data sets do with a target_transform."""

    target_transform = abs

    def __getitem__(self, i: int) -> Any:
        return self.images[i], 3


def test_labels_are_those_that_are_served() -> None:
    np.testing.assert_array_equal(make(Changed()).labels, np.full(N, 3))
    both = ConcatDataset([WithTargets(100), Coloured(50)])
    np.testing.assert_array_equal(make(both).labels, [both[i][1] for i in range(150)])


@pytest.mark.parametrize("targets", [torch.rand(N), torch.rand(N, 4), torch.zeros(N, 2, dtype=torch.int64)])
def test_targets_that_are_no_classes_are_no_labels(targets: Tensor) -> None:
    assert make(TensorDataset(Coloured().images, targets)).labels is None


class NoLength:
    def __getitem__(self, i: int) -> int:
        return i


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        yield from range(100)


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (NoLength(), {}, "NoLength has no length: give it __len__"),
        ("train.beton", {}, "train.beton is a path: TorchLoader takes a data set"),
        (Stream(), {}, "Stream is iterable.*map-style"),
        ({1, 2}, {}, "set has no __getitem__"),
        ([], {}, "list is empty"),
        (DataLoader(Coloured()), {}, r"this is a DataLoader.*TorchLoader.like\(loader\)"),
        (None, {"sampler": range(5)}, "sampler: the loader has an order of its own.*set_selection"),
        (None, {"batch_sampler": [[1]]}, "batch_sampler: the loader has an order of its own"),
        (None, {"generator": torch.Generator()}, "generator.*pass seed"),
        (None, {"num_worker": 2}, 'no option "num_worker"'),
        (None, {"pin_memry": True}, 'no option "pin_memry"; did you mean "pin_memory"'),
        (None, {"batch_size": 0}, "batch_size is 0: it must be at least 1"),
        (None, {"num_workers": -1}, "num_workers is -1: it must be at least 0"),
        (None, {"seed": -1}, "seed is -1"),
        (None, {"batch_size": "16"}, "batch_size is '16': it must be a whole number"),
        (None, {"batch_size": 2.5}, "batch_size is 2.5: it must be a whole number"),
        (None, {"num_workers": None}, "num_workers is None: it must be a whole number"),
        (None, {"num_workers": 0, "prefetch_factor": 4}, "prefetch_factor needs workers: give num_workers of 1"),
        (None, {"num_workers": 0, "persistent_workers": True}, "persistent_workers needs workers"),
        (None, {"batch_size": 204}, "203 samples do not fill one batch of 204"),
        (None, {"distributed": True}, "distributed=True needs torch.distributed.init_process_group"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(dataset: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        make(dataset, **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("shuffle", [True, False])
def test_one_is_made_like_a_loader_of_torch(shuffle: bool) -> None:
    torchs = DataLoader(
        Coloured(change=torch_data.position), BATCH, shuffle, num_workers=1, drop_last=True, collate_fn=default_collate
    )
    loader = TorchLoader.like(torchs, seed=3, with_ids=True)
    assert served(loader) == served(make(shuffle=shuffle))
    assert loader.dataset is torchs.dataset and loader.collate_fn is torchs.collate_fn and loader.num_workers == 1
    assert TorchLoader.like(torchs, batch_size=4).batch_size == 4


@pytest.mark.parametrize("options", [{}, {"persistent_workers": True, "timeout": 5, "prefetch_factor": 4}])
def test_one_is_made_like_it_without_workers(options: dict[str, Any]) -> None:
    """Defect: options of the workers stayed, and torch refused them at the first batch."""
    torchs = DataLoader(
        Coloured(change=torch_data.position), BATCH, num_workers=2, multiprocessing_context="fork", **options
    )
    expected = served(make(shuffle=False, drop_last=False))
    assert served(TorchLoader.like(torchs, num_workers=0, with_ids=True)) == expected
    kept = TorchLoader.like(torchs, num_workers=1, with_ids=True)
    assert served(kept) == expected
    assert kept._loader is not None and kept._loader.prefetch_factor == torchs.prefetch_factor


def samplers() -> Iterator[tuple[dict[str, Any], str]]:
    data = Coloured()
    yield {"sampler": WeightedRandomSampler([1.0] * N, N)}, "WeightedRandomSampler"
    yield {"sampler": RandomSampler(data, replacement=True)}, "RandomSampler"
    yield {"sampler": RandomSampler(data, num_samples=50)}, "RandomSampler"
    yield {"batch_sampler": [[0, 1]]}, "list"
    # Defect: it was served whole, with the samples that the loader left out.
    of_a_part: list[Sampler[int]] = [RandomSampler(range(100)), SequentialSampler(range(100))]
    of_a_part.append(DistributedSampler(range(100), num_replicas=1, rank=0))  # type: ignore[arg-type]
    for sampler in of_a_part:
        yield {"sampler": sampler}, type(sampler).__name__


@pytest.mark.parametrize(("options", "name"), list(samplers()))
def test_a_sampler_of_the_users_own_is_refused(options: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError, match=f"draws from a {name}, and a TorchLoader has an order of its own"):
        TorchLoader.like(DataLoader(Coloured(), **options))


def test_a_data_set_in_place_of_its_loader_is_refused() -> None:
    with pytest.raises(UserError, match=r"of type Coloured: give a torch DataLoader"):
        TorchLoader.like(Coloured())  # type: ignore[arg-type]


def test_a_loader_that_makes_no_batches_is_refused() -> None:
    with pytest.raises(UserError, match="makes no batches: give it a batch_size"):
        TorchLoader.like(DataLoader(Coloured(), batch_size=None))


def drop_one(samples: list[Any]) -> Any:
    return default_collate(samples[1:])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_collate_function_that_drops_samples_is_refused(workers: int) -> None:
    with pytest.raises(UserError, match=r"collate_fn made 15 rows of 16 samples.*keep each"):
        next(iter(make(collate_fn=drop_one, num_workers=workers)))


def many_features(image: Tensor, label: int, i: int) -> Any:
    return image.flatten()[:BATCH].float(), label


@pytest.mark.parametrize(
    "change", [torch_data.plain, torch_data.named, torch_data.unlabelled, torch_data.position, many_features]
)
def test_dropped_samples_are_noticed_in_any_batch(change: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"collate_fn made 15 rows of 16 samples.*keep each"):
        next(iter(make(Coloured(change=change), collate_fn=drop_one)))


def time_major(samples: list[Any]) -> tuple[Tensor, Tensor]:
    return torch.stack([image.flatten()[:7] for image, _ in samples], 1), torch.tensor([y for _, y in samples])


def time_major_throughout(samples: list[Any]) -> tuple[Tensor, Tensor]:
    sequences, _ = time_major(samples)
    return sequences, sequences.roll(-1, 0)


def time_major_alone(samples: list[Any]) -> Tensor:
    return time_major(samples)[0]


def named_time_major(samples: list[Any]) -> dict[str, Tensor]:
    sequences, labels = time_major(samples)
    return {"input_ids": sequences, "labels": labels}


def concatenated(samples: list[Any]) -> list[Tensor]:
    return [torch.zeros(99, 5), torch.zeros(42), torch.full((len(samples),), 2)]


@pytest.mark.parametrize(
    "collate", [time_major, time_major_throughout, time_major_alone, named_time_major, concatenated]
)
def test_the_inputs_need_not_have_a_row_for_each_sample(collate: Callable[[list[Any]], Any]) -> None:
    """Defect: the rows of the first tensor were taken for the samples."""
    assert len(list(make(Coloured(), collate_fn=collate, drop_last=False))) == -(-N // BATCH)


def with_ids_of_its_own(image: Tensor, label: int, i: int) -> Any:
    return {"image": image, "ids": i}


def test_an_entry_called_ids_is_not_overwritten() -> None:
    with pytest.raises(UserError, match='"ids" of their own'):
        next(iter(make(Coloured(change=with_ids_of_its_own))))


def score_loader(dataset: Dataset[Any], **options: Any) -> TorchLoader:
    return make(dataset, batch_size=50, shuffle=False, drop_last=False, with_ids=False, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_scores_are_the_losses_by_position(workers: int) -> None:
    model, data = SmallNet().eval(), Coloured()
    found = score_dataset(model, score_loader(data, num_workers=workers), amp_dtype=None)
    with torch.no_grad():
        expected = F.cross_entropy(model(data.images), torch.from_numpy(data.classes), reduction="none")
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4)
    some = score_dataset(model, score_loader(data, num_workers=workers), amp_dtype=None, ids=HALF)
    np.testing.assert_allclose(some[HALF], expected.numpy()[HALF], rtol=1e-4)
    assert np.isnan(some[1::2]).all()


def test_vectors_are_scored_as_images_are() -> None:
    vectors, labels = torch.randn(N, 5), torch.arange(N) % 3
    model = torch.nn.Linear(5, 3)
    found = score_dataset(model, score_loader(TensorDataset(vectors, labels)), amp_dtype=None)
    expected = F.cross_entropy(model(vectors), labels, reduction="none")
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4)


def test_a_batch_whose_samples_come_second_is_not_scored() -> None:
    """Defect: the error was torch's, and named neither the layout nor the collate function."""
    with pytest.raises(UserError, match=r"a batch of 50 samples have 7 rows: .*must come first.* collate_fn"):
        score_dataset(SmallNet(), score_loader(Coloured(), collate_fn=time_major), amp_dtype=None)


def test_a_batch_without_a_tensor_of_inputs_is_not_scored() -> None:
    with pytest.raises(UserError, match="inputs are a dict, not a tensor"):
        score_dataset(SmallNet(), score_loader(Coloured(change=torch_data.named)))


def test_stated_labels_beyond_the_model_are_refused() -> None:
    with pytest.raises(UserError, match="labels run from 0 to 9, but the model has 4 classes"):
        score_dataset(SmallNet(classes=4), score_loader(WithTargets()))


def shifted(image: Tensor, label: int, i: int) -> Any:
    return image, label - 1


def of_late_classes(image: Tensor, label: int, i: int) -> Any:
    return image, label if i > 100 else 0


@pytest.mark.parametrize("device", BOTH)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (torch_data.plain, "^the labels run from 0 to 9, but the model has 5 classes: give it at least 10 outputs, "),
        (of_late_classes, "^the labels run from 0 to 9, but the model has 5 classes: give it at least 10 outputs, "),
        (shifted, "^the labels run from -1 to 8, but the model has 5 classes: number the classes from 0$"),
    ],
)
def test_labels_beyond_the_model_that_are_not_stated_are_refused(
    change: Callable[..., Any], message: str, device: str
) -> None:
    """Defect: the error was torch's, "Target 5 is out of bounds."; on a GPU it ends the process's use of it."""
    with pytest.raises(UserError, match=message):
        score_dataset(SmallNet(classes=5).to(device), score_loader(Coloured(change=change)))


def some_ignored(image: Tensor, label: int, i: int) -> Any:
    return image, label if i >= 60 and i % 3 else -100


def test_labels_that_the_loss_ignores_are_scored() -> None:
    """A batch of none but these, and others with some."""
    found = score_dataset(SmallNet(), score_loader(Coloured(change=some_ignored)), amp_dtype=None)
    assert (found[:60] == 0).all() and (found[61::3] > 0).all()


def test_labels_on_a_device_are_not_looked_at() -> None:
    """It would have to be waited for, in each batch."""
    assert forward._label_range(torch.arange(3)) == (0, 2)
    assert forward._label_range(torch.arange(3, device="meta")) is None
    assert forward._label_range(torch.ones(3)) is None


class Caches(Coloured):
    """Keeps what it has computed, as data sets in memory do."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, Tensor] = {}

    def __getitem__(self, i: int) -> Any:
        if i not in self.kept:
            self.kept[i] = self.images[i].float() @ torch.eye(8)
        return self.kept[i], int(self.classes[i])


def test_what_a_data_set_keeps_from_a_scoring_pass_can_be_trained_on() -> None:
    data, model = Caches(), SmallNet()
    score_dataset(model, score_loader(data), amp_dtype=torch.bfloat16)
    assert all(kept.dtype == torch.float32 and not kept.is_inference() for kept in data.kept.values())
    images, labels, _ = next(iter(make(data)))
    F.cross_entropy(model(images), labels).backward()


GUARDS: list[tuple[str, dict[str, Any]]] = [
    ("ucb", {"random_share": 0.3}),
    ("ucb", {"loss_cap": 0.1}),
    ("ucb", {"class_floor": 0.7}),
    ("random", {"class_floor": 1, "loss_cap": 0.1}),
    ("ucb", {"score_source": "both"}),
    ("ema", {"score_source": "training", "warmup": 1, "warmup_mode": "full"}),
    ("ucb", {"score_budget": 0.4}),
    ("ucb", {"final": 1, "final_mode": "full"}),
    ("orderdp", {"max_age": 2}),
    ("uncertainty", {"null": True}),
]


@pytest.mark.parametrize(("name", "parameters"), [*((name, {}) for name in methods.PRESETS), *GUARDS])
def test_every_method_trains_on_it(name: str, parameters: dict[str, Any]) -> None:
    known = methods.PRESETS[name].parameters
    parameters = {key: value for key, value in {"keep": 0.5, "period": 1}.items() if key in known} | parameters
    loader, plain = make(Coloured()), score_loader(Coloured())
    scores = proxy = None
    if methods.PRESETS[name].source.by_proxy:
        net = SmallNet()
        proxy = Proxy(net, torch.optim.SGD(net.parameters(), lr=0.05))
        plain, parameters = make(Coloured(), batch_size=64, drop_last=False), parameters | {"window": 64}
    method = methods.build(name, **parameters)
    if "scores" in known:
        scores = np.random.default_rng(0).random((3, N))
    pruner = Pruner(loader, plain, method, epochs=4, scores=scores, proxy=proxy)
    model = SmallNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    steps = 0
    for epoch in range(4):
        pruner.begin_epoch(epoch, model)
        model.train()
        batches = len(loader)
        for images, labels, ids in loader:
            assert np.isin(ids, loader.selection).all()
            batches -= 1
            chosen = pruner.choose(model, images, labels, ids)
            if chosen is None:
                continue
            images, labels, ids = chosen
            outputs = model(images)
            losses = F.cross_entropy(outputs, labels, reduction="none")
            pruner.batch_loss(losses, ids, outputs, labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
        assert batches == 0
    assert steps <= pruner.total_steps()
    if method.prunes:
        assert pruner.state.selection is not None
        np.testing.assert_array_equal(loader.selection, pruner.state.selection.ids)


def test_a_method_that_takes_training_losses_needs_ids() -> None:
    with pytest.raises(UserError, match="with_ids=True"):
        Pruner(make(with_ids=False), None, "infobatch", epochs=4)


RANKS = """
import sys
import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from ffcv_prune import Pruner, TorchLoader, score_dataset
from tests.nets import SmallNet
from tests.torch_data import Coloured

dist.init_process_group("gloo")
world = dist.get_world_size()

def gather(own):
    every = [None] * world
    dist.all_gather_object(every, own)
    return every

def make(distributed, **options):
    batch = options.pop("batch", 24) // (world if distributed else 1)
    return TorchLoader(Coloured(), batch, num_workers=1, with_ids=True, distributed=distributed, **options)

shared, whole = make(True), make(False)
assert (shared.rank, shared.world_size) == (dist.get_rank(), world)
for selection in (None, np.arange(0, 203, 2)):
    shared.set_selection(selection), whole.set_selection(selection)
    assert len(shared) == len(whole)
    parts = gather([ids.tolist() for _, _, ids in shared])
    for together, alone in zip(zip(*parts, strict=True), whole, strict=True):
        assert sorted(i for part in together for i in part) == sorted(alone[2].tolist())
torchs = DataLoader(Coloured(), 12, sampler=DistributedSampler(range(203)), drop_last=True)
like = TorchLoader.like(torchs, with_ids=True)
shared.set_selection(None), shared.set_epoch(0)
assert [ids.tolist() for _, _, ids in like] == [ids.tolist() for _, _, ids in shared]
plain = make(True, batch=50, shuffle=False, drop_last=False)
alone = make(False, batch=50, shuffle=False, drop_last=False)
assert sum(gather(sum(len(labels) for _, labels, _ in plain))) == 203
losses = score_dataset(SmallNet(), plain, amp_dtype=None)
assert all((other == losses).all() for other in gather(losses))
np.testing.assert_allclose(losses, score_dataset(SmallNet(), alone, amp_dtype=None), rtol=1e-4)
pruner = Pruner(shared, plain, "ucb", keep=0.5, period=1, epochs=1)
swap = pruner.begin_epoch(0, SmallNet())
assert all((other == swap.ids).all() for other in gather(swap.ids))
if dist.get_rank() == 0:
    print("all checks passed")
dist.destroy_process_group()
"""


def test_ranks_share_an_epoch_and_a_scoring_pass(tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "ranks.py")], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.stdout == "all checks passed\n", done.stderr
