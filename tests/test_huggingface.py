"""Recipes whose images come from what Hugging Face's `datasets` reads, made here and written by the command."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ffcv_prune.data.beton import check_beton
from ffcv_prune.data.images import read_images
from ffcv_prune.data.manifest import Manifest, read_sources
from ffcv_prune.data.recipe import load_recipe
from ffcv_prune.data.sources import open_source
from ffcv_prune.data.writer import write_dataset
from ffcv_prune.errors import UserError
from tests.data_helpers import write_recipe

datasets = pytest.importorskip("datasets", reason="needs datasets")

ROOT = Path(__file__).resolve().parent.parent
COUNTS = {"train": 24, "test": 9}
CLASSES = ["cat", "dog", "owl"]
RECIPE = """\
source: {huggingface: small}
splits: {train: train, test: test}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder))  # of commands


def pixels(split: str, i: int) -> np.ndarray:
    return np.random.default_rng([COUNTS[split], i]).integers(0, 256, (8, 9, 3), np.uint8)


def picture(split: str, i: int, kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(split, i)).save(buffer, kind)
    return buffer.getvalue()


def typed(split: str, **others: Any) -> Any:
    """As the Hub has data sets: columns that say what they are."""
    n = COUNTS[split]
    columns = {"image": [{"bytes": picture(split, i)} for i in range(n)], "label": [i % 3 for i in range(n)], **others}
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}
    features |= {name: datasets.Value("string") for name in others}
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def parquet(folder: Path) -> None:
    for split in COUNTS:
        typed(split).to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))


def saved(folder: Path) -> None:
    datasets.DatasetDict({split: typed(split) for split in COUNTS}).save_to_disk(str(folder))


def folders(folder: Path) -> None:
    for split, n in COUNTS.items():
        for i in range(n):
            path = folder / split / CLASSES[i % 3] / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(split, i))


