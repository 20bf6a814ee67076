"""What the parts of a method have in common."""

from __future__ import annotations

from dataclasses import dataclass

from ffcv_prune.settings import check_values


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a method. Its fields, made by `settings.key`, are its parameters, their help and their validation.

    Parts are values: equal parameters make equal parts. What changes during a run is in the `State`.
    """

    def __post_init__(self) -> None:
        check_values(self)
