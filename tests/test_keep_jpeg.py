"""JPEG files that are stored as they are, and those that are compressed anew."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ffcv_prune import PrunedLoader
from ffcv_prune.data.beton import JPG, check_beton, read_tables
from ffcv_prune.data.images import read_images
from ffcv_prune.data.jpeg import can_be_kept, opened
from ffcv_prune.data.manifest import Manifest, manifest_path
from ffcv_prune.data.recipe import load_recipe
from ffcv_prune.data.writer import write_dataset
from ffcv_prune.errors import UserError
from ffcv_prune.loading.pipelines import score_pipelines
from tests.data_helpers import write_recipe
from tests.test_writer import stored

SIDE, MOST = 40, 44  # pixels of the images, and allowed


def picture(width: int = SIDE, height: int = SIDE, mode: str = "RGB") -> Image.Image:
    """A smooth one."""
    down, right = np.mgrid[0:height, 0:width] * 5
    return Image.fromarray(np.stack([down, right, 255 - down], axis=2).astype(np.uint8)).convert(mode)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def jpeg(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 95} | options)
    return file.getvalue()


PLAIN = jpeg(picture())
KEPT = {
    "plain": PLAIN,
    "no chroma subsampling": jpeg(picture(), subsampling=0),
    "coarse": jpeg(picture(), quality=30),
    "optimised": jpeg(picture(), optimize=True),
    "restart markers": jpeg(picture(), restart_marker_rows=1),
    "upright": jpeg(picture(), exif=exif(1)),
    "a comment": jpeg(picture(), comment=b"\xff\xc2" * 50),
    "tags that say nothing": jpeg(picture(), exif=b"Exif\0\0no tags!"),
    "as large as may be": jpeg(picture(MOST, 7)),
    "a marker with bytes that fill": PLAIN[:2] + b"\xff\xff" + PLAIN[2:],
}
CHANGED = {
    "progressive": jpeg(picture(), progressive=True),
    "grey": jpeg(picture(mode="L")),
    "CMYK": jpeg(picture(mode="CMYK")),
    "turned": jpeg(picture(30), exif=exif(6)),
    "too wide": jpeg(picture(MOST + 1, 7)),
    "too high": jpeg(picture(7, MOST + 1)),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of all of these, and a PNG image, in the order of the names."""
    folder = tmp_path / "train/cat"
    folder.mkdir(parents=True)
    for place, content in enumerate((KEPT | CHANGED).values()):
        (folder / f"{place:02}.jpg").write_bytes(content)
    picture().save(folder / "99.png")
    write_recipe(tmp_path, "source: {folder: small}\nsplits: {train: train}\n")
    return tmp_path


def write(source: Path, **image: object) -> Path:
    own = {"mode": "jpg", "max_resolution": MOST, "keep_jpeg": True} | image
    overrides = {f"image.{name}": str(value) for name, value in own.items()}
    recipe = load_recipe(str(source / "small.yaml"), overrides)
    return write_dataset(recipe, source, source / "out", 1, force=True)[0]


def test_what_is_kept_and_what_is_changed(source: Path) -> None:
    path = write(source)
    kept, manifest = stored(path), Manifest.load(path)
    path = write(source, keep_jpeg=False)
    anew = stored(path)
    for place, (name, content) in enumerate((KEPT | CHANGED).items()):
        assert (kept[place].tobytes() == content) is (name in KEPT), name
        assert (kept[place].tobytes() == anew[place].tobytes()) is (name not in KEPT), name
    assert kept[-1].tobytes() == anew[-1].tobytes()  # the PNG image
    other = Manifest.load(path)
    assert (manifest.mean, manifest.std) == (other.mean, other.std)
    assert manifest.recipe["image"]["keep_jpeg"] is True


def test_images_that_are_kept_decode_to_those_of_their_files(source: Path) -> None:
    path = write(source)
    info = check_beton(path)
    images = read_images(path, range(info.num_samples))
    for place, content in enumerate(KEPT.values()):
        np.testing.assert_array_equal(images[place], np.array(Image.open(io.BytesIO(content))))
        assert images[place].shape == (info.image_heights[place], info.image_widths[place], 3)
        assert info.image_modes[place] == JPG


