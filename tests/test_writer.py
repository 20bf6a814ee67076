"""The writer: what it stores, and what becomes of it when images, workers, disk or the writer itself fail."""

from __future__ import annotations

import contextlib
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ffcv.fields.rgb_image import resizer
from ffcv.reader import Reader
from PIL import Image
from torchvision.datasets.folder import pil_loader

from ffcv_prune.data import sources
from ffcv_prune.data.beton import JPG, RAW, check_beton
from ffcv_prune.data.encode import mean_and_std, page_size, shrunk
from ffcv_prune.data.manifest import Manifest, manifest_path, read_sources
from ffcv_prune.data.recipe import load_recipe
from ffcv_prune.data.writer import write_dataset
from ffcv_prune.errors import UserError
from tests.data_helpers import write_images, write_recipe
from tests.processes import expect_no_leak, shared_memory

ROOT = Path(__file__).resolve().parents[1]
COUNTS = {"cat": 120, "dog": 60, "owl": 40}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Folder of small images of different widths, with the recipe small.yaml that takes them."""
    write_images(tmp_path / "train", COUNTS)
    write_images(tmp_path / "test", {"dog": 3})
    write_recipe(tmp_path)
    return tmp_path


def write(source: Path, workers: int = 2, force: bool = False, skip_broken: bool = False, **overrides: str) -> Path:
    """Write the data set and return the path of train.beton."""
    return write_all(source, workers, force, skip_broken, **overrides)[0]


def write_all(
    source: Path, workers: int = 2, force: bool = False, skip_broken: bool = False, **overrides: str
) -> list[Path]:
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    recipe = load_recipe(str(source / "small.yaml"), named)
    return write_dataset(recipe, source, source / "out", workers, force, skip_broken)


def stored(path: Path) -> list[np.ndarray]:
    """Return the stored bytes of each image."""
    reader = Reader(str(path))
    data = np.fromfile(path, np.uint8)
    sizes = dict(reader.alloc_table[["ptr", "size"]].tolist())
    return [data[ptr : ptr + sizes[ptr]] for ptr in reader.metadata["f0"]["data_ptr"].tolist()]


def expect_failure(action: Callable[[], object], source: Path, expected: str) -> None:
    """Require a UserError of one line that leaves no temporary file, no process and no shared memory."""
    before, began = shared_memory(), time.monotonic()
    with pytest.raises(UserError, match=expected) as caught:
        action()
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 30
    assert not temporaries(source)
    assert not children(os.getpid())
    expect_no_leak(before)


def temporaries(source: Path) -> list[Path]:
    return list((source / "out").rglob("*.tmp"))


def children(pid: int) -> list[int]:
    """Return the writer processes of `pid`: its forks, not Python's tracker of shared memory."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a short one may end meanwhile
            if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


