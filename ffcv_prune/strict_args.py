"""fastargs made strict: what configurations and recipes are read with.

A configuration is declared once, as a frozen dataclass of sections whose fields are made by `settings.key`. From
that one declaration come the fastargs sections and parameters, the typed result, the defaults and the help.

One parser reads the texts of files (`yaml_settings`) and of the command line.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, TypeVar, get_type_hints

import fastargs
from fastargs.exceptions import MissingValueError
from fastargs.validation import Checker

from ffcv_prune.errors import UserError, closest, nearest
from ffcv_prune.settings import REQUIRED, inside
from ffcv_prune.yaml_settings import Setting, Text

T = TypeVar("T")

BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

MOST_FAULTS = 3  # that one message tells
# What the patterns of keys mean, in words.
PATTERNS = {
    r"auto|cpu|cuda(:\d+)?": "one of auto, cpu, cuda, cuda:0",
    r"(.*[^/]\.npy)?": "a path that ends in .npy",
}


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _boolean(text: str) -> bool:
    return BOOLEANS[text.lower()]


def _numbers(text: Text) -> tuple[float, ...]:
    items = text if isinstance(text, list) else [item for item in text.split(",") if item.strip()]
    return tuple(_number(item) for item in items)


PARSERS: dict[Any, tuple[Callable[[Any], Any], str]] = {
    int: (int, "an integer"),
    float: (_number, "a number"),
    bool: (_boolean, "true or false"),
    str: (str, "a text"),
    int | float: (lambda text: int(text) if re.fullmatch(r"\s*[+-]?\d+\s*", text) else _number(text), "a number"),
    tuple[float, ...]: (_numbers, "a list of numbers such as 0.3,0.6"),
}


class KeyChecker(Checker):
    """fastargs checker of one key: text to value, or ValueError, TypeError or KeyError."""

    def __init__(self, kind: Any, metadata: Mapping[str, Any]) -> None:
        self.parse, self.noun = PARSERS[kind]
        self.takes_list = kind == tuple[float, ...]
        self.within: str | None = metadata["within"]
        self.choices: tuple[str, ...] | None = metadata["choices"]
        self.pattern: str | None = metadata["pattern"]

    def check(self, text: Text) -> Any:
        if isinstance(text, list) and not self.takes_list:
            raise TypeError("a list where one value is expected")
        value = self.parse(text)
        if self.within is not None:
            numbers = value if self.takes_list else (value,)
            if not all(inside(number, self.within) for number in numbers):
                raise ValueError(f"outside {self.within}")
        if self.choices is not None and value not in self.choices:
            raise ValueError("not one of the choices")
        if self.pattern is not None and not re.fullmatch(self.pattern, value):
            raise ValueError(f"does not match {self.pattern}")
        return value

    def help(self) -> str:
        if self.choices is not None:
            return f"one of {', '.join(self.choices)}"
        if self.pattern is not None:
            return PATTERNS.get(self.pattern, f"a text matching {self.pattern}")
        return self.noun if self.within is None else f"{self.noun} in {self.within}"

    def complaint(self, text: Text) -> str:
        """Say what is wrong with a text that `check` refused."""
        if self.choices is not None and isinstance(text, str):
            return f"unknown{nearest(text, self.choices)}"
        return f"expected {self.help()}"


def parse_command_line(
    argv: Sequence[str], options: Sequence[str], flags: Collection[str] = ()
) -> tuple[dict[str, str], dict[str, str]]:
    """Split ``--name=value`` and ``--name value`` arguments (no abbreviations, no environment).

    Returns:
        What was given for the names in `options`, of which the first takes a file, or "" for those in `flags`, which
        take no value; and everything else: overrides, whose names `resolve` judges. ``-h`` and ``--help`` are the
        flag "help"; ``--version`` prints it and exits. Of a repeated name the last counts.
    """
    given: dict[str, str] = {}
    overrides: dict[str, str] = {}
    arguments = iter(argv)
    for argument in arguments:
        argument = "--help" if argument == "-h" else argument
        if not argument.startswith("--") or argument == "--":
            is_file = argument.endswith(".yaml") or os.path.isfile(argument)
            remedy = f"--{options[0]} {argument}" if is_file else "--key=value"
            raise UserError(f'unexpected argument "{argument}"; write {remedy}')
        name, equals, value = argument[2:].partition("=")
        without_value = ("help", "version", *flags)
        if name in without_value:
            if equals:
                raise UserError(f"--{name} takes no value; write --{name}")
            if name == "version":
                print(f"ffcv_prune {version('ffcv_prune')}")
                raise SystemExit(0)
            given[name] = ""
            continue
        if not equals:
            value = next(arguments, "--")
            if value.startswith("--"):
                _refuse_unknown([] if name in options else [name], (*options, *without_value))
                raise UserError(f"--{name} needs a value; write --{name}=VALUE")
        (given if name in options else overrides)[name] = value
    if not given:  # an option is needed, and so it may be one of these
        _refuse_unknown(overrides, (*options, *flags))
    return given, overrides


def _refuse_unknown(names: Iterable[str], known: Collection[str]) -> None:
    """UserError for the first name that is no key: keys have a dot."""
    for name in names:
        if "." not in name:
            close = closest(name, known)
            raise UserError(f"unknown option --{name}; {f'did you mean --{close}?' if close else 'see --help'}")


def _to_text(value: Any) -> Text:
    if isinstance(value, tuple):
        return [str(item) for item in value]
    return str(value).lower() if isinstance(value, bool) else str(value)


def declare(config_class: type) -> fastargs.Config:
    """Make the fastargs sections and parameters of a dataclass of sections."""
    declared = fastargs.Config()  # never fastargs' global one: two declarations must not mix
    for section, section_class in get_type_hints(config_class).items():
        kinds = get_type_hints(section_class)
        params = {
            field.name: fastargs.Param(
                KeyChecker(kinds[field.name], field.metadata),
                field.metadata["description"],
                default=None if field.default is REQUIRED else _to_text(field.default),
                required=field.default is REQUIRED,
            )
            for field in dataclasses.fields(section_class)
        }
        fastargs.Section(section, section_class.__doc__, config_descriptor=declared).params(**params)
    return declared


def resolve(
    config_class: type[T], settings: Mapping[str, Setting], options: Collection[str] = (), faults: Sequence[str] = ()
) -> T:
    """Build `config_class` from dotted keys; a UserError names the first unknown, missing and unacceptable ones.

    `options` are names of the command line that are no keys, so that a misspelt one finds its nearest. `faults` were
    found before.
    """
    declared = declare(config_class)
    known = {".".join(path): param for path, param in declared.entries.items()}
    sections = get_type_hints(config_class)
    # a section whose keys are all commented out is an empty text to YAML
    settings = {name: s for name, s in settings.items() if not (name in sections and s.text == "")}
    found = list(faults)
    for name, setting in settings.items():
        if name not in known:
            others = {*known, *options} - {name}
            found.append(f'unknown key "{name}" ({setting.source}){nearest(name, others)}')
    declared.collect({name: setting.text for name, setting in settings.items() if name in known})
    for path, error in declared.validate(mode="errordict").items():
        name = ".".join(path)
        param = known[name]
        if isinstance(error, MissingValueError):
            found.append(f"{name} is required ({param.desc}); set it in the file or with --{name}=…")
            continue
        text, source, _ = settings[name]
        shown = ",".join(map(str, text)) if isinstance(text, list) else text
        found.append(f"{name}={shown} ({source}): {param.checker.complaint(text)}")
    refuse(found)
    values: dict[str, dict[str, Any]] = {section: {} for section in sections}
    for section, name in declared.entries:
        values[section][name] = declared[(section, name)]
    return config_class(**{section: sections[section](**given) for section, given in values.items()})


def is_foreign(settings: Mapping[str, Setting], own: Collection[str], other: Collection[str]) -> bool:
    """Whether a file has sections of the other kind and none of its own: a recipe in place of a config, say."""
    found = {name.partition(".")[0] for name in settings}
    return found.isdisjoint(own) and not found.isdisjoint(other)


def refuse(faults: Sequence[str]) -> None:
    """Raise a UserError, in one line, if there are any."""
    if faults:
        more = [f"and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
        raise UserError(" | ".join([*faults[:MOST_FAULTS], *more]))


def help_text(config_class: type) -> str:
    """List all keys with what they mean, what they take and their defaults."""
    declared = declare(config_class)
    lines = []
    for namespace, paths in declared.sections_to_entries.items():
        lines.append(f"\n{'.'.join(namespace)}: {declared.sections[namespace].desc}")
        for path in paths:
            param = declared.entries[path]
            shown = ",".join(param.default) if isinstance(param.default, list) else param.default
            default = "required" if param.required else f"default {shown or '(empty)'}"
            lines.append(f"  --{'.'.join(path):26} {param.desc}; {param.checker.help()}; {default}")
    return "\n".join(lines)
