"""Where images come from: folders, Hugging Face's datasets, torchvision, MNIST files as Debian packages them."""

from __future__ import annotations

import gzip
import shutil
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numpy as np
from ffcv.fields import IntField
from PIL import Image
from torch.utils.data import ConcatDataset
from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from ffcv_prune.data.recipe import Recipe, Subset
from ffcv_prune.errors import UserError, first_line

_HOLD_OUT_STREAM = 1  # keeps these random numbers apart from those of `subsample`
# What gzip and torchvision raise on files that are damaged or not there.
_UNREADABLE = (RuntimeError, ValueError, TypeError, LookupError, AssertionError, EOFError, OSError, zlib.error)


@dataclass(frozen=True)
class Split:
    """The n samples of one split: `load(i)` is an image or its file, `describe(i)` names it in an error message."""

    labels: np.ndarray  # int64[n]
    load: Callable[[int], Image.Image | bytes]
    describe: Callable[[int], str]
    target: IntField = field(default_factory=IntField)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> tuple[Image.Image | bytes, int]:
        return self.load(i), int(self.labels[i])

    def take(self, ids: np.ndarray) -> Split:
        """Return the split of the samples `ids`, int64[k], in that order."""
        return Split(self.labels[ids], lambda i: self.load(int(ids[i])), lambda i: self.describe(int(ids[i])))


@dataclass(frozen=True)
class OpenSource:
    """An opened source: its splits by the name of the file that they make, and the classes they share."""

    description: str
    classes: list[str]
    splits: dict[str, Split]


def open_source(recipe: Recipe, data_dir: Path) -> OpenSource:
    """Open the first source of `recipe` that is there: what lies in `data_dir` wins, a download comes last.

    Raises UserError where no source is to be had, a split or class is missing, or a file is damaged.
    """
    opened = _open(recipe, data_dir)
    held_out = recipe.held_out()
    if not held_out:
        return opened
    train = opened.splits["train"]
    parts = hold_out(train.labels, opened.classes, held_out, recipe.dataset.seed)
    return replace(opened, splits=opened.splits | {name: train.take(ids) for name, ids in parts.items()})


def _open(recipe: Recipe, data_dir: Path) -> OpenSource:
    source, wanted = recipe.source, recipe.split_sources()
    if source.folder:
        for root in (data_dir / source.folder, data_dir):
            if (root / wanted["train"][0]).is_dir():
                return _open_folders(root, wanted)
    if source.huggingface and (data_dir / source.huggingface).is_dir():
        from ffcv_prune.data.huggingface import open_huggingface  # imports what has an extra of its own

        return open_huggingface(data_dir / source.huggingface, wanted, source.image, source.label)
    if source.torchvision != "none":
        return _open_torchvision(source.torchvision, data_dir, source.idx_files, wanted)
    if not source.folder:
        raise UserError(
            f"{data_dir / source.huggingface} is no folder; put the data set there, or name another with --data-dir"
        )
    raise UserError(
        f"no images in {data_dir}; put them into {data_dir / source.folder}/SPLIT/CLASS/ "
        f"(splits: {', '.join(chain(*wanted.values()))}), name another folder with --data-dir, or for CLASS/ "
        "without splits set --splits.train=. and --splits.val=10%"
    )