def is_running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_raw_images_are_stored_as_they_are(source: Path) -> None:
    path = write(source)
    info, manifest = check_beton(path), Manifest.load(path)
    files = sorted((source / "train").rglob("*.png"))
    assert info.labels is not None
    assert info.labels.tolist() == [0] * 120 + [1] * 60 + [2] * 40
    images = [np.array(Image.open(file)) for file in files]
    for image, content in zip(images, stored(path), strict=True):
        np.testing.assert_array_equal(image.reshape(-1), content)
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]) / 255
    np.testing.assert_allclose(manifest.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(manifest.std, pixels.std(axis=0), rtol=1e-12)
    assert manifest.classes == list(COUNTS)
    assert manifest.counts == manifest.available == list(COUNTS.values())
    assert (manifest.samples, manifest.bytes) == (220, path.stat().st_size)
    assert manifest.recipe["image"]["mode"] == "raw"
    assert Manifest.load(path.with_name("test.beton")).counts == [0, 3, 0]
    assert read_sources(path, 220) == [str(file) for file in files]
    assert read_sources(path, 221) == read_sources(path.with_name("none.beton"), 220) == []


def test_subset_is_recorded_and_leaves_the_test_split_alone(source: Path) -> None:
    path = write(source, subset__per_class="30", dataset__seed="5")
    manifest = Manifest.load(path)
    assert (manifest.counts, manifest.available, manifest.seed) == ([30] * 3, list(COUNTS.values()), 5)
    assert manifest.recipe["subset"]["per_class"] == 30
    assert Manifest.load(path.with_name("test.beton")).samples == 3


def test_compressed_images_do_not_depend_on_the_workers(source: Path) -> None:
    proportion = {"image__mode": "proportion", "image__compress_probability": "0.3"}
    path = write(source, workers=1, **proportion)
    one, manifest = stored(path), Manifest.load(path)
    modes = check_beton(path).image_modes
    assert (np.count_nonzero(modes == JPG), np.count_nonzero(modes == RAW)) == (66, 154)
    write(source, workers=3, **proportion)
    np.testing.assert_array_equal(modes, check_beton(path).image_modes)
    assert all(np.array_equal(a, b) for a, b in zip(one, stored(path), strict=True))
    assert Manifest.load(path).mean == manifest.mean
    write(source, force=True, dataset__seed="1", **proportion)
    assert (modes != check_beton(path).image_modes).any()


def test_large_images_are_shrunk_or_refused(source: Path) -> None:
    Image.new("RGB", (2000, 1500), "red").save(source / "train/cat/large.png")
    expect_failure(lambda: write(source), source, r"large\.png is too large .* --image\.max_resolution")
    info = check_beton(write(source, image__max_resolution="10"))
    assert (info.image_widths[120], info.image_heights[120]) == (10, 7)
    assert info.image_widths.max() == 10
    assert [page_size(side) // 2**20 for side in (0, 400, 1672, 1673, 16384)] == [8, 8, 8, 16, 1024]


def test_a_narrow_image_keeps_a_pixel(source: Path) -> None:
    Image.new("RGB", (900, 2), "red").save(source / "train/cat/large.png")
    info = check_beton(write(source, image__max_resolution="400"))
    assert (info.image_widths[120], info.image_heights[120]) == (400, 1)


@pytest.mark.parametrize("shape", [(277, 277, 3), (200, 900, 3), (900, 5, 3), (225, 224, 3), (224, 10, 3), (1, 1, 3)])
def test_images_are_shrunk_as_by_ffcv(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(shrunk(pixels, 224), resizer(pixels, 224))


@pytest.mark.parametrize(("mode", "suffix"), [("I;16", "png"), ("I", "tiff"), ("F", "tiff")])
def test_images_of_more_than_8_bits_are_refused(source: Path, mode: str, suffix: str) -> None:
    file = source / f"train/cat/deep.{suffix}"
    Image.new(mode, (8, 8)).save(file)
    assert Image.open(file).mode == mode
    expect_failure(
        lambda: write(source), source, rf"deep\.{suffix} \(its channels have .*: convert .*; replace or remove"
    )


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA"])
def test_other_image_modes_become_rgb(source: Path, mode: str) -> None:
    file = source / "train/cat/0000.png"
    odd = Image.open(file).convert(mode)
    odd.save(file)
    np.testing.assert_array_equal(stored(write(source))[0], np.array(odd.convert("RGB")).reshape(-1))


def test_cmyk_becomes_rgb(source: Path) -> None:
    file = source / "train/cat/0000.jpg"
    Image.open(source / "train/cat/0000.png").convert("CMYK").save(file)
    np.testing.assert_array_equal(stored(write(source))[0], np.array(pil_loader(file)).reshape(-1))


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_damaged_image_is_named_and_the_old_file_stays(source: Path, content: bytes | None) -> None:
    path = write(source)
    before = path.stat()
    damaged = source / "train/dog/0007.png"
    damaged.write_bytes(damaged.read_bytes()[:100] if content is None else content)
    expect_failure(lambda: write(source), source, r"cannot be read: \S*train/dog/0007\.png \(.*\); replace or remove")
    assert path.stat() == before
    assert Manifest.load(path).samples == 220


def test_all_damaged_images_are_named_at_once_or_skipped(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = [source / f"train/{name}.png" for name in ("cat/0003", "dog/0007", "owl/0001")]
    for file in damaged:
        file.write_bytes(b"no image")
    expect_failure(lambda: write(source), source, r"cat/0003\.png .*dog/0007\.png .*owl/0001\.png .*--skip-broken")
    assert not list((source / "out").rglob("*.*"))
    manifest = Manifest.load(write(source, skip_broken=True))
    assert manifest.counts == [119, 59, 39]
    assert manifest.available == list(COUNTS.values())
    skipped = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped: ")]
    assert [str(file) in line for file, line in zip(damaged, skipped, strict=True)] == [True] * 3
    images = [np.array(Image.open(file)) for file in sorted((source / "train").rglob("*.png")) if file not in damaged]
    path = source / "out/small/train.beton"
    assert all(np.array_equal(image.reshape(-1), got) for image, got in zip(images, stored(path), strict=True))


def test_many_damaged_images_are_counted(source: Path) -> None:
    for file in (source / "train").rglob("*.png"):
        file.write_bytes(b"")
    expect_failure(lambda: write(source, skip_broken=True), source, r"cat/0019\.png \(.*\) and 200 more;")


def test_a_class_without_a_sound_training_image_is_not_lost_unsaid(source: Path) -> None:
    path = write(source)
    before = written(path.parent)
    for file in (source / "train/dog").iterdir():
        file.write_bytes(b"")
    expect_failure(
        lambda: write(source, skip_broken=True), source, 'class "dog" of small has no training image that can be read;'
    )
    assert written(path.parent) == before


def test_names_of_any_bytes_are_said(source: Path) -> None:
    """A terminal's encoding is strict."""
    (source / "train/owl").rename(source / "train/\udcff")
    command = [sys.executable, str(ROOT / "write_datasets.py"), "--dataset", "small.yaml", "--data-dir", "."]
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, cwd=source, env=strict, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert r"3 classes (cat, dog, \udcff)" in done.stdout
    assert Manifest.load(source / "betons/small/train.beton").classes == ["cat", "dog", "\udcff"]


def test_what_is_compiled_is_said(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(source)
    expected = f"small: image folders in {source}; 3 classes (cat, dog, owl); images: train 220, test 3"
    assert capsys.readouterr().out.splitlines()[0] == expected


def test_a_data_set_of_another_source_is_not_replaced_unasked(source: Path) -> None:
    path = write(source)
    before = path.read_bytes()
    Image.new("RGB", (8, 8)).save(source / "train/cat/more.png")
    assert Manifest.load(write(source)).samples == 221  # the same source, with another image
    write_images(source / "small/train", {"cat": 2})
    write_images(source / "small/test", {"cat": 1})
    expect_failure(lambda: write(source), source, rf"made from image folders in {source}, not .*small; .*--force")
    shutil.rmtree(source / "small")
    (source / "train/owl").rename(source / "train/yak")
    expect_failure(lambda: write(source), source, "made of 3 other classes; .*--force")
    manifest_path(path).unlink()  # somebody's own file
    expect_failure(lambda: write(source), source, "no readable manifest .*--force")
    assert path.read_bytes() != before
    assert Manifest.load(write(source, force=True)).classes == ["cat", "dog", "yak"]


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        ({}, {"image__mode": "jpg"}, "image.mode=raw, not jpg"),
        ({"subset__rates": "0.5,0.5,1"}, {}, r"subset.rates=\[0.5, 0.5, 1.0\], not empty"),
        ({"splits__val": "10%"}, {"subset__per_class": "9"}, "splits.val=10%, not empty; subset.per_class=0, not 9"),
        ({}, {"dataset__seed": "4"}, "dataset.seed=0, not 4"),
    ],
)
def test_a_data_set_made_by_another_recipe_is_not_replaced_unasked(
    source: Path, first: dict[str, str], then: dict[str, str], message: str
) -> None:
    path = write(source, **first)
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    expect_failure(lambda: write(source, **then), source, rf"train.beton exists, made with {message}; .*--force")
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before
    assert (
        Manifest.load(write(source, force=True, **then)).recipe
        != Manifest.load(write(source, force=True, **first)).recipe
    )
    write(source, **first)  # the same again, unasked


def written(folder: Path) -> dict[Path, tuple[int, int]]:
    """Which file each is, and when it was written."""
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.iterdir()}


def test_damaged_images_of_all_splits_are_named_and_no_split_is_replaced(source: Path) -> None:
    path = write(source)
    before = written(path.parent)
    (source / "test/dog/0001.png").write_bytes(b"")
    expect_failure(lambda: write(source), source, r"cannot be read: \S*test/dog/0001\.png")
    assert written(path.parent) == before  # train.beton was whole
    (source / "train/owl/0001.png").write_bytes(b"")
    expect_failure(lambda: write(source), source, r"train/owl/0001\.png .*, \S*test/dog/0001\.png")


def test_splits_of_a_folder_without_splits(source: Path) -> None:
    (source / "train").rename(source / "small")
    overrides = {"splits__train": ".", "splits__val": "10%", "splits__test": "5 %"}
    manifests = [Manifest.load(path) for path in write_all(source, **overrides)]
    assert [manifest.split for manifest in manifests] == ["train", "val", "test"]
    assert [manifest.counts for manifest in manifests] == [[102, 51, 34], [12, 6, 4], [6, 3, 2]]
    images = [[image.tobytes() for image in stored(source / f"out/small/{m.split}.beton")] for m in manifests]
    assert len(set().union(*images)) == 220  # no image in two splits
    write_all(source, force=True, dataset__seed="1", **overrides)
    again = [image.tobytes() for image in stored(source / "out/small/val.beton")]
    assert set(again) != set(images[1])


def test_killed_worker(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(file: str) -> bytes:
        if file.endswith("dog/0007.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return Path(file).read_bytes()

    monkeypatch.setattr(sources, "read_file", load)
    expect_failure(lambda: write(source), source, "exit code -9")


def test_interrupted_writer(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(file: str) -> bytes:
        if file.endswith("dog/0007.png"):
            os.kill(os.getppid(), signal.SIGINT)
            time.sleep(60)
        return Path(file).read_bytes()

    monkeypatch.setattr(sources, "read_file", load)
    with pytest.raises(KeyboardInterrupt):
        write(source)
    assert not temporaries(source)
    assert not children(os.getpid())


@pytest.mark.requires_root
def test_full_disk(source: Path) -> None:
    out = source / "out"
    out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(out)], check=True)
    try:
        expect_failure(lambda: write(source), source, r"No space left on device; free some space")
        assert not list(out.rglob("*.beton"))
    finally:
        subprocess.run(["umount", str(out)], check=True)


def test_no_folder_to_write_to(source: Path) -> None:
    (source / "out").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write .* choose another --out-dir or path"):
        write(source)


def test_sigkill_leaves_nothing_under_the_final_name(source: Path) -> None:
    """The workers end with their parent, shared memory goes, and the next run removes the temporary file."""
    slow = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from ffcv_prune.data import sources\n"
        "from ffcv_prune.data.recipe import load_recipe\n"
        "from ffcv_prune.data.writer import write_dataset\n"
        "fast = sources.read_file\n"
        "sources.read_file = lambda file: (time.sleep(0.5), fast(file))[1]\n"
        "source = Path(sys.argv[1])\n"
        "write_dataset(load_recipe(str(source / 'small.yaml')), source, source / 'out', 2)\n"
    )
    before = shared_memory()
    writer = subprocess.Popen([sys.executable, "-c", slow, source], cwd=ROOT, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while len(workers := children(writer.pid)) < 2 or not temporaries(source):
            assert writer.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        writer.kill()
        writer.communicate()
    deadline = time.monotonic() + 20
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    expect_no_leak(before)
    assert not list(source.rglob("*.beton"))
    assert temporaries(source)
    alive = source / f"out/small/.train.beton.{os.getppid()}.tmp"
    alive.touch()
    write(source)
    assert temporaries(source) == [alive]


def test_manifest_of_another_file(source: Path) -> None:
    path = write(source)
    text = manifest_path(path).read_text()
    for damaged, expected in [
        ("", "cannot read"),
        ("[1]", "not a manifest"),
        (text.replace('"samples": 220', '"samples": 221'), "contradicts itself"),
        (text.replace('"cat"', "3"), "contradicts itself"),
    ]:
        manifest_path(path).write_text(damaged)
        with pytest.raises(UserError, match=expected):
            Manifest.load(path)
    manifest_path(path).write_text(text)
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match=r"another train\.beton"):
        Manifest.load(path)
    manifest_path(path).unlink()
    with pytest.raises(UserError, match="does not exist"):
        Manifest.load(path)


def test_mean_and_std_are_exact_at_any_count() -> None:
    histogram = np.zeros((3, 256), np.int64)
    histogram[:, 0], histogram[:, 255] = 2**61, 2**61
    assert mean_and_std(histogram) == ([0.5] * 3, [0.5] * 3)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--dataset", "small.yaml", "--workers=0"], "0 workers"),
        (["--dataset=small.yaml", "--workers=two"], "expected an integer"),
        (["--dataset=small.yaml", "--image.mod=raw"], 'did you mean "image.mode"'),
        (["--dataset=small.yaml", "--force=yes"], "--force takes no value"),
        (["--dataset=small.yaml", "--forced", "yes"], 'did you mean "force"'),
        (["--dataset=imagnet"], 'did you mean "imagenet"'),
        (["small.yaml"], 'unexpected argument "small.yaml"; write --dataset small.yaml'),
        (["--dataset=small.yaml", "--forse"], "unknown option --forse; did you mean --force?"),
        (["--dataset=smal.yaml"], 'No such file or directory; did you mean "small.yaml"?'),
        ([], "no data set"),
    ],
)
def test_command_refuses(
    source: Path,
    arguments: list[str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(source)
    monkeypatch.setattr(sys, "argv", ["write_datasets.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "write_datasets.py"), run_name="__main__")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert expected in error
    assert not (source / "betons").exists()


def test_command(source: Path) -> None:
    command = [sys.executable, str(ROOT / "write_datasets.py")]
    options = ["--dataset", "small.yaml", "--data-dir", ".", "--workers", "1", "--image.max_resolution=8"]
    done = subprocess.run([*command, *options], cwd=source, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "betons/small/train.beton: 220 images" in done.stdout
    assert check_beton(source / "betons/small/test.beton").num_samples == 3
    assert check_beton(source / "betons/small/train.beton").image_widths.max() == 8
    (source / "train/owl").rename(source / "train/yak")
    (source / "train/cat/0000.png").write_bytes(b"")
    again = subprocess.run([*command, *options], cwd=source, capture_output=True, text=True, timeout=100)
    assert again.returncode == 2 and "--force" in again.stderr
    options += ["--force", "--skip-broken"]
    again = subprocess.run([*command, *options], cwd=source, capture_output=True, text=True, timeout=100)
    assert again.returncode == 0 and "train/cat/0000.png" in again.stderr
    assert "betons/small/train.beton: 219 images" in again.stdout
