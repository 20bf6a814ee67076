"""The arguments of a `PrunedLoader`, as the loader works with them. What they may not be is refused in one line."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numba

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numpy as np
import torch
from ffcv.fields.base import Field
from ffcv.loader import OrderOption
from ffcv.pipeline import PipelineSpec
from ffcv.pipeline.operation import Operation
from numpy.typing import NDArray

from ffcv_prune.data.beton import BetonInfo, CustomFields
from ffcv_prune.errors import UserError, nearest
from ffcv_prune.loading.order import validate_ids
from ffcv_prune.loading.selectable import whole

Pipeline: TypeAlias = Sequence[Any] | PipelineSpec | None


def file_path(fname: Any) -> Path:
    if not isinstance(fname, str | os.PathLike) or isinstance(os.fspath(fname), bytes):
        raise UserError(f"fname is {reprlib.repr(fname)}: pass the path of a .beton file")
    return Path(fname)


def check_flags(**flags: Any) -> None:
    for name, value in flags.items():
        if not isinstance(value, int | np.bool_):  # ffcv-imagenet passes 0 and 1
            raise UserError(f"{name} is {reprlib.repr(value)}: it must be True or False")


def refuse_unsupported(os_cache: Any, order_kwargs: Any) -> None:
    check_flags(os_cache=os_cache)
    if not os_cache:
        raise UserError("os_cache=False, a cache in the process, is not supported: leave os_cache out, or pass True")
    if order_kwargs is not None and not (isinstance(order_kwargs, Mapping) and len(order_kwargs) == 0):
        raise UserError("order_kwargs belong to a TraversalOrder, which is not supported: use set_selection")


def shuffles(order: Any, shuffle: Any) -> bool:
    """Whether each epoch has a permutation of its own, by FFCV's `order` or, in its place, by `shuffle`."""
    if shuffle is not None:
        check_flags(shuffle=shuffle)
    if order is None:
        return bool(shuffle)
    if order is not OrderOption.RANDOM and order is not OrderOption.SEQUENTIAL:
        name = order if isinstance(order, OrderOption) else getattr(order, "__name__", reprlib.repr(order))
        raise UserError(
            f"order {name} is not supported: use OrderOption.RANDOM, OrderOption.SEQUENTIAL or set_selection"
        )
    if shuffle not in (None, order is OrderOption.RANDOM):
        raise UserError(f"shuffle={shuffle} contradicts order={order}: pass one of them")
    return order is OrderOption.RANDOM


def positions(indices: Any, num_samples: int) -> NDArray[np.int64] | None:
    """int64[m]: FFCV's `indices`, any whole numbers, in the order given. UserError as for a selection."""
    if indices is None:
        return None
    try:
        array = np.asarray(indices)
        array = array.astype(np.int64) if array.dtype.kind in "iu" else array
        validate_ids(array, num_samples)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"indices: {error}") from None
    return array.copy()


def check_custom_fields(custom_fields: Any) -> CustomFields:
    """FFCV's `custom_fields`; empty for None."""
    if custom_fields is None:
        return {}
    if not isinstance(custom_fields, Mapping):
        raise UserError(f"custom_fields is {reprlib.repr(custom_fields)}: pass a dict, from a field to its class")
    for name, field in custom_fields.items():
        if not (isinstance(field, type) and issubclass(field, Field)):
            raise UserError(f'custom_fields has {reprlib.repr(field)} for "{name}": pass the class, made from Field')
    return custom_fields


def copied_pipelines(pipelines: Any, info: BetonInfo) -> dict[str, Pipeline]:
    """Pipelines that FFCV may change: it pops the decoder from the list it is given."""
    if pipelines is None:
        return {}
    if not isinstance(pipelines, Mapping):
        raise UserError(f"pipelines is {reprlib.repr(pipelines)}: pass a dict, from a field to a list of operations")
    return {name: _copied(name, pipeline, info) for name, pipeline in pipelines.items()}


def _copied(name: Any, pipeline: Any, info: BetonInfo) -> Pipeline:
    source = pipeline.source if isinstance(pipeline, PipelineSpec) else name
    if not isinstance(name, str) or not isinstance(source, str | Operation):
        raise UserError(f"pipelines names {reprlib.repr(source)}, no field of {info.path}: pass a dict of names")
    if isinstance(source, str) and source not in info.fields:
        raise UserError(f'pipelines names "{source}", no field of {info.path}{nearest(source, info.fields)}')
    if pipeline is None:
        return None
    if isinstance(pipeline, PipelineSpec):
        _check_operations(name, [pipeline.decoder] if pipeline.decoder is not None else [])
        _check_operations(name, pipeline.transforms)
        return PipelineSpec(source, pipeline.decoder, list(pipeline.transforms))
    if not isinstance(pipeline, Sequence) or isinstance(pipeline, str | bytes):
        raise UserError(f'pipelines has {reprlib.repr(pipeline)} for "{name}": pass a list of operations, or None')
    _check_operations(name, pipeline)
    return list(pipeline)


def _check_operations(name: str, operations: Iterable[Any]) -> None:
    for operation in operations:
        if isinstance(operation, type):
            raise UserError(f'the pipeline of "{name}" has a class: write {operation.__name__}(…), an object of it')
        if not isinstance(operation, Operation | torch.nn.Module):
            kind = reprlib.repr(operation)
            raise UserError(f'the pipeline of "{name}" has {kind}: pass operations of FFCV, or torch modules')


def usable_cores() -> int:
    """Cores that this process may use, for its loader's threads too."""
    return min(len(os.sched_getaffinity(0)), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]


def usable_workers(num_workers: Any) -> int:
    """As many threads as asked for; all cores where that is less than one, as in FFCV."""
    cores = usable_cores()
    asked = whole("num_workers", num_workers, -(2**63))
    if asked > cores:
        raise UserError(f"num_workers is {asked}, but this process may use {cores} cores: pass -1 for all of them")
    return asked if asked > 0 else cores
