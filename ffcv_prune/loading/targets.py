"""Which field of a data set holds the targets, and what task they make."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
from ffcv.fields import FloatField, IntField, NDArrayField
from ffcv.fields.base import Field
from ffcv.types import TYPE_ID_HANDLER

from ffcv_prune.data.beton import BetonInfo, require_labels
from ffcv_prune.errors import UserError
from ffcv_prune.sections import Train
from ffcv_prune.tasks import Classification, MultiLabel, Regression, Task

CLASSIFICATION, MULTI_LABEL, REGRESSION = "classification", "multi_label", "regression"
_KINDS: dict[str, tuple[type[Field], ...]] = {
    CLASSIFICATION: (IntField,),
    MULTI_LABEL: (NDArrayField,),
    REGRESSION: (FloatField, NDArrayField),
}


@dataclass(frozen=True)
class Target:
    """The field of the targets, the task by its name in train.task, and the outputs that it asks of a model.

    Of a classification the classes say how many outputs: `outputs` is 0.
    """

    field: str
    task: str
    outputs: int

    def build_task(self, settings: Train) -> Task:
        """The task with its parameters in the section train."""
        if self.task == CLASSIFICATION:
            return Classification(settings.label_smoothing)
        if settings.label_smoothing:
            raise UserError(f"train.label_smoothing={settings.label_smoothing}: {self.task} has none; leave it out")
        return MultiLabel() if self.task == MULTI_LABEL else Regression()


def find_target(info: BetonInfo, task: str) -> Target:
    """The field called "label", or else the only one that may hold the targets of `task` (train.task; "auto": of any).

    Raises:
        UserError: no such field or several, an array that is no vector, or "auto" on an array, which may be either.
    """
    kinds = {name: TYPE_ID_HANDLER[type_id] for name, type_id in info.fields.items()}
    if task == "auto":
        numbers = [name for name, kind in kinds.items() if kind in (FloatField, NDArrayField)]
        field = "label" if "label" in numbers else numbers[0] if len(numbers) == 1 and info.labels is None else None
        if field is not None and kinds[field] is NDArrayField:
            raise UserError(
                f'the field "{field}" of {info.path} holds arrays: set train.task={MULTI_LABEL} or {REGRESSION}'
            )
        task = CLASSIFICATION if field is None else REGRESSION
    if task == CLASSIFICATION:
        return Target(require_labels(info)[0], task, 0)
    fitting = [name for name, kind in kinds.items() if kind in _KINDS[task]]
    if "label" not in fitting and len(fitting) != 1:
        wanted = " or ".join(kind.__name__ for kind in _KINDS[task])
        reason = f"the fields {', '.join(fitting)}, none called label" if fitting else f"no {wanted}"
        raise UserError(
            f'{info.path} has {reason}: for train.task={task} write the targets as a {wanted} called "label"'
        )
    field = "label" if "label" in fitting else fitting[0]
    shape = info.array_shapes.get(field, ())
    if len(shape) > 1 or math.prod(shape) < 1:
        raise UserError(f'the field "{field}" of {info.path} holds arrays {list(shape)}: targets must be vectors')
    return Target(field, task, math.prod(shape))
