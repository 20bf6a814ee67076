"""`ffcv_prune.write`: what goes in comes out of a PrunedLoader, and what cannot go in is said in a line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset, Subset

import ffcv_prune
from ffcv_prune import PrunedLoader
from ffcv_prune.data.beton import JPG, check_beton
from ffcv_prune.data.manifest import Manifest, read_sources
from ffcv_prune.errors import UserError
from ffcv_prune.loading.pipelines import score_pipelines

ROOT = Path(__file__).resolve().parents[1]
N = 23
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 6, 6, 3), dtype=np.uint8)
LABELS = np.arange(N) % 3
VECTORS = np.random.default_rng(1).random((N, 4)).astype(np.float32)


class Pairs(torch.utils.data.Dataset[Any]):
    """Images and targets as one finds them: `as_image` and `as_target` make them of what is stored."""

    def __init__(self, as_image: Callable[[int], Any], as_target: Callable[[int], Any], n: int = N) -> None:
        self.as_image, self.as_target, self.n = as_image, as_target, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self.as_image(i), self.as_target(i)


def write(dataset: Any, path: Path, **options: Any) -> Path:
    return ffcv_prune.write(dataset, path, num_workers=2, **options)


def served(path: Path, batch: int = 5) -> list[torch.Tensor]:
    """All images, targets and ids of the file, in the order that the loader serves them."""
    pipelines = score_pipelines(check_beton(path), target="label")
    with closing(PrunedLoader(path, batch, pipelines=pipelines, num_workers=1, drop_last=False, with_ids=True)) as it:
        batches = [[part.clone() for part in batch] for batch in it]
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


IMAGES: dict[str, Callable[[int], Any]] = {
    "pil": lambda i: Image.fromarray(PIXELS[i]),
    "array": lambda i: PIXELS[i],
    "tensor": lambda i: torch.from_numpy(PIXELS[i]).permute(2, 0, 1),
    "float": lambda i: torch.from_numpy(PIXELS[i]).permute(2, 0, 1) / 255,
    "bfloat16": lambda i: (torch.from_numpy(PIXELS[i]).permute(2, 0, 1) / 255).bfloat16(),
}
TARGETS: dict[str, tuple[Callable[[int], Any], torch.Tensor]] = {
    "label": (lambda i: int(LABELS[i]), torch.from_numpy(LABELS)),
    "label in a tensor": (lambda i: torch.tensor(LABELS[i]), torch.from_numpy(LABELS)),
    "vector": (lambda i: torch.from_numpy(VECTORS[i]), torch.from_numpy(VECTORS)),
    "vector in bfloat16": (
        lambda i: torch.from_numpy(VECTORS[i]).bfloat16(),
        torch.from_numpy(VECTORS).bfloat16().float(),
    ),
    "number": (lambda i: float(VECTORS[i, 0]), torch.from_numpy(VECTORS[:, 0]).double()),
}


@pytest.mark.parametrize(("image", "target"), [*((kind, "label") for kind in IMAGES), *(("pil", t) for t in TARGETS)])
def test_what_goes_in_comes_out(tmp_path: Path, image: str, target: str) -> None:
    as_target, expected = TARGETS[target]
    path = write(Pairs(IMAGES[image], as_target), tmp_path / "train.beton")
    images, targets, ids = served(path)
    assert sorted(ids.tolist()) == list(range(N))
    assert torch.equal(images.permute(0, 2, 3, 1), torch.from_numpy(PIXELS)[ids])
    assert targets.dtype == expected.dtype
    assert torch.equal(targets, expected[ids])


def test_one_channel_becomes_three(tmp_path: Path) -> None:
    path = write(Pairs(lambda i: torch.from_numpy(PIXELS[i, :, :, :1]).permute(2, 0, 1), int), tmp_path / "g.beton")
    images, labels, _ = served(path)
    assert torch.equal(images.permute(0, 2, 3, 1), torch.from_numpy(PIXELS)[labels][..., :1].expand(-1, -1, -1, 3))


def test_manifest_and_names(tmp_path: Path) -> None:
    dataset: Any = Pairs(IMAGES["pil"], lambda i: int(LABELS[i]))
    dataset.classes = ["cat", "dog", "owl", "rare"]
    path = write(dataset, tmp_path / "train.beton")
    manifest = Manifest.load(path)
    assert (manifest.classes, manifest.counts, manifest.samples) == (dataset.classes, [8, 8, 7, 0], N)
    np.testing.assert_allclose(manifest.mean, PIXELS.mean((0, 1, 2)) / 255)
    np.testing.assert_allclose(manifest.std, PIXELS.std((0, 1, 2)) / 255)
    assert read_sources(path, N)[7] == "sample 7 of Pairs"
    assert Manifest.load(write(dataset, path, classes=["a", "b", "c"], force=True)).classes == ["a", "b", "c"]
    assert Manifest.load(write(Subset(dataset, range(5)), tmp_path / "few.beton")).classes == ["0", "1", "2"]


def test_manifest_without_classes(tmp_path: Path) -> None:
    manifest = Manifest.load(write(Pairs(IMAGES["pil"], float), tmp_path / "train.beton"))
    assert (manifest.classes, manifest.counts, manifest.samples) == ([], [], N)


def test_jpeg_and_shrinking(tmp_path: Path) -> None:
    path = write(Pairs(IMAGES["pil"], int), tmp_path / "train.beton", mode="jpg", max_resolution=4)
    info = check_beton(path)
    assert (info.image_heights == 4).all()
    assert (info.image_modes == JPG).all()


def test_a_data_set_that_computes_on_several_threads(tmp_path: Path) -> None:
    """Sample 0 is read before the fork, which has none of torch's threads: waiting for them would take for ever."""
    script = (
        "import sys, torch, ffcv_prune\n"
        "class Data:\n"
        "    def __len__(self): return 3\n"
        "    def __getitem__(self, i): return torch.rand(3, 512, 512).div(2), i\n"
        "ffcv_prune.write(Data(), sys.argv[1], num_workers=2)\n"
    )
    command = [sys.executable, "-c", script, tmp_path / "train.beton"]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "2"}, timeout=100, check=True)
    assert check_beton(tmp_path / "train.beton").num_samples == 3


