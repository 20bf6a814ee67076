"""YAML files of keys: configurations, recipes and what is resolved from them.

Scalars are kept as text, so that the type of the key decides the meaning of ``off``, ``5e-4`` or ``1``. YAML 1.1 would
read a boolean, a string and an integer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ffcv_prune.errors import UserError, closest

Text = str | list[str]

MOST_BYTES = 1_000_000  # of a YAML file


class Setting(NamedTuple):
    """The text given for one key, and where it was given (a file, or "command line").

    The level counts the files below the first: 0 in it, 1 in its base, and so on; −1 on the command line.
    """

    text: Text
    source: str
    level: int = 0


class _TextLoader(yaml.BaseLoader):
    """Safe YAML (plain mappings, lists and text; tags are not obeyed) that refuses duplicate keys and aliases.

    With aliases a few lines can hold a mapping that contains itself, or a billion entries.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                problem="an alias (*name), which is not supported", problem_mark=self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            name = self.construct_scalar(key_node)  # raises for a list or a mapping as a key
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f'duplicate key "{name}"', problem_mark=key_node.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping; every scalar comes back as text. UserError names file and line of a fault."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:  # a device, a data file
            raise UserError(f"{path} has more than {MOST_BYTES:,} bytes: that is no config; name a small YAML file")
        content = yaml.load(text, Loader=_TextLoader)
    except OSError as error:
        hint = _similar(Path(path)) if isinstance(error, FileNotFoundError) else ""
        raise UserError(f"cannot read {path}: {error.strerror}{hint}") from error
    except RecursionError as error:
        raise UserError(f"{path}: nested too deeply; write sections with keys") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "not UTF-8 text"
        raise UserError(f"{place}: {problem}; correct the YAML") from error
    if content in (None, ""):
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected lines of the form `key: value`")
    return content


def _similar(path: Path) -> str:
    """``; did you mean "x"?`` for the YAML file in that folder with the nearest name, if there is one."""
    close = closest(path.stem, (file.stem for file in path.parent.glob("*.yaml") if os.path.isfile(file)))
    return "" if close is None else f'; did you mean "{path.with_name(close)}.yaml"?'


def flatten(content: Mapping[str, Any], source: str, prefix: str = "", level: int = 0) -> dict[str, Setting]:
    """Turn nested mappings into dotted keys: ``train: {lr: 0.1}`` becomes ``train.lr``."""
    flat: dict[str, Setting] = {}
    for name, value in content.items():
        nested = (
            flatten(value, source, f"{prefix}{name}.", level)
            if isinstance(value, dict)
            else {f"{prefix}{name}": Setting(value, source, level)}
        )
        for dotted in nested.keys() & flat.keys():
            raise UserError(f'{source}: duplicate key "{dotted}"; keep one of the two')
        flat |= nested
    return flat


def read_settings(path: str | Path, _chain: tuple[str, ...] = ()) -> dict[str, Setting]:
    """Read a file and, under it, the `base:` file that it names (relative to itself, and so on down)."""
    path = Path(path)
    real = os.path.realpath(path)  # as Path's own resolve, but no exception for a loop of links
    if real in _chain:
        raise UserError(f"{path}: its chain of base files comes back to itself; remove one `base:` line")
    content = read_yaml(path)
    base = content.pop("base", None)
    if base is None:
        return flatten(content, str(path), level=len(_chain))
    if not isinstance(base, str) or not os.path.isfile(path.parent / base):
        raise UserError(f"{path}: base file {base} does not exist; give a path relative to {path.parent}/")
    return read_settings(path.parent / base, (*_chain, real)) | flatten(content, str(path), level=len(_chain))


def to_yaml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the values of a resolved configuration as YAML that reads back as the same one."""
    content = {
        section: {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
        for section, values in sections.items()
    }
    text = str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    # PyYAML would read this character back as the end of a line.
    return str(yaml.safe_dump(content, sort_keys=False)) if "\x85" in text else text
