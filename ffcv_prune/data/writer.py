"""Writes the ``.beton`` files of a recipe, each whole or not at all. Nothing else writes ``.beton``."""

from __future__ import annotations

import glob
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from ffcv_prune.data.beton import check_beton
from ffcv_prune.data.encode import BrokenImages, encode_split
from ffcv_prune.data.manifest import Manifest, manifest_path, sources_path, sources_text
from ffcv_prune.data.recipe import Recipe
from ffcv_prune.data.sources import OpenSource, Split, open_source, subsample
from ffcv_prune.errors import UserError, uninterrupted

RECORDED_VERSIONS = ("ffcv", "torchvision", "numpy", "pillow", "opencv-python")


def write_dataset(
    recipe: Recipe,
    data_dir: Path,
    out_dir: Path,
    num_workers: int = -1,
    force: bool = False,
    skip_broken: bool = False,
) -> list[Path]:
    """Write ``out_dir/NAME/SPLIT.beton`` for every split of the recipe, its manifest and the names of its sources.

    Args:
        num_workers: processes that read and encode images; -1: one per core available.
        force: replace files that were made from another source or by another recipe.
        skip_broken: leave out images that cannot be read, and list them on standard error.

    Returns the paths of the ``.beton`` files. They appear under their names when all are whole and checked;
    whatever was there before stays until then. Raises UserError for what a user can mend.
    """
    check_workers(num_workers)
    source = open_source(recipe, data_dir)
    available = {split: samples.labels for split, samples in source.splits.items()}
    splits = dict(source.splits)
    ids = subsample(splits["train"].labels, source.classes, recipe.subset, recipe.dataset.seed)
    splits["train"] = splits["train"].take(ids)
    for name, split in splits.items():
        if not len(split.labels):
            raise UserError(f"split {name} of {recipe.dataset.name} has no images in {data_dir}; add some")

    folder = out_dir / recipe.dataset.name
    _say(_found(recipe.dataset.name, source, splits))
    for name in () if force else splits:
        _check_same_origin(folder / f"{name}.beton", source, recipe)

    def per_class(labels: np.ndarray) -> list[int]:
        return np.bincount(labels, minlength=len(source.classes)).tolist()

    made: list[tuple[Path, Path, Manifest, Split, float]] = []
    broken: list[BrokenImages] = []
    with ExitStack() as stack:
        for name, split in splits.items():
            path = folder / f"{name}.beton"
            start = time.perf_counter()
            temporary = stack.enter_context(unfinished(path))
            title = f"{recipe.dataset.name} {name}"
            arguments = (temporary, recipe.image, recipe.dataset.seed, num_workers, title)
            try:
                mean, std = encode_split(split, *arguments)
            except BrokenImages as error:
                if not skip_broken or len(error.ids) == len(split.labels):
                    broken.append(error)  # those of the other splits are named with them
                    continue
                print(*(f"skipped: {reason}" for reason in error.reasons), sep="\n", file=sys.stderr)
                split = split.take(np.delete(np.arange(len(split.labels)), error.ids))
                lost = np.flatnonzero(np.array(per_class(split.labels)) == 0)
                if name == "train" and len(lost):
                    raise UserError(
                        f'class "{source.classes[lost[0]]}" of {recipe.dataset.name} has no training image that can be '
                        "read; mend or add some, or remove the class"
                    ) from None
                mean, std = encode_split(split, *arguments)
            manifest = Manifest(
                dataset=recipe.dataset.name,
                split=name,
                classes=source.classes,
                counts=per_class(split.labels),
                available=per_class(available[name]),
                samples=len(split.labels),
                bytes=check_beton(temporary).bytes,
                mean=mean,
                std=std,
                source=source.description,
                seed=recipe.dataset.seed,
                recipe=asdict(recipe),
                versions=versions(),
            )
            made.append((temporary, path, manifest, split, manifest.samples / (time.perf_counter() - start)))
        if broken:
            raise BrokenImages(
                np.concatenate([error.ids for error in broken]),
                [reason for error in broken for reason in error.reasons],
            )
        publish(
            (temporary, path, manifest, map(split.describe, range(len(split.labels))))
            for temporary, path, manifest, split, _ in made
        )
    for _, path, manifest, _, rate in made:
        _say(f"{path}: {manifest.samples:,} images, {rate:,.0f} images/s, {manifest.bytes / 1e6:,.1f} MB")
    return [path for _, path, *_ in made]


