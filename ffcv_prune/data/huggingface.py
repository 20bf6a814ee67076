"""Images from a folder that Hugging Face's ``datasets`` reads: Parquet, WebDataset tars, or what save_to_disk wrote.

Nothing is downloaded. ``datasets`` names the splits by the files, and keeps a copy of them as Arrow in its cache.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from ffcv_prune.data.sources import OpenSource, Split
from ffcv_prune.errors import UserError
from ffcv_prune.extras import require

require("datasets", "huggingface")

import datasets  # noqa: E402
from pyarrow import ArrowException  # noqa: E402

SAVED = ("dataset_dict.json", "state.json")  # by save_to_disk: a set of splits, one alone
LABELS = ("label", "cls")  # integers of these names are classes, where no column says what it is


def open_huggingface(folder: Path, wanted: dict[str, list[str]], image: str, label: str) -> OpenSource:
    """Open the splits that are `wanted` for each file. `image` and `label` name the columns; empty: found by kind.

    Raises UserError where the folder cannot be read, or lacks a split or a column, or a label is no class.
    """
    found = _read(folder)
    for part in [part for parts in wanted.values() for part in parts]:
        if part not in found:
            raise UserError(f'{folder} has the splits {", ".join(found)}, and no "{part}"; change the recipe\'s splits')
    first = found[wanted["train"][0]]
    image = _column(folder, first, "image", image, _named_by_kind(first, datasets.Image))
    names = _named_by_kind(first, datasets.ClassLabel) or [name for name in LABELS if name in first.features]
    label = _column(folder, first, "label", label, names)
    if image == label:
        raise UserError(f"source.image and source.label both name column {image} of {folder}; change one")
    splits = {}
    for name, parts in wanted.items():
        joined = datasets.concatenate_datasets([found[part].select_columns([image, label]) for part in parts])
        splits[name] = _split(joined, image, label, f"{folder} {'+'.join(parts)}")
    kind = first.features[label]
    highest = max(int(split.labels.max(initial=0)) for split in splits.values())
    classes = list(kind.names) if isinstance(kind, datasets.ClassLabel) else [str(i) for i in range(highest + 1)]
    return OpenSource(f"Hugging Face data set in {folder.resolve()}", classes, splits)


def _read(folder: Path) -> dict[str, Any]:
    """The splits by their names."""
    silent = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    if silent:
        datasets.disable_progress_bars()
    try:
        if any((folder / name).exists() for name in SAVED):
            found = datasets.load_from_disk(str(folder))
        else:
            found = datasets.load_dataset(str(folder))
    except (OSError, ValueError, ArrowException, datasets.exceptions.DatasetsError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(
            f"datasets cannot read {folder} ({reason}); it takes Parquet files, WebDataset tars, image folders, "
            "or what save_to_disk wrote"
        ) from error
    finally:
        if silent:
            datasets.enable_progress_bars()
    return dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}


def _named_by_kind(part: Any, kind: type) -> list[str]:
    return [name for name, feature in part.features.items() if isinstance(feature, kind)]


def _column(folder: Path, part: Any, what: str, given: str, candidates: list[str]) -> str:
    columns = ", ".join(part.features)
    if given:
        if given not in part.features:
            raise UserError(f"{folder} has no column {given} (its columns: {columns}); change source.{what}")
        return given
    if len(candidates) != 1:
        which = f"several {what} columns ({', '.join(candidates)})" if candidates else f"no {what} column ({columns})"
        raise UserError(f"{folder} has {which}; name it with source.{what}")
    return candidates[0]


def _split(part: Any, image: str, label: str, name: str) -> Split:
    values = part.with_format(None)[label][:]
    for i, value in enumerate(values):
        if type(value) is not int or value < 0:
            shown = value if isinstance(value, int) else repr(value)[:40]
            raise UserError(f"row {i} of {name} has the label {shown}: labels are integers from 0; see source.label")
    try:  # the bytes of files, as other programs write them
        pictures = part.select_columns([image]).cast_column(image, datasets.Image())
    except (TypeError, ValueError, ArrowException):
        raise UserError(f"column {image} of {name} holds no images: name another with source.image") from None
    return Split(np.array(values, np.int64), lambda i: pictures[i][image], lambda i: f"row {i} of {name}")
