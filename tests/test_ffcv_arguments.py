"""The arguments of FFCV's `Loader`, by place and by name."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline import PipelineSpec
from ffcv.traversal_order import Sequential

from ffcv_prune import PrunedLoader
from ffcv_prune.errors import UserError
from tests.betons import Beton


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
    indices = np.arange(7, 60, 3, dtype=np.uint64)
    loader = PrunedLoader(
        fname=str(beton.path),
        batch_size=8,
        os_cache=True,
        order=OrderOption.SEQUENTIAL,
        indices=indices,
        drop_last=False,
        recompile=True,
        order_kwargs={},
        with_ids=True,
    )
    assert served(loader) == indices.tolist()
    assert (loader.rank, loader.world_size, loader.shuffle, loader.drop_last) == (0, 1, False, False)
    code = loader.code
    loader.set_selection(np.arange(5))
    assert served(loader) == [0, 1, 2, 3, 4]
    assert loader.code is not code
    loader.set_selection(None)
    assert served(loader) == loader.selection.tolist() == indices.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"os_cache": False}, "os_cache=False"),
        ({"order": OrderOption.QUASI_RANDOM}, "QUASI_RANDOM is not supported: use"),
        ({"order": Sequential}, "Sequential is not supported: use"),
        ({"order_kwargs": {"a": 1}}, "use set_selection"),
        ({"order": OrderOption.RANDOM, "shuffle": False}, "contradicts"),
        ({"order": OrderOption.SEQUENTIAL, "shuffle": True}, "contradicts"),
        ({"indices": [0, 10**6]}, "outside"),
        ({"indices": [0.5]}, "int64"),
        ({"pipelines": {"lable": None}}, '"lable", no field of .*label'),
        ({"pipelines": {"second": PipelineSpec("imagee")}}, '"imagee", no field of .*image'),
    ],
)
def test_what_cannot_be_honoured_is_one_line(beton: Beton, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        PrunedLoader(beton.path, 8, **options)
    assert "\n" not in str(caught.value)
