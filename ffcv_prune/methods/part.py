"""What the parts of a method have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ffcv_prune.methods.table import Column
from ffcv_prune.settings import check_values


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a method. Its fields, made by `settings.key`, are its parameters, their help and their validation.

    Parts are values: equal parameters make equal parts. What changes during a run is in the `State`.

    Attributes:
        columns: what it remembers of each sample beside the table's own statistics.
        needs_certainty: whether it must be told with each loss if the model was right, and how confident it was.
        needs_groups: whether it needs the class of each sample.
    """

    columns: ClassVar[tuple[Column, ...]] = ()
    needs_certainty: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_values(self)

    @property
    def needs_groups(self) -> bool:
        return False
