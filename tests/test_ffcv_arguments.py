"""The arguments of FFCV's `Loader`, by place and by name."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import ffcv
import ffcv.loader
import numpy as np
import pytest
import torch
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline import PipelineSpec
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State
from ffcv.transforms import (
    Convert,
    NormalizeImage,
    RandomHorizontalFlip,
    Squeeze,
    ToDevice,
    ToTensor,
    ToTorchImage,
    View,
)
from ffcv.traversal_order import Sequential

from ffcv_prune import PrunedLoader
from ffcv_prune.errors import UserError
from tests import ffcv_suite
from tests.betons import Beton

IMAGE, LABEL = SimpleRGBImageDecoder(), IntDecoder()


def served(loader: PrunedLoader) -> list[int]:
    return torch.cat([batch[-1] for batch in loader]).tolist()


def test_ffcv_arguments_have_ffcvs_places_and_defaults(beton: Beton) -> None:
    ours = inspect.signature(PrunedLoader).parameters.values()
    positional = [each.name for each in ours if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    ffcvs = list(inspect.signature(Loader).parameters)
    assert positional in (ffcvs, [*ffcvs, "order_kwargs"])  # which FFCV has in its repository, not yet in 1.0.2
    loader = PrunedLoader(str(beton.path), 8, 1, True, OrderOption.RANDOM, False, 5, np.arange(20), {"image": None})
    assert (loader.num_workers, loader.shuffle, loader.seed, loader.selection.size) == (1, True, 5, 20)
    (labels,) = next(iter(loader))
    np.testing.assert_array_equal(labels[:, 0], beton.labels[loader.traversal_order.sample_order(0)[:8]])
    assert not PrunedLoader(beton.path, 8).shuffle


def test_ffcv_arguments_mean_what_they_mean_in_ffcv(beton: Beton) -> None:
    indices = np.array([90, 7, 60, 33, 8, 5, 101, 102, 4, 3], dtype=np.uint64)
    options: dict[str, Any] = {"batch_size": 4, "num_workers": 1, "os_cache": True, "order": OrderOption.SEQUENTIAL}
    options |= {"indices": indices, "drop_last": False, "recompile": True, "pipelines": {"label": None}}
    loader = PrunedLoader(str(beton.path), order_kwargs={}, with_ids=True, **options)
    stock = Loader(str(beton.path), **options)
    assert len(loader) == len(stock) == 3
    np.testing.assert_array_equal(loader.indices, stock.indices)
    np.testing.assert_array_equal(PrunedLoader(beton.path, 8).indices, np.arange(203))
    for (images, ids), (expected,) in zip(loader, stock, strict=True):
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(images, beton.images[ids])
    assert served(loader) == indices.tolist()
    assert (loader.rank, loader.world_size, loader.shuffle, loader.drop_last) == (0, 1, False, False)
    code = loader.code
    loader.set_selection([4, 7, 33, 60])
    assert served(loader) == [7, 60, 33, 4]
    assert loader.code is not code
    loader.set_selection(None)
    assert loader.selection.tolist() == sorted(indices.tolist())
    assert served(loader) == indices.tolist()


def test_a_selection_stays_within_the_indices(beton: Beton) -> None:
    """Or a method would train on what the user held back."""
    loader = PrunedLoader(beton.path, 8, indices=range(100), drop_last=False, shuffle=True, with_ids=True)
    assert sorted(served(loader)) == list(range(100))
    for refuse in (loader.set_selection, lambda ids: loader.batches(0, ids)):
        with pytest.raises(
            UserError, match=r"id 100 is not among the loader's indices \(2 of 3 are not\): select from"
        ):
            refuse(np.array([7, 100, 150]))
    assert sorted(torch.cat([batch.ids for batch in loader.batches(0)]).tolist()) == list(range(100))


@pytest.mark.parametrize("order", [OrderOption.SEQUENTIAL, OrderOption.RANDOM])
def test_resuming_with_indices(beton: Beton, order: OrderOption) -> None:
    def build(indices: Any) -> PrunedLoader:
        return PrunedLoader(beton.path, 8, indices=indices, order=order, drop_last=False, with_ids=True)

    indices = np.random.default_rng(0).permutation(203)[:60]
    loader, again = build(indices), build(indices)
    epoch = iter(loader)
    for _ in range(3):
        next(epoch)
    again.load_state_dict(loader.state_dict())
    rest = [batch[-1].tolist() for batch in epoch]
    assert [batch[-1].tolist() for batch in again] == rest
    assert served(again) == served(loader)
    loader.set_selection(indices[:20])
    again.load_state_dict(loader.state_dict())
    assert served(again) == served(loader)
    for other in (None, indices[::-1], indices[:-1]):
        with pytest.raises(UserError, match=r"the loader's state has indices .*, but .* is loaded with"):
            build(other).load_state_dict(loader.state_dict())


def test_no_seed_is_one_of_chance_as_in_ffcv(beton: Beton) -> None:
    first, second = (PrunedLoader(beton.path, 8, seed=None, shuffle=True, with_ids=True) for _ in range(2))
    assert served(first) != served(second)


def test_more_batches_ahead_than_an_epoch_has(beton: Beton) -> None:
    loader = PrunedLoader(beton.path, 64, batches_ahead=2**60, drop_last=False, with_ids=True)
    assert served(loader) == list(range(203))
    assert loader.ring.slots == 4 + 2
    whole = PrunedLoader(beton.path, 2**60, drop_last=False, with_ids=True)
    assert served(whole) == list(range(203))


def test_buffers_that_find_no_room(beton: Beton) -> None:
    loader = PrunedLoader(beton.path, 64, pipelines={"image": [IMAGE, Huge(), ToTensor()]})
    with pytest.raises(UserError, match=r"batches of 64 samples find no room in memory .*: use a smaller batch_size"):
        iter(loader)


class Huge(Operation):
    """Wants more memory than any machine has."""

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        return previous_state, AllocationQuery((2**50,), np.dtype(np.uint8))

    def generate_code(self) -> Any:
        return lambda values, room: values


class Odd:
    """Something that no argument is."""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"os_cache": False}, "os_cache=False"),
        ({"os_cache": 0}, "os_cache=False"),
        ({"order": OrderOption.QUASI_RANDOM}, "QUASI_RANDOM is not supported: use"),
        ({"order": Sequential}, "Sequential is not supported: use"),
        ({"order": Odd()}, "order <.*> is not supported: use"),
        ({"order_kwargs": {"a": 1}}, "use set_selection"),
        ({"order": OrderOption.RANDOM, "shuffle": False}, "contradicts"),
        ({"order": OrderOption.SEQUENTIAL, "shuffle": True}, "contradicts"),
        ({"shuffle": "no"}, "shuffle is 'no': it must be True or False"),
        ({"drop_last": "false"}, "drop_last is 'false'"),
        ({"distributed": [1]}, r"distributed is \[1\]"),
        ({"distributed": True}, "start with torchrun"),
        ({"with_ids": np.zeros(3)}, "with_ids is array"),
        ({"batch_size": 0}, "batch_size is 0: it must be at least 1"),
        ({"batch_size": 2.5}, r"batch_size is 2\.5: it must be a whole number"),
        ({"batch_size": 2**70}, "fit into 64 bits"),
        ({"batches_ahead": 0}, "batches_ahead is 0: it must be at least 1"),
        ({"batches_ahead": None}, "batches_ahead is None"),
        ({"num_workers": "all"}, "num_workers is 'all'"),
        ({"num_workers": 10**6}, "may use"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1.0}, r"seed is 1\.0"),
        ({"indices": [0, 10**6]}, "indices: id 1000000 is outside"),
        ({"indices": [0.5]}, "indices: .*int64"),
        ({"indices": [[1], [2, 3]]}, "indices: "),
        ({"indices": []}, "indices: .*non-empty"),
        ({"indices": [3, 3]}, "indices: id 3 appears twice"),
        ({"indices": Odd()}, "indices: "),
        ({"fname": 5}, "fname is 5: pass the path"),
        ({"fname": b"train.beton"}, "fname is b'train.beton'"),
        ({"fname": "a\0b"}, "null character"),
        ({"fname": "x" * 5000}, "cannot read"),
        ({"fname": "/dev/null/x.beton"}, "cannot read"),
        ({"pipelines": {"lable": None}}, '"lable", no field of .*label'),
        ({"pipelines": {"second": PipelineSpec("imagee")}}, '"imagee", no field of .*image'),
        ({"pipelines": {"second": PipelineSpec(None)}}, "pipelines names None"),
        ({"pipelines": {5: None}}, "pipelines names 5, no field"),
        ({"pipelines": [ToTensor()]}, r"pipelines is \[.*: pass a dict"),
        ({"pipelines": {"image": "ToTensor"}}, "pipelines has 'ToTensor' for \"image\": pass a list"),
        ({"pipelines": {"image": [ToTensor]}}, r'pipeline of "image" has a class: write ToTensor\(…\)'),
        ({"pipelines": {"image": [lambda x: x]}}, 'pipeline of "image" has <function'),
        ({"pipelines": {"image": PipelineSpec("image", decoder=IntDecoder)}}, "write IntDecoder"),
    ],
)
def test_what_cannot_be_honoured_is_one_line(beton: Beton, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        PrunedLoader(**({"fname": beton.path, "batch_size": 8} | options))
    assert "\n" not in str(caught.value)


NORMALIZE = NormalizeImage(np.zeros(3), np.ones(3), np.float32)


@pytest.mark.parametrize(
    ("field", "operations", "message"),
    [
        ("image", [IMAGE, ToTensor(), ToTorchImage(), NORMALIZE], "NormalizeImage .* after ToTensor: put it"),
        ("image", [ToTensor(), Convert(torch.float16), RandomHorizontalFlip()], "RandomHorizontalFlip .* ToTensor"),
        ("image", [IMAGE, View(np.int8), RandomHorizontalFlip()], "RandomHorizontalFlip .* after View"),
        ("image", [IMAGE, ToTensor(), ToTensor()], "ToTensor works on NumPy arrays .* after ToTensor"),
        ("image", [IMAGE, torch.nn.ReLU(), ToTensor()], r"ReLU works on tensors .*: put ToTensor\(\) before it"),
        ("image", [IMAGE, ToTorchImage()], "ToTorchImage works on tensors"),
        ("image", [ToDevice(torch.device("cpu")), ToTensor()], "ToDevice works on tensors"),
        ("image", [ToTensor(), ToDevice("cpu")], r"ToDevice has 'cpu': write ToDevice\(torch.device\('cpu'\)\)"),
        ("image", [ToTensor(), ToDevice(torch.device("cuda", 99))], "ToDevice has cuda:99, but this process sees"),
        ("label", [LABEL, Squeeze(1), ToTensor()], "Squeeze works on tensors"),
        ("label", [IMAGE, ToTensor()], "SimpleRGBImageDecoder is not the first .* begin with a IntDecoder"),
        ("image", [IMAGE, IMAGE], "SimpleRGBImageDecoder is not the first"),
    ],
)  # fmt: skip
def test_an_operation_in_the_wrong_place_is_one_line(
    beton: Beton, field: str, operations: list[Any], message: str
) -> None:
    """FFCV's constructor loops for ever, or numba fails in a page when the first batch is decoded."""
    with pytest.raises(UserError, match=f'in the pipeline of "{field}", {message}') as caught:
        PrunedLoader(beton.path, 8, pipelines={field: operations})
    assert "\n" not in str(caught.value)