def check_workers(num_workers: int) -> None:
    if num_workers == 0 or num_workers < -1:
        raise UserError(f"{num_workers} workers; give at least 1, or -1 for one per core")


def _say(line: str) -> None:
    """Print names of files too, which may be any bytes, where an encoding is strict."""
    print(line.encode(errors="backslashreplace").decode(), flush=True)


def _found(name: str, source: OpenSource, splits: Mapping[str, Split]) -> str:
    """What is going to be compiled, in a line: a wrong folder shows here."""
    classes = source.classes
    shown = ", ".join(classes if len(classes) <= 4 else (classes[0], classes[1], "…", classes[-1]))
    counts = ", ".join(f"{split} {len(samples.labels):,}" for split, samples in splits.items())
    return f"{name}: {source.description}; {len(classes):,} classes ({shown}); images: {counts}"


def _check_same_origin(path: Path, source: OpenSource, recipe: Recipe) -> None:
    """UserError if the file at `path` was made from other images, or in another way."""
    if not path.exists():
        return
    remedy = "replace it with --force, or set another --dataset.name or --out-dir"
    try:
        manifest = Manifest.load(path)
    except UserError:
        raise UserError(f"{path} exists, and has no readable manifest that says from what; {remedy}") from None
    if manifest.source != source.description:
        raise UserError(f"{path} exists, made from {manifest.source}, not {source.description}; {remedy}")
    if manifest.classes != source.classes:
        raise UserError(f"{path} exists, made of {len(manifest.classes)} other classes; {remedy}")
    defaults = {name: asdict(section()) for name, section in get_type_hints(Recipe).items()}
    now, then = _keys(asdict(recipe)), _keys(defaults) | _keys(manifest.recipe)  # a key may be younger than the file
    names = [name for name in now | then if then.get(name) != now.get(name)]
    if names:
        different = "; ".join(f"{name}={_shown(then.get(name))}, not {_shown(now.get(name))}" for name in names)
        raise UserError(f"{path} exists, made with {different}; {remedy}")


def _keys(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a recipe by their full names, with values as they read back from a manifest: lists."""
    return {
        f"{section}.{name}": list(value) if isinstance(value, tuple) else value
        for section, keys in recipe.items()
        if isinstance(keys, Mapping)
        for name, value in keys.items()
    }


def _shown(value: Any) -> Any:
    return "empty" if value in ("", []) else value


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, and leave nothing under it; OSError becomes UserError.

    A folder of that name could not be replaced, which would show only when other files have been.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: remove it, or choose another --out-dir or path")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another --out-dir or path"
        ) from error


def _remove_stale(path: Path) -> None:
    """Remove what killed writers of `path` and its manifest have left, and nothing of one that lives."""
    for left in path.parent.glob(f".{glob.escape(path.stem)}.*.*.tmp"):
        pid = left.name.split(".")[-2]
        if pid.isdecimal() and not _is_alive(int(pid)):
            left.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def publish(made: Iterable[tuple[Path, Path, Manifest, Iterable[str]]]) -> None:
    """Give whole `.beton` files their names, each after its manifest and the names of its samples, by position.

    All that can fill the disk comes before the first of the renames.

    Args:
        made: of each file its temporary path, its path, its manifest, and what its samples were made from.
    """
    with ExitStack() as stack:
        renames: list[tuple[Path, Path]] = []
        for beton, path, manifest, sources in made:
            for target, text in ((sources_path(path), sources_text(sources)), (manifest_path(path), manifest.text())):
                temporary = stack.enter_context(unfinished(target))
                # Names of files may be any bytes.
                temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
                renames.append((temporary, target))
            renames.append((beton, path))
        for temporary, _ in renames:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        with uninterrupted():
            for temporary, path in renames:
                os.replace(temporary, path)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in RECORDED_VERSIONS:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # such as OpenCV under another of its names
            found[package] = "unknown"
    return found
