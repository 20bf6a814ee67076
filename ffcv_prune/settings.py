"""Keys: how a field of a dataclass is declared, so that it is option, help and validation at once."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeVar

from ffcv_prune.errors import UserError, nearest

T = TypeVar("T")

REQUIRED: Any = dataclasses.MISSING


def key(
    default: T,
    description: str,
    *,
    within: str | None = None,
    choices: tuple[str, ...] | None = None,
    pattern: str | None = None,
) -> T:
    """Declare one key. The field's annotation is its type: one of those in `strict_args.PARSERS`.

    `within` is an interval such as ``"(0, 1]"`` for a number, or for each number of a list. `choices` lists
    the words, or `pattern` is the regular expression, that a text must match. `REQUIRED`: no default.
    """
    metadata = {"description": description, "within": within, "choices": choices, "pattern": pattern}
    return dataclasses.field(default=default, metadata=metadata)


def inside(value: float, interval: str) -> bool:
    """Whether `value` lies in an interval written as in `key`."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    return above and (value < high if interval[-1] == ")" else value <= high)


def check_values(section: Any) -> None:
    """Raise `UserError` unless each field of a dataclass made of `key` holds a value that its declaration allows."""
    for field in dataclasses.fields(section):
        value, within, choices = getattr(section, field.name), *map(field.metadata.get, ("within", "choices"))
        for number in value if isinstance(value, tuple) else (value,):
            if within is None:
                break
            is_number = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
            if not is_number or not inside(number, within) or (field.type in ("int", int) and number != int(number)):
                noun = "an integer" if field.type in ("int", int) else "a number"
                raise UserError(f"{field.name}={value}: expected {noun} in {within}")
        if choices is not None and value not in choices:
            raise UserError(f"{field.name}={value}: unknown{nearest(str(value), choices)}")