def test_one_operation_may_feed_two_outputs(beton: Beton) -> None:
    """FFCV's pipelines may begin at an operation of another one, and may be given decoder and transforms apart."""

    def pipelines() -> dict[str, Any]:
        whole = ToTensor()
        return {
            "image": [SimpleRGBImageDecoder(), whole],
            "label": PipelineSpec("label", IntDecoder(), [ToTensor()]),
            "as float": PipelineSpec(whole, transforms=[Convert(torch.float32)]),
        }

    options: dict[str, Any] = {"num_workers": 1, "os_cache": True}
    ours = PrunedLoader(beton.path, 8, pipelines=pipelines(), **options)
    stock = Loader(str(beton.path), 8, pipelines=pipelines(), **options)
    for outputs, expected in zip(ours, stock, strict=True):
        assert len(outputs) == 3
        for one, other in zip(outputs, expected, strict=True):
            assert torch.equal(one, other)
            assert one.dtype == other.dtype


def test_ffcvs_own_tests_get_our_loader(tmp_path: Path, beton: Beton, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ffcv, ffcv.loader):
        monkeypatch.setattr(module, "Loader", Loader)  # put back after the test
    monkeypatch.setattr(sys, "path", [*sys.path])
    files = [tmp_path / "tests" / f"test_{part}.py" for part in ffcv_suite.PARTS]
    files[0].parent.mkdir()
    for file in files[1:]:
        file.touch()
    with pytest.raises(SystemExit, match=r"test_basic_pipeline\.py does not exist: name a checkout of FFCV"):
        ffcv_suite.main(tmp_path)
    files[0].touch()
    given: list[str] = []
    monkeypatch.setattr(pytest, "main", given.extend)
    ffcv_suite.main(tmp_path, "-x")
    assert {str(file) for file in files} < set(given) and given[-1] == "-x"
    for module in (ffcv, ffcv.loader):
        assert isinstance(module.Loader(beton.path, 8, num_workers=999), PrunedLoader)