def hold_out(
    labels: np.ndarray, classes: Sequence[str], shares: Mapping[str, float], seed: int
) -> dict[str, np.ndarray]:
    """Divide samples, class by class, into parts of these shares and "train", which gets the rest.

    Returns the ids of each part, sorted int64[k]. Each class has its own generator, as in `subsample`.

    Raises UserError for a class that leaves nothing to train on.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("train", *shares)}
    for label, name in enumerate(classes):
        ids = np.flatnonzero(labels == label)
        drawn = np.random.default_rng([seed, label, _HOLD_OUT_STREAM]).permutation(ids)
        for part, share in shares.items():
            count = round(share * len(ids))
            parts[part].append(drawn[:count])
            drawn = drawn[count:]
        if not len(drawn):
            raise UserError(
                f'class "{name}" has {len(ids)} images: holding out {" and ".join(shares)} leaves none to train on; '
                "add some or hold out less"
            )
        parts["train"].append(drawn)
    return {name: np.sort(np.concatenate(ids)) for name, ids in parts.items()}


def subsample(labels: np.ndarray, classes: Sequence[str], subset: Subset, seed: int) -> np.ndarray:
    """Draw the ids that `subset` takes of each class: sorted int64[k].

    Each class has its own generator: what is taken of one does not depend on the others.

    Raises UserError for rates that do not fit the classes and for a class with too few or no samples left.
    """
    if subset.rates and len(subset.rates) != len(classes):
        raise UserError(f"subset.rates has {len(subset.rates)} rates for {len(classes)} classes; give one each")
    taken = []
    for label, name in enumerate(classes):
        ids = np.flatnonzero(labels == label)
        count = round(subset.rates[label] * len(ids)) if subset.rates else subset.per_class or len(ids)
        if not 0 < count <= len(ids):
            raise UserError(
                f'sub-sampling takes {count} of the {len(ids)} training images of class "{name}"; '
                "change subset.rates or subset.per_class"
            )
        taken.append(np.random.default_rng([seed, label]).permutation(ids)[:count])
    return np.sort(np.concatenate(taken))


def _open_folders(root: Path, wanted: dict[str, list[str]]) -> OpenSource:
    """Image folders ``root/SPLIT/CLASS/*``. The folders of the training split are the classes."""
    for folder in chain(*wanted.values()):
        if not (root / folder).is_dir():
            raise UserError(f"{root / folder} does not exist; put the images into {root / folder}/CLASS/")
    classes = sorted(set().union(*(_class_folders(root / folder) for folder in wanted["train"])))
    class_to_label = {name: label for label, name in enumerate(classes)}
    splits = {}
    for split, folders in wanted.items():
        files: list[tuple[str, int]] = []
        for folder in folders:
            for name in _class_folders(root / folder):
                if name not in class_to_label:
                    where = root / folder / name
                    raise UserError(f"{where} is a class without training images; remove it")
            files += make_dataset(root / folder, class_to_label, extensions=IMG_EXTENSIONS, allow_empty=True)
        splits[split] = _split_of_files(files)
    empty = np.flatnonzero(np.bincount(splits["train"].labels, minlength=len(classes)) == 0)
    if len(empty):
        raise UserError(f'class "{classes[empty[0]]}" of {root} has no training images; add or remove it')
    return OpenSource(f"image folders in {root.resolve()}", classes, splits)


def _class_folders(folder: Path) -> list[str]:
    try:
        return find_classes(folder)[0]
    except FileNotFoundError:
        raise UserError(f"{folder} has no class folders; images belong into {folder}/CLASS/") from None


def read_file(path: str) -> bytes:
    return Path(path).read_bytes()


def _split_of_files(files: list[tuple[str, int]]) -> Split:
    labels = np.array([label for _, label in files], dtype=np.int64)
    return Split(labels, lambda i: read_file(files[i][0]), lambda i: files[i][0])


def _open_torchvision(name: str, data_dir: Path, idx_files: str, wanted: dict[str, list[str]]) -> OpenSource:
    """Take torchvision's data set `name` from `data_dir`, else from `idx_files`, else download it."""
    if not {part for parts in wanted.values() for part in parts} <= {"train", "test"}:
        raise UserError(f"{name} of torchvision has the splits train and test; change the recipe's splits")
    try:
        return _load_torchvision(name, data_dir, wanted, download=False)
    except _UNREADABLE as error:
        raw = data_dir / name / "raw"
        if len(list(raw.glob("*-ubyte"))) == 4:  # all files of an MNIST-like set: a download would not replace them
            raise UserError(
                f"cannot read {name} in {raw} ({first_line(error)}); remove this folder, and it is fetched again"
            ) from error
    if idx_files and Path(idx_files).is_dir():
        return _load_idx_files(name, Path(idx_files), wanted)
    try:
        return _load_torchvision(name, data_dir, wanted, download=True)
    except _UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise UserError(
            f"{name} is not in {data_dir} and cannot be downloaded ({reason}); connect to the network, or "
            "put its files there and name the folder with --data-dir"
        ) from error


def _load_torchvision(name: str, root: Path, wanted: dict[str, list[str]], download: bool) -> OpenSource:
    parts = {part for parts in wanted.values() for part in parts}
    opened = {part: getattr(datasets, name)(root, train=part == "train", download=download) for part in parts}
    splits = {
        split: _split_of_datasets(f"{name} {split}", [opened[part] for part in split_parts])
        for split, split_parts in wanted.items()
    }
    return OpenSource(f"torchvision {name}", list(opened[wanted["train"][0]].classes), splits)


def _split_of_datasets(name: str, parts: list[datasets.VisionDataset]) -> Split:
    joined: ConcatDataset[Any] = ConcatDataset(parts)
    labels = np.concatenate([np.asarray(part.targets, dtype=np.int64) for part in parts])
    if len(labels) != len(joined) or labels.max() >= len(parts[0].classes):
        raise ValueError("its labels do not fit its images or classes")
    return Split(labels, lambda i: joined[i][0], lambda i: f"image {i} of {name}")


def _load_idx_files(name: str, folder: Path, wanted: dict[str, list[str]]) -> OpenSource:
    """Read the ``*-ubyte.gz`` files of an MNIST-like set from `folder`, where Debian's packages put them.

    torchvision reads its own layout only, so the files are unpacked into one for the time of the reading.
    """
    with tempfile.TemporaryDirectory() as root:
        raw = Path(root) / name / "raw"
        raw.mkdir(parents=True)
        try:
            for packed in sorted(folder.glob("*-ubyte.gz")):
                with gzip.open(packed) as source, (raw / packed.stem).open("wb") as target:
                    shutil.copyfileobj(source, target)
            opened = _load_torchvision(name, Path(root), wanted, download=False)
        except _UNREADABLE as error:
            raise UserError(f"{folder} does not hold {name} ({first_line(error)}); install it again") from error
    return OpenSource(f"{name} from {folder}", opened.classes, opened.splits)