def webdataset(folder: Path) -> None:
    for split, n in COUNTS.items():
        for shard in range(2):
            with tarfile.open(folder / f"{split}-{shard:04}.tar", "w") as tar:
                for i in range(shard * n // 2, (shard + 1) * n // 2):
                    for suffix, content in (("png", picture(split, i)), ("cls", str(i % 3).encode())):
                        info = tarfile.TarInfo(f"{i:03}.{suffix}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))


def plain_parquet(folder: Path) -> None:
    """As other programs write it: bytes, and a number."""
    for split, n in COUNTS.items():
        columns = {"jpeg": [picture(split, i) for i in range(n)], "cls": [i % 3 for i in range(n)]}
        datasets.Dataset.from_dict(columns).to_parquet(str(folder / f"{split}.parquet"))


NUMBERS = ["0", "1", "2"]


@pytest.mark.parametrize(
    ("make", "overrides", "classes"),
    [
        (parquet, {}, CLASSES),
        (saved, {}, CLASSES),
        (folders, {}, CLASSES),
        (webdataset, {}, NUMBERS),
        (plain_parquet, {"source.image": "jpeg"}, NUMBERS),
    ],
)
def test_each_kind_of_files_is_written(
    make: Callable[[Path], None], overrides: dict[str, str], classes: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "data" / "small"
    folder.mkdir(parents=True)
    make(folder)
    recipe = load_recipe(write_recipe(tmp_path, RECIPE), overrides)
    train, _ = write_dataset(recipe, tmp_path / "data", tmp_path / "betons", num_workers=2)
    for split, n in COUNTS.items():
        path = train.with_name(f"{split}.beton")
        manifest = Manifest.load(path)
        assert manifest.classes == classes
        assert manifest.counts == [n // 3] * 3
        assert manifest.source == f"Hugging Face data set in {folder}"
        labels = check_beton(path).labels
        assert labels is not None
        places = [read_sources(path, n)[i] for i in range(n)]
        assert places[0] == f"row 0 of {folder} {split}"
        # folders are read class by class
        order = sorted(range(n), key=lambda i: (i % 3, i)) if make is folders else range(n)
        assert labels.tolist() == [i % 3 for i in order]
        for found, i in zip(read_images(path, range(n)), order, strict=True):
            np.testing.assert_array_equal(found, pixels(split, i))


def test_splits_are_joined_and_held_out(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    parquet(tmp_path / "small")
    recipe = load_recipe(write_recipe(tmp_path, RECIPE), {"splits.train": "train test", "splits.test": "50%"})
    opened = open_source(recipe, tmp_path)
    counts = {name: np.bincount(split.labels).tolist() for name, split in opened.splits.items()}
    assert counts == {"train": [5, 5, 5], "test": [6, 6, 6]}  # of 11 each, half rounded to even


def unlabelled(folder: Path) -> None:
    rows = {"image": [{"bytes": picture("train", 0)}], "label": [-1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    for split in COUNTS:
        datasets.Dataset.from_dict(rows, features).to_parquet(str(folder / f"{split}.parquet"))


def more_columns(folder: Path) -> None:
    for split, n in COUNTS.items():
        columns = typed(split, words=["a cat"] * n).to_dict() | {"depth": [{"bytes": picture(split, 0)}] * n}
        features = datasets.Features(typed(split, words=["a cat"] * n).features | {"depth": datasets.Image()})
        datasets.Dataset.from_dict(columns, features).to_parquet(str(folder / f"{split}.parquet"))


def damaged(folder: Path) -> None:
    parquet(folder)
    path = folder / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:200])


def nothing(folder: Path) -> None:
    (folder / "notes.txt.gz").write_bytes(b"no data")


@pytest.mark.parametrize(
    ("make", "overrides", "expected"),
    [
        (parquet, {"splits.test": "validation"}, 'has the splits train, test, and no "validation"; change the recipe'),
        (
            parquet,
            {"source.image": "picture"},
            "has no column picture (its columns: image, label); change source.image",
        ),
        (parquet, {"source.image": "label"}, "source.image and source.label both name column label"),
        (
            more_columns,
            {"source.image": "image", "source.label": "words"},
            "has the label 'a cat': labels are integers",
        ),
        (plain_parquet, {"source.image": "cls", "source.label": "jpeg"}, "has the label b'"),
        (plain_parquet, {}, "has no image column (jpeg, cls); name it with source.image"),
        (more_columns, {}, "has several image columns (image, depth); name it with source.image"),
        (unlabelled, {}, "small train has the label -1: labels are integers from 0"),
        (damaged, {}, "datasets cannot read"),
        (nothing, {}, "datasets cannot read"),
        (lambda folder: folder.rmdir(), {}, "small is no folder; put the data set there"),
    ],
)
def test_what_cannot_be_taken_is_refused_in_one_line(
    make: Callable[[Path], None], overrides: dict[str, str], expected: str, tmp_path: Path
) -> None:
    folder = tmp_path / "data" / "small"
    folder.mkdir(parents=True)
    make(folder)
    recipe = load_recipe(write_recipe(tmp_path, RECIPE), overrides)
    with pytest.raises(UserError) as refused:
        write_dataset(recipe, tmp_path / "data", tmp_path / "betons", num_workers=1)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("betons/**/*"))


def test_the_recipe_of_the_page_is_one(tmp_path: Path) -> None:
    page = (ROOT / "write_datasets" / "README.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    recipe = load_recipe(write_recipe(tmp_path, text))
    assert recipe.source.huggingface == "imagenet-1k"
    assert recipe.split_sources() == {"train": ["train"], "val": ["validation"]}


def test_a_broken_image_is_named_as_a_command_names_it(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    parquet(folder)
    broken = typed("train").to_dict()
    broken["image"][5] = {"bytes": b"no image", "path": None}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    datasets.Dataset.from_dict(broken, features).to_parquet(str(folder / "train-00000-of-00001.parquet"))
    command = [sys.executable, str(ROOT / "write_datasets.py"), "--dataset", write_recipe(tmp_path, RECIPE)]
    command += ["--data-dir=.", "--workers=1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "row 5 of small train (cannot identify image file" in line
    assert not list(tmp_path.glob("betons/**/*.beton"))
    write_dataset(load_recipe(command[3]), tmp_path, tmp_path / "betons", num_workers=1, skip_broken=True)
    assert check_beton(tmp_path / "betons" / "small" / "train.beton").num_samples == COUNTS["train"] - 1