def test_the_loader_decodes_them(source: Path) -> None:
    for file in (source / "train/cat").iterdir():
        if Image.open(file).size != (SIDE, SIDE) or Image.open(file).mode != "RGB" or "02" in file.name:
            file.unlink()
    path = write(source)
    expected = read_images(path, range(check_beton(path).num_samples))
    loader = PrunedLoader(path, 4, 1, pipelines=score_pipelines(check_beton(path)), drop_last=False)
    images = np.concatenate([images.permute(0, 2, 3, 1).numpy().copy() for images, _ in loader])
    assert len(images) >= len(KEPT) - 2
    np.testing.assert_allclose(images.astype(int), np.stack(expected).astype(int), atol=6)  # another inverse DCT


def test_of_a_share_the_same_ones_are_jpeg(source: Path) -> None:
    modes = [
        check_beton(write(source, mode="proportion", keep_jpeg=keep)).image_modes.tolist() for keep in (True, False)
    ]
    assert modes[0] == modes[1]
    assert 0 < modes[0].count(JPG) < len(modes[0])


def test_a_file_longer_than_a_page_is_changed() -> None:
    assert can_be_kept(PLAIN, opened(PLAIN), SIDE, len(PLAIN))
    assert not can_be_kept(PLAIN, opened(PLAIN), SIDE, len(PLAIN) - 1)


@pytest.mark.parametrize("marker", [0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCA, 0xCF])
def test_other_kinds_of_frames_are_changed(marker: int) -> None:
    """Extended, progressive, lossless, differential, with arithmetic codes."""
    content = PLAIN.replace(b"\xff\xc0", bytes([0xFF, marker]), 1)
    assert not can_be_kept(content, opened(PLAIN), SIDE, len(content))


def test_tags_that_pillow_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """As older versions do: the image is no broken one for that."""

    def refuse(image: Image.Image) -> Image.Exif:
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", refuse)
    assert not can_be_kept(PLAIN, opened(PLAIN), SIDE, len(PLAIN))


@pytest.mark.parametrize("end", [2, 4, 30, PLAIN.index(b"\xff\xc0"), PLAIN.index(b"\xff\xc0") + 1])
def test_no_frame_is_found_in_a_part(end: int) -> None:
    assert not can_be_kept(PLAIN[:end], opened(PLAIN), SIDE, len(PLAIN))


def test_a_jpeg_that_is_cut_short_is_broken_as_before(source: Path) -> None:
    (source / "train/cat/00.jpg").write_bytes(PLAIN[: len(PLAIN) * 2 // 3])
    with pytest.raises(UserError, match=r"cannot be read: \S*/00\.jpg \(.*truncated.*\); replace or remove"):
        write(source)


def test_what_is_no_image_is_named_without_a_place_in_memory(source: Path) -> None:
    (source / "train/cat/00.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"00\.jpg \(cannot identify image file\)"):
        write(source)


def test_raw_pixels_keep_no_file(source: Path) -> None:
    with pytest.raises(UserError, match=r"image\.keep_jpeg .* image\.mode=raw; set image\.mode=jpg or proportion"):
        write(source, mode="raw")


def test_a_source_without_files_keeps_none() -> None:
    with pytest.raises(UserError, match=r"image\.keep_jpeg keeps files of image folders; set source\.folder"):
        load_recipe("fashion_mnist", {"image.mode": "jpg", "image.keep_jpeg": "true"})


def test_a_manifest_from_before_the_option(source: Path) -> None:
    path = write(source, keep_jpeg=False)
    content = json.loads(manifest_path(path).read_text())
    del content["recipe"]["image"]["keep_jpeg"]
    manifest_path(path).write_text(json.dumps(content))
    same = {"image.mode": "jpg", "image.max_resolution": str(MOST)}
    write_dataset(load_recipe(str(source / "small.yaml"), same), source, source / "out", 1)
    with pytest.raises(UserError, match=r"made with image\.keep_jpeg=False, not True; replace it with --force"):
        other = load_recipe(str(source / "small.yaml"), same | {"image.keep_jpeg": "true"})
        write_dataset(other, source, source / "out", 1)
    assert read_tables(path).checksums is not None
