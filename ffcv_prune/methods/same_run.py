"""What the parts of a run must share: its method, its samples and its state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffcv_prune.errors import UserError
from ffcv_prune.methods.rule import Ids
from ffcv_prune.methods.table import CERTAINTY

if TYPE_CHECKING:
    from ffcv_prune.methods.method import Method


def foundation(method: Method) -> tuple[Any, ...]:
    """What must not change within a run: how values come, what is remembered of them, and how batches are made."""
    columns = {column.name for part in method.active_parts for column in part.columns}
    return method.source, method.statistic, method.needs_values, columns, method.selector.fills_batches


def parameters(method: Method) -> dict[str, Any]:
    """The source of a method and its parameters. Not the name of a file of scores: their digest tells of them."""
    named = {name: value for name, value in method.values.items() if name != "scores"}
    return {"score_source": type(method.source).__name__.lower(), **named}


def with_parameters(method: Method, values: Mapping[str, Any]) -> Method:
    """The method with what `parameters` returned of another one of its source."""
    return method.replace(**{name: value for name, value in values.items() if name != "score_source"})


def of_another_run(name: str, stored: Any, own: Any) -> UserError:
    """For a state that differs from the run in what `name` says."""
    return UserError(
        f"the state has {name} {stored}, but this run has {name} {own}: "
        "resume with the data and settings that it was made with"
    )


def checked_groups(groups: ArrayLike | None, n: int) -> Ids | None:
    """The class of each of n samples as int64[n]; None: not given. UserError for other numbers."""
    if groups is None:
        return None
    labels = np.asarray(groups)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.size == 0 or labels.min() < 0:
        raise UserError("groups must be one class number ≥ 0 for each sample")
    if labels.size != n:
        raise UserError(f"{labels.size} groups for {n} samples: they are of other data")
    return np.ascontiguousarray(labels, dtype=np.int64)


def checked_facts(method: Method, size: int, **given: ArrayLike | None) -> dict[str, NDArray[Any]]:
    """The facts beside `size` losses as arrays [size]; UserError for one that is missing or does not fit."""
    facts = {name: np.asarray(values) for name, values in given.items() if values is not None}
    for name, values in facts.items():
        if values.shape != (size,):
            raise UserError(f"{name} has the shape {list(values.shape)} for {size} losses: give one value a loss")
    missing = [column.name for column in CERTAINTY if column.name not in facts]
    if method.needs_certainty and missing:
        raise UserError(
            f"method {method.name} needs {' and '.join(missing)} with the losses: "
            "record(ids, losses, correct=…, confidence=…), or batch_loss(losses, ids, outputs, targets)"
        )
    return facts
