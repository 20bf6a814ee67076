"""Recipes: what comes with the project, strictness, sub-sampling, and where images are looked for."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import datasets

from ffcv_prune import strict_args, yaml_settings
from ffcv_prune.data.recipe import RECIPES, Recipe, Subset, load_recipe, recipe_names
from ffcv_prune.data.sources import hold_out, open_source, subsample
from ffcv_prune.errors import UserError
from tests.data_helpers import write_images, write_recipe

CLASSES = list("abcdefghij")
TAB_2 = (0.25, 0.25, 0.5, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0, 1.0)


def test_recipes_of_the_project() -> None:
    assert recipe_names() == [
        "cifar10",
        "cifar100",
        "cifar10_downsampled",
        "cifar10_imbalanced",
        "cinic10",
        "fashion_mnist",
        "fashion_mnist_imbalanced",
        "imagenet",
        "imagenet_256",
        "imagenet_score",
        "imagenet_small",
    ]
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.dataset.name == name
        command = (RECIPES / f"{name}.yaml").read_text().splitlines()[0]
        assert command.startswith(f"# python write_datasets.py --dataset {name}")
    for name in ("cifar10_imbalanced", "fashion_mnist_imbalanced"):
        assert load_recipe(name).subset.rates == TAB_2
    assert load_recipe("cifar10_downsampled").subset.per_class == 1000
    assert load_recipe("cinic10").split_sources() == {"train": ["train", "valid"], "test": ["test"]}
    assert load_recipe("imagenet").split_sources() == {"train": ["train"], "val": ["val"]}
    assert load_recipe("imagenet_score").split_sources() == {"train": ["train"]}
    image = load_recipe("imagenet").image
    assert (image.max_resolution, image.compress_probability, image.jpeg_quality) == (400, 0.1, 90)


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("cifar1O", {}, 'did you mean "cifar10"'),
        ("nowhere.yaml", {}, "cannot read nowhere.yaml: No such file or directory"),
        ("cifar10", {"image.mod": "raw"}, 'did you mean "image.mode"'),
        ("cifar10", {"out_dir": "x"}, 'did you mean "out-dir"'),
        ("cifar10", {"image.mode": "jpeg"}, 'did you mean "jpg"'),
        ("cifar10", {"image.jpeg_quality": "101"}, "[1, 100]"),
        ("cifar10", {"image.max_resolution": "-1"}, "an integer"),
        ("cifar10", {"subset.rates": "0.5,0"}, "(0, 1]"),
        ("cifar10", {"subset.rates": "0.5", "subset.per_class": "3"}, "exclude each other"),
        ("cifar10", {"source.folder": "/data"}, "--data-dir"),
        ("cifar10", {"source.folder": "", "source.torchvision": "none"}, "names no source"),
        ("cifar10", {"source.huggingface": "/data"}, "--data-dir"),
        ("cifar10", {"source.label": "fine"}, "name columns of source.huggingface"),
        ("cifar10", {"source.idx_files": "x"}, "FashionMNIST"),
        ("cifar10", {"splits.train": " "}, "splits.train is empty"),
        ("cifar10", {"splits.val": "60%", "splits.test": "40%"}, "leave some to train on"),
        ("cifar10", {"dataset.name": "../x"}, "plain folder name"),
        ("cifar10", {"dataset.seed": "-1"}, "an integer"),
    ],
)
def test_bad_recipes(name: str, overrides: dict[str, str], expected: str) -> None:
    with pytest.raises(UserError, match=re.escape(expected)):
        load_recipe(name, overrides)


KEYS = [
    f"{section.name}.{field.name}"
    for section in dataclasses.fields(Recipe)
    for field in dataclasses.fields(strict_args.get_type_hints(Recipe)[section.name])
]


def test_a_training_config_is_no_recipe() -> None:
    """Defect: each of its keys was called unknown, in a line of 6,500 characters."""
    path = RECIPES.parent / "rn_configs" / "fashion_ucb.yaml"
    with pytest.raises(UserError) as caught:
        load_recipe(str(path))
    remedy = f"use python train_imagenet.py --config {path}"
    assert str(caught.value) == f"{path} is a training config, not a recipe: {remedy}"


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from(KEYS) | st.text(), st.text() | st.integers().map(str), max_size=4))
def test_any_override_is_taken_or_refused_in_one_line(overrides: dict[str, str]) -> None:
    try:
        recipe = load_recipe("imagenet", overrides)
    except UserError:
        return
    content = yaml.safe_load(yaml_settings.to_yaml(dataclasses.asdict(recipe)))
    assert set(content) == {"dataset", "source", "splits", "image", "subset"}


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*KEYS, "image", "subset", "base"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200)
@given(content=TREES | st.binary(max_size=40))
def test_any_file_is_taken_or_refused(content: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content if isinstance(content, bytes) else yaml.safe_dump(content).encode())
    with contextlib.suppress(UserError):
        load_recipe(str(path))


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=10),
    rate=st.floats(0.01, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_subsample_takes_the_stated_share(counts: list[int], rate: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    wanted = [round(rate * count) for count in counts]
    subset = Subset(rates=(rate,) * len(counts))
    if min(wanted) == 0:
        with pytest.raises(UserError, match="takes 0 of the"):
            subsample(labels, CLASSES[: len(counts)], subset, seed)
        return
    ids = subsample(labels, CLASSES[: len(counts)], subset, seed)
    assert np.bincount(labels[ids]).tolist() == wanted
    assert (np.diff(ids) > 0).all()
    np.testing.assert_array_equal(ids, subsample(labels, CLASSES[: len(counts)], subset, seed))


def test_subsample_rules() -> None:
    labels = np.repeat(np.arange(10), 100)
    assert subsample(labels, CLASSES, Subset(), 0).tolist() == list(range(1000))
    imbalanced = subsample(labels, CLASSES, Subset(rates=TAB_2), 0)
    assert np.bincount(labels[imbalanced]).tolist() == [round(100 * rate) for rate in TAB_2]
    assert np.bincount(labels[subsample(labels, CLASSES, Subset(per_class=7), 0)]).tolist() == [7] * 10
    assert (imbalanced != subsample(labels, CLASSES, Subset(rates=TAB_2), 1)).any()
    with pytest.raises(UserError, match="2 rates for 10 classes"):
        subsample(labels, CLASSES, Subset(rates=(0.5, 0.5)), 0)
    with pytest.raises(UserError, match='takes 101 of the 100 training images of class "a"'):
        subsample(labels, CLASSES, Subset(per_class=101), 0)


def test_holding_out_keeps_the_proportions_and_leaves_something_to_train_on() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 100))
    parts = hold_out(labels, CLASSES, {"val": 0.1, "test": 0.25}, 0)
    assert {name: np.bincount(labels[ids]).tolist() for name, ids in parts.items()} == {
        "train": [65] * 10,
        "val": [10] * 10,
        "test": [25] * 10,
    }
    assert np.sort(np.concatenate(list(parts.values()))).tolist() == list(range(1000))
    again, other = (hold_out(labels, CLASSES, {"val": 0.1}, seed)["val"] for seed in (0, 1))
    assert set(again) == set(parts["val"])  # whatever else is held out
    assert set(other) != set(parts["val"])
    with pytest.raises(UserError, match=r'class "b" has 1 images.*leaves none'):
        hold_out(np.array([0, 0, 0, 1]), ["a", "b"], {"val": 0.6}, 0)


def test_a_share_of_a_torchvision_data_set_is_held_out(tmp_path: Path) -> None:
    write_idx_files(tmp_path)
    recipe = load_recipe("fashion_mnist", {"source.idx_files": str(tmp_path), "splits.val": "50%"})
    assert recipe.split_sources() == {"train": ["train"], "test": ["test"]}
    splits = open_source(recipe, tmp_path / "empty").splits
    assert sorted(splits["val"].labels.tolist()) == sorted(splits["train"].labels.tolist()) == list(range(10))


def test_folders_share_the_training_classes(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"cat": 2, "dog": 1, "owl": 3})
    write_images(tmp_path / "test", {"owl": 2})
    source = open_source(load_recipe(write_recipe(tmp_path)), tmp_path)
    assert source.classes == ["cat", "dog", "owl"]
    assert source.splits["train"].labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert source.splits["test"].labels.tolist() == [2, 2]
    assert source.splits["test"].describe(1).endswith("test/owl/0001.png")


def test_folders_of_its_own_name_win_and_splits_merge(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"wrong": 1})
    write_images(tmp_path / "small/train", {"cat": 2})
    write_images(tmp_path / "small/valid", {"cat": 1, "dog": 1})
    write_images(tmp_path / "small/test", {"dog": 1})
    recipe = load_recipe(write_recipe(tmp_path), {"splits.train": "train valid"})
    source = open_source(recipe, tmp_path)
    assert source.classes == ["cat", "dog"]
    assert source.splits["train"].labels.tolist() == [0, 0, 0, 1]
    assert "small/valid" in source.splits["train"].describe(2)


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path))
    with pytest.raises(UserError, match="--data-dir"):
        open_source(recipe, tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="test does not exist"):
        open_source(recipe, tmp_path)
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match="no class folders"):
        open_source(recipe, tmp_path)
    write_images(tmp_path / "train", {"cat": 1, "dog": 0})
    write_images(tmp_path / "test", {"cat": 1, "owl": 1})
    with pytest.raises(UserError, match="test/owl is a class without training images"):
        open_source(recipe, tmp_path)
    (tmp_path / "test/owl").rename(tmp_path / "test/dog")
    with pytest.raises(UserError, match=r'class "dog" .* has no training images'):
        open_source(recipe, tmp_path)


def write_idx_files(folder: Path, n: int = 20) -> np.ndarray:
    """Write the four files of an MNIST-like set as Debian packages them; return uint8[n, 28, 28]."""
    images = np.random.default_rng(0).integers(0, 256, (n, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        with gzip.open(folder / f"{part}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">4i", 0x803, n, 28, 28) + images.tobytes())
        with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">2i", 0x801, n) + (np.arange(n) % 10).astype(np.uint8).tobytes())
    return images


def test_idx_files(tmp_path: Path) -> None:
    images = write_idx_files(tmp_path)
    recipe = load_recipe("fashion_mnist", {"source.idx_files": str(tmp_path)})
    source = open_source(recipe, tmp_path / "empty")
    assert source.classes[1] == "Trouser"
    assert source.splits["test"].labels.tolist() == [i % 10 for i in range(20)]
    np.testing.assert_array_equal(np.array(source.splits["train"].load(3)), images[3])
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="does not hold FashionMNIST"):
        open_source(recipe, tmp_path / "empty")


def test_failed_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])  # nothing listens there
    recipe = load_recipe("fashion_mnist", {"source.idx_files": str(tmp_path / "not_there")})
    with pytest.raises(UserError, match=r"cannot be downloaded .* connect to the network"):
        open_source(recipe, tmp_path)


def test_torchvision_has_no_other_splits(tmp_path: Path) -> None:
    recipe = load_recipe("cifar10", {"splits.val": "val"})
    with pytest.raises(UserError, match="splits train and test"):
        open_source(recipe, tmp_path)