def test_an_image_and_its_target_share_a_page(tmp_path: Path) -> None:
    """FFCV's page of 8 MiB has 1,856 bytes left beside such an image."""
    dataset = [(np.zeros((1672, 1672, 3), np.uint8), np.ones(2000))]
    with pytest.raises(UserError, match=r"sample 0 of list is too large \(1672 x 1672 pixels\).* max_resolution=N"):
        write(dataset, tmp_path / "train.beton")
    assert not list(tmp_path.iterdir())
    info = check_beton(write(dataset, tmp_path / "train.beton", max_resolution=1672))
    assert info.image_widths.tolist() == [1672]


class Stream(IterableDataset[Any]):
    """Without a length."""

    def __iter__(self) -> Any:
        return iter([(PIXELS[0], 0)])


class LongStream(Stream):
    def __len__(self) -> int:
        return 1


class NoLength:
    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return PIXELS[i], 0


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Stream(), "Stream is iterable, and serves no sample by its position: read it into a list"),
        (LongStream(), "LongStream is iterable, and serves no sample by its position: read it into a list"),
        (NoLength(), "NoLength has no length: give a map-style dataset"),
        ([], "list has no samples"),
        ({(PIXELS[0].tobytes(), 0)}, "set has no __getitem__"),
        ([(PIXELS[0], 0, 1)], r"sample 0 of list: it is tuple, no pair: give \(image, target\)"),
        ([("a.png", 0)], "sample 0 of list: its image is str: give a PIL image"),
        ([(PIXELS[0][..., :2], 0)], r"its image is ndarray of uint8\[6, 6, 2\]"),
        ([(PIXELS[0].astype(np.int32), 0)], r"its image is ndarray of int32\[6, 6, 3\]: give uint8"),
        ([(PIXELS[0] / 255 - 0.5, 0)], "its image has values from -0.5 to .*: give 0 to 1, without Normalize"),
        ([(PIXELS[0], "cat")], "sample 0 of list: its target is str: give an integer, a float or a vector"),
        ([(PIXELS[0], VECTORS)], r"its target is ndarray of float32\[23, 4\]"),
        ([(PIXELS[0], 0), (PIXELS[1], 0.5)], r"sample 1 of list \(its target is float, the first is an integer"),
        ([(PIXELS[0], -1)], r"sample 0 of list \(its label is -1: classes count from 0"),
        (
            [(PIXELS[0], VECTORS[0]), (PIXELS[1], VECTORS[1, :3])],
            r"sample 1 of list \(its target is ndarray of float32\[3\], the first is a vector of 4",
        ),
        *(
            (
                [(Image.new(mode, (6, 6)), 0)],
                rf"sample 0 of list \(its channels have .* \(Pillow's mode {mode}\): convert",
            )
            for mode in ("I;16", "I", "F")
        ),
        ([(PIXELS[0], 0), (None, 0)], r"sample 1 of list \(its image is NoneType.*torch.utils.data.Subset"),
    ],
)
def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path: Path, dataset: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        write(dataset, tmp_path / "train.beton")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("train", {}, "train does not end in .beton"),
        ("train.beton", {"mode": "jpeg"}, 'mode="jpeg"; did you mean "jpg"'),
        ("train.beton", {"max_resolution": -1}, "max_resolution=-1 must be"),
        ("train.beton", {"jpeg_quality": 0}, "jpeg_quality=0"),
        ("train.beton", {"classes": ["a", "b"]}, "2 classes for labels up to 2"),
    ],
)
def test_wrong_arguments(tmp_path: Path, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write(Pairs(IMAGES["pil"], lambda i: int(LABELS[i])), tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["train.beton", "train.json", "train.txt"])
def test_existing_files_are_replaced_only_when_told(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    dataset = Pairs(IMAGES["pil"], int)
    with pytest.raises(UserError, match=rf"{name} exists; replace it with force=True"):
        write(dataset, tmp_path / "train.beton")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "mine")]
    write(dataset, tmp_path / "train.beton", force=True)
    assert {file.name for file in tmp_path.iterdir()} == {"train.beton", "train.json", "train.txt"}


@pytest.mark.parametrize("name", ["train.beton", "train.json", "train.txt"])
def test_a_folder_of_that_name_is_refused_before_anything_is_replaced(name: str, tmp_path: Path) -> None:
    """Defect: the manifest and the names were replaced first."""
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} is a folder: remove it, or choose another"):
        write(Pairs(IMAGES["pil"], int), tmp_path / "train.beton", force=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_failed_write_keeps_the_file_before(tmp_path: Path) -> None:
    path = write(Pairs(IMAGES["pil"], int), tmp_path / "train.beton")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UserError, match="sample 9 of Pairs"):
        write(Pairs(lambda i: None if i == 9 else PIXELS[i], int), path, force=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_the_script_in_the_readme_of_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "write_datasets" / "README.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "README.md", "exec"), {})
    assert Manifest.load("train.beton").samples == 100
