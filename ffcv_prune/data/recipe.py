"""A recipe says how a data set becomes ``.beton`` files: one YAML file each, every key declared here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_type_hints

from ffcv_prune import strict_args, yaml_settings
from ffcv_prune.config import SECTIONS
from ffcv_prune.errors import TRAIN, UserError, nearest
from ffcv_prune.settings import key
from ffcv_prune.yaml_settings import Setting

RECIPES = Path(__file__).parents[1] / "write_datasets"  # in a clone a link to that at its root

# Names of options of write_datasets.py, so that a misspelt one finds its nearest among options and keys.
OPTIONS = ("dataset", "data-dir", "out-dir", "workers", "verify")
FLAGS = ("force", "skip-broken")
_SHARE = re.compile(r"\s*(\d+(?:\.\d*)?)\s*%\s*")


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """the data set"""

    name: str = key("", "name of the folder written; empty: the recipe's file name")
    seed: int = key(0, "seed of what is drawn: sub-samples, images to compress", within="[0, 4294967295]")


@dataclass(frozen=True, kw_only=True)
class Source:
    """where the images come from: the first of these that is there"""

    folder: str = key("", "image folders DATA_DIR/<this>/SPLIT/CLASS/*, or DATA_DIR/SPLIT/CLASS/*")
    huggingface: str = key("", "folder DATA_DIR/<this> that datasets reads: Parquet, WebDataset tars, save_to_disk")
    image: str = key("", "huggingface: column of the images; empty: the only one")
    label: str = key("", "huggingface: column of the labels; empty: the only one of classes, or label, or cls")
    torchvision: str = key(
        "none",
        "torchvision data set in DATA_DIR, downloaded where nothing else is there",
        choices=("none", "CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST"),
    )
    idx_files: str = key("", "folder with the .gz files of an MNIST-like torchvision data set")


@dataclass(frozen=True, kw_only=True)
class Splits:
    """the files written, each with the source's splits that go into it, in this order"""

    train: str = key(
        "train", "splits of the source that make train.beton; their folders name the classes; . for CLASS/ without any"
    )
    val: str = key("", "splits that make val.beton, or 10%: so much of each training class; empty: not written")
    test: str = key("", "the same for test.beton")


@dataclass(frozen=True, kw_only=True)
class Image:
    """how images are stored"""

    mode: str = key("raw", "pixels, JPEG, or a share of them JPEG", choices=("raw", "jpg", "proportion"))
    max_resolution: int = key(0, "longer side, above which images are shrunk; 0: none", within="[0, 16384]")
    compress_probability: float = key(0.5, "proportion: share of images stored as JPEG", within="[0, 1]")
    jpeg_quality: int = key(90, "quality of the JPEG images", within="[1, 100]")
    keep_jpeg: bool = key(False, "jpg, proportion: keep files of folders that are JPEG and need no change, as they are")


@dataclass(frozen=True, kw_only=True)
class Subset:
    """which training images are taken, drawn at random within each class; the default is all of them"""

    rates: tuple[float, ...] = key((), "share taken of each class, in the order of the classes", within="(0, 1]")
    per_class: int = key(0, "images taken of every class; 0: all", within="[0, inf)")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All keys of a recipe, typed and immutable: ``recipe.image.mode``."""

    dataset: Dataset
    source: Source
    splits: Splits
    image: Image
    subset: Subset

    def __post_init__(self) -> None:
        """Check what one key's range cannot tell: UserError."""
        name = self.dataset.name
        if "/" in name or name.startswith("."):
            raise UserError(f"dataset.name={name}: not a plain folder name; --out-dir says where it goes")
        source = self.source
        if not source.folder and not source.huggingface and source.torchvision == "none":
            raise UserError("the recipe names no source; set source.folder, source.huggingface or source.torchvision")
        for key_name, folder in (("folder", source.folder), ("huggingface", source.huggingface)):
            if Path(folder).is_absolute():
                raise UserError(f"source.{key_name}={folder}: is relative; --data-dir says where it lies")
        if (source.image or source.label) and not source.huggingface:
            raise UserError("source.image and source.label name columns of source.huggingface; set it too")
        if self.source.idx_files and not self.source.torchvision.endswith("MNIST"):
            raise UserError("source.idx_files needs source.torchvision=FashionMNIST, KMNIST or MNIST")
        if self.image.keep_jpeg and self.image.mode == "raw":
            raise UserError("image.keep_jpeg has nothing to keep with image.mode=raw; set image.mode=jpg or proportion")
        if self.image.keep_jpeg and not self.source.folder:
            raise UserError("image.keep_jpeg keeps files of image folders; set source.folder, or leave it out")
        if not self.splits.train.split():
            raise UserError("splits.train is empty; name the source's split that is trained on")
        if sum(self.held_out().values()) >= 1:
            raise UserError("splits.val and splits.test hold out all images: leave some to train on")
        if self.subset.rates and self.subset.per_class:
            raise UserError("subset.rates and subset.per_class exclude each other; remove one")

    def split_sources(self) -> dict[str, list[str]]:
        """Return, for each file to write, the names of the source's splits that go into it."""
        named = {"train": self.splits.train, "val": self.splits.val, "test": self.splits.test}
        held_out = self.held_out()
        return {split: text.split() for split, text in named.items() if text.split() and split not in held_out}

    def held_out(self) -> dict[str, float]:
        """Return the share of each training class that goes into val or test, for those given in percent."""
        matches = {name: _SHARE.fullmatch(getattr(self.splits, name)) for name in ("val", "test")}
        return {name: float(match[1]) / 100 for name, match in matches.items() if match and float(match[1])}


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the project."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name_or_path: str, overrides: Mapping[str, str] | None = None) -> Recipe:
    """Read a recipe by its name, or by the path of a ``.yaml`` file, and change single keys of it.

    Args:
        name_or_path: a name of `recipe_names`, or a path that ends in ``.yaml``.
        overrides: dotted key → text, as given on the command line: ``{"image.mode": "raw"}``.

    Raises UserError for an unknown recipe or key (it names the nearest) and for unacceptable values.
    """
    path = Path(name_or_path)
    if path.suffix != ".yaml":
        if name_or_path not in recipe_names():
            remedy = nearest(name_or_path, recipe_names())
            raise UserError(f'unknown recipe "{name_or_path}"{remedy} (or give the path of a .yaml file)')
        path = RECIPES / f"{name_or_path}.yaml"
    settings = yaml_settings.read_settings(path)
    if strict_args.is_foreign(settings, own=get_type_hints(Recipe), other=SECTIONS):
        raise UserError(f"{path} is a training config, not a recipe: use {TRAIN} --config {path}")
    settings |= {name: Setting(text, "command line") for name, text in (overrides or {}).items()}
    recipe = strict_args.resolve(Recipe, settings, options=(*OPTIONS, *FLAGS))
    if recipe.dataset.name:
        return recipe
    return replace(recipe, dataset=replace(recipe.dataset, name=path.stem))
