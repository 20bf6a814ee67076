"""The JSON manifest that stands beside each ``.beton``: what is in it and how it came to be."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ffcv_prune.errors import UserError, write_command


def manifest_path(beton_path: str | os.PathLike[str]) -> Path:
    """Return the manifest's path: ``X.json`` beside ``X.beton``."""
    return Path(beton_path).with_suffix(".json")


@dataclass(frozen=True)
class Manifest:
    """What a ``.beton`` holds, for people and for the trainer. C is the number of classes; 0: targets are no classes.

    `mean` and `std` are per channel (R, G, B), in units of 0..1, over all pixels as they were before any JPEG
    compression. `available` and `counts` are images per class before and after sub-sampling.
    """

    dataset: str
    split: str
    classes: list[str]  # [C]
    counts: list[int]  # [C]
    available: list[int]  # [C]
    samples: int
    bytes: int  # size of the .beton
    mean: list[float]  # [3]
    std: list[float]  # [3]
    source: str
    seed: int
    recipe: dict[str, Any]
    versions: dict[str, str]

    def text(self) -> str:
        """What `load` reads."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def load(cls, beton_path: str | os.PathLike[str]) -> Manifest:
        """Read the manifest of `beton_path`. UserError if it is missing, damaged or of another file."""
        path = manifest_path(beton_path)
        remedy = f"write the data set again with {write_command(beton_path)}"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path} does not exist; {remedy}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"cannot read {path}: {error}; {remedy}") from error
        if not isinstance(content, dict) or content.keys() != {field.name for field in fields(cls)}:
            raise UserError(f"{path} is not a manifest of this version; {remedy}")
        manifest = cls(**content)
        if not _is_sound(manifest):
            raise UserError(f"{path} contradicts itself or is damaged; {remedy}")
        beton = Path(beton_path)
        if beton.exists() and beton.stat().st_size != manifest.bytes:
            raise UserError(f"{path} belongs to another {beton.name} ({manifest.bytes} bytes); {remedy}")
        return manifest


def sources_text(sources: Iterable[str]) -> str:
    """What each sample was made from, such as its file, a line each: the content of ``X.txt`` beside ``X.beton``."""
    return "".join(source.replace("\n", " ") + "\n" for source in sources)


def read_sources(beton_path: str | os.PathLike[str], num_samples: int) -> list[str]:
    """The lines of `sources_text` beside the `.beton`; empty where they are not on record."""
    try:
        lines = sources_path(beton_path).read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, ValueError):
        return []
    return lines if len(lines) == num_samples else []


def sources_path(beton_path: str | os.PathLike[str]) -> Path:
    return Path(beton_path).with_suffix(".txt")


def _is_sound(manifest: Manifest) -> bool:
    """Whether the parts that others compute with have their types and agree with each other."""

    def are(kind: type | tuple[type, ...], values: Any) -> bool:
        return isinstance(values, list) and all(isinstance(value, kind) for value in values)

    return (
        are(str, manifest.classes)
        and are(int, manifest.counts)
        and are((int, float), manifest.mean)
        and are((int, float), manifest.std)
        and len(manifest.mean) == len(manifest.std) == 3
        and len(manifest.classes) == len(manifest.counts)
        and sum(manifest.counts) == (manifest.samples if manifest.classes else 0)
    )
