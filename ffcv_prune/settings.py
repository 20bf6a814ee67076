"""Keys: how a field of a dataclass is declared, so that it is option, help and validation at once."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable
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
    needed: str = "",
) -> T:
    """Declare one key. The field's annotation is its type: one of those in `strict_args.PARSERS`.

    `within` is an interval such as ``"(0, 1]"`` for a number, or for each number of a list. `choices` lists
    the words, or `pattern` is the regular expression, that a text must match. `REQUIRED`: no default.
    `needed`, what a run is told to give, refuses an empty text there; by hand it may be empty.
    """
    metadata = {"description": description, "within": within, "choices": choices, "pattern": pattern, "needed": needed}
    return dataclasses.field(default=default, metadata=metadata)


def inside(value: float, interval: str) -> bool:
    """Whether `value` lies in an interval written as in `key`."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    return above and (value < high if interval[-1] == ")" else value <= high)


def check_values(section: Any) -> None:
    """Raise `UserError` unless each field of a dataclass made of `key` holds a value that its declaration allows.

    Values become those of Python: a list is a tuple, numpy's 0.5 a float, and 10.0 is 10 where an integer is meant.
    """
    for field in dataclasses.fields(section):
        kind, within, choices = str(field.type), *map(field.metadata.get, ("within", "choices"))
        given = getattr(section, field.name)
        try:
            value = _CASTS[kind](given)
            numbers = value if isinstance(value, tuple) else (value,)
            fits = within is None or all(inside(number, within) for number in numbers)
        except (TypeError, ValueError, OverflowError):
            fits = False
        if not fits:
            shown = repr(given) if isinstance(given, str) else given
            raise UserError(f"{field.name}={shown}: expected {_NOUNS[kind]}{f' in {within}' if within else ''}")
        if choices is not None and value not in choices:
            raise UserError(f"{field.name}={value}: unknown{nearest(value, choices)}")
        object.__setattr__(section, field.name, value)


def _number(value: Any) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not math.isfinite(value):
        raise TypeError
    return float(value)


def _integer(value: Any) -> int:
    if _number(value) != int(value):
        raise ValueError
    return int(value)


def _whole_if_possible(value: Any) -> int | float:
    number = _number(value)
    return int(number) if number.is_integer() else number


def _is(kind: type[T]) -> Callable[[Any], T]:
    def check(value: Any) -> T:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return check


def _numbers(value: Any) -> tuple[float, ...]:
    if isinstance(value, str):
        raise TypeError
    return tuple(map(_number, value))


_CASTS: dict[str, Callable[[Any], Any]] = {
    "int": _integer,
    "float": _number,
    "int | float": _whole_if_possible,
    "bool": _is(bool),
    "str": _is(str),
    "tuple[float, ...]": _numbers,
}
_NOUNS = {
    "int": "an integer",
    "float": "a number",
    "int | float": "a number",
    "bool": "True or False",
    "str": "a text",
    "tuple[float, ...]": "numbers such as (0.2, 0.85)",
}
