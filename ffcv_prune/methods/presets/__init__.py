"""Names for methods: each module of this folder adds its `METHODS`."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from ffcv_prune.errors import UserError, nearest, wrong_kind
from ffcv_prune.methods.method import Method

PRESETS: dict[str, Method] = {
    method.name: method
    for module in sorted(found.name for found in iter_modules(__path__))
    for method in import_module(f"{__name__}.{module}").METHODS
}


def build(name: str, /, **parameters: Any) -> Method:
    """Return the method called `name` with these parameters in its parts, e.g. ``build("ucb", keep=0.3, c=1.0)``.

    `score_source` ("pass", "training" or "both") is the source of its values; it is fixed where the method is made
    for one. Raises `UserError` for an unknown name or parameter, naming the nearest, for a value out of range, and
    for parts that contradict each other.
    """
    if not isinstance(name, str):
        raise wrong_kind("method", name, 'its name, such as "ucb"')
    if name not in PRESETS:
        raise UserError(f'unknown method "{name}"{nearest(name, PRESETS)}')
    method = PRESETS[name]
    source = parameters.pop("score_source", None)
    if source is not None and not method.takes_source:
        raise UserError(f'method "{name}" takes values of its own kind: leave out score_source')
    return method.replace(source, **parameters)
