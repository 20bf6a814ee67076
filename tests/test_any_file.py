"""Files of any fields: what FFCV's own `Loader` delivers of them, `PrunedLoader` delivers too, with ids if asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ffcv.fields import BytesField, FloatField, IntField, JSONField, NDArrayField, RGBImageField, TorchTensorField
from ffcv.fields.base import ARG_TYPE, Field
from ffcv.fields.basics import FloatDecoder
from ffcv.fields.bytes import BytesDecoder
from ffcv.fields.decoders import CenterCropRGBImageDecoder, SimpleRGBImageDecoder
from ffcv.fields.ndarray import NDArrayDecoder
from ffcv.loader import Loader
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State
from ffcv.transforms import NormalizeImage, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter

from ffcv_prune import PrunedLoader
from ffcv_prune.data.beton import check_beton
from ffcv_prune.data.images import read_images
from ffcv_prune.errors import UserError
from ffcv_prune.loading.pipelines import score_pipelines, stored_size

N, BATCH = 53, 8


class StringField(NDArrayField):
    """Text of up to 20 characters: a user's field made from one of FFCV's."""

    def __init__(self) -> None:
        super().__init__(np.dtype(np.uint8), (20,))

    def encode(self, destination: Any, field: str, malloc: Any) -> None:
        super().encode(destination, np.frombuffer(field.ljust(20).encode("ascii"), np.uint8), malloc)


class StringDecoder(NDArrayDecoder):
    pass


class PointDecoder(Operation):
    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        state = replace(previous_state, jit_mode=True, shape=(2,), dtype=np.dtype("<f4"))
        return state, AllocationQuery((2,), np.dtype("<f4"))

    def generate_code(self) -> Callable[..., Any]:
        def decode(indices: Any, destination: Any, metadata: Any, storage_state: Any) -> Any:
            for i in range(len(indices)):
                destination[i, 0] = metadata[indices[i]]["x"]
                destination[i, 1] = metadata[indices[i]]["y"]
            return destination

        return decode


class PointField(Field):
    """A point in the plane, which stands in the metadata: a user's field that is none of FFCV's."""

    metadata_type = np.dtype([("x", "<f4"), ("y", "<f4")])

    @staticmethod
    def from_binary(binary: Any) -> PointField:
        return PointField()

    def to_binary(self) -> Any:
        return np.zeros(1, dtype=ARG_TYPE)[0]

    def encode(self, destination: Any, field: Any, malloc: Any) -> None:
        destination["x"], destination["y"] = field

    def get_decoder_class(self) -> type[Operation]:
        return PointDecoder


class PackedDecoder(Operation):
    """FFCV's way to read bytes, then the user's to unpack them."""

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        state = replace(previous_state, jit_mode=True, shape=(9,), dtype=np.dtype("u1"))
        return state, AllocationQuery((9,), np.dtype("u1"))

    def generate_code(self) -> Callable[..., Any]:
        read, named = self.memory_read, self.metadata.dtype.names is not None
        address = Compiler.compile((lambda row: row["address"]) if named else (lambda row: row))

        def decode(indices: Any, destination: Any, metadata: Any, storage_state: Any) -> Any:
            for i in range(len(indices)):
                packed = read(address(metadata[indices[i]]), storage_state)
                destination[i] = packed[0]
                destination[i, : len(packed)] = packed
            return destination

        return decode


class PackedField(NDArrayField):
    """Arrays of nine bytes without the equal ones at the end: a user's field with an encoding of its own."""

    def __init__(self) -> None:
        super().__init__(np.dtype(np.uint8), (9,))

    @classmethod
    def from_binary(cls, binary: Any) -> Field:  # FFCV's returns a field of its own class
        return cls()

    def encode(self, destination: Any, field: Any, malloc: Any) -> None:
        address, storage = malloc(1 + np.flatnonzero(field != field[0]).max(initial=0))
        storage[:] = field[: len(storage)]
        self.place(destination, address)

    def place(self, destination: Any, address: int) -> None:
        destination[0] = address

    def get_decoder_class(self) -> type[Operation]:
        return PackedDecoder


class NamedField(PackedField):
    """The same with other metadata than FFCV's."""

    metadata_type = np.dtype([("rows", "<u2"), ("address", "<u8")])

    def place(self, destination: Any, address: int) -> None:
        destination["address"] = address


class DatedImage(RGBImageField):
    """An image of FFCV's with one more number in its metadata."""

    metadata_type = np.dtype(
        [*((n, RGBImageField().metadata_type[n]) for n in RGBImageField().metadata_type.names), ("year", "<i4")]
    )

    @staticmethod
    def from_binary(binary: Any) -> Field:
        return DatedImage("raw")

    def encode(self, destination: Any, field: Any, malloc: Any) -> None:
        super().encode(destination, field, malloc)
        destination["year"] = 2020


class Doubled(Operation):
    """A user's own operation."""

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        return previous_state, AllocationQuery(previous_state.shape, previous_state.dtype)

    def generate_code(self) -> Callable[..., Any]:
        def double(values: Any, destination: Any) -> Any:
            destination[:] = 2 * values
            return destination

        return double


@dataclass(frozen=True)
class Case:
    """Fields, one sample of them, and what a loader is built with."""

    fields: dict[str, Field]
    sample: Callable[[int], tuple[Any, ...]]
    pipelines: Callable[[], dict[str, Any]] = dict
    custom_fields: dict[str, Any] | None = None
    within: int = 0


def image(i: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)


def packed(i: int) -> np.ndarray:
    return np.array([i + 1] * 9 if i % 3 else [i + 1, i + 2, *[i + 1] * 7], np.uint8)


CASES = {
    "numbers": Case(
        {"index": IntField(), "value": FloatField()},
        lambda i: (i, np.sin(i)),
        lambda: {"value": [FloatDecoder(), Doubled(), ToTensor()]},
    ),
    "a field left out": Case(
        {"index": IntField(), "value": FloatField()}, lambda i: (i, np.sin(i)), lambda: {"index": None}
    ),
    "arrays": Case(
        {
            "a": NDArrayField(np.dtype("<f4"), (3, 4)),
            "b": NDArrayField(np.dtype("<i2"), (5,)),
            "c": TorchTensorField(torch.float64, (2,)),
        },
        lambda i: (np.full((3, 4), i, np.float32), np.arange(i, i + 5, dtype=np.int16), torch.tensor([i, -i]).double()),
    ),
    "json": Case(
        {"index": IntField(), "text": JSONField()},
        lambda i: (i, {"name": "x" * (i + 1)}),
        lambda: {"text": [BytesDecoder()]},
    ),
    "custom": Case(
        {"point": PointField(), "text": StringField()},
        lambda i: ((i, -i), f"number {i}"),
        lambda: {"text": [StringDecoder()]},
        {"text": StringField, "point": PointField},
    ),
    "custom encoding": Case(
        {"packed": PackedField(), "named": NamedField(), "text": StringField()},
        lambda i: (packed(i), packed(i + 1), f"number {i}"),
        custom_fields={"packed": PackedField, "named": NamedField, "text": StringField},
    ),
    "custom metadata": Case(
        {"image": DatedImage("raw"), "label": IntField()},
        lambda i: (image(i), i),
        custom_fields={"image": DatedImage},
    ),
    "custom without data": Case(
        {"point": PointField()}, lambda i: ((i, -i),), dict, {"point": PointField}
    ),
    "images": Case(
        {"label": IntField(), "image": RGBImageField("raw"), "mask": RGBImageField("raw")},
        lambda i: (i, image(i), image(1000 + i)),
        lambda: {
            "image": [
                SimpleRGBImageDecoder(),
                NormalizeImage(np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0]), np.float32),
                ToTensor(),
                ToTorchImage(),
            ]
        },
    ),
    "photographs": Case(
        {"image": RGBImageField("jpg"), "label": IntField()},
        lambda i: (image(i, 20 + i % 7, 30), i),
        lambda: {"image": [CenterCropRGBImageDecoder((16, 16), 0.9), ToTensor()]},
        within=1,  # of 255: the resize is ours
    ),
}  # fmt: skip


class Samples:
    def __init__(self, sample: Callable[[int], tuple[Any, ...]]) -> None:
        self.sample = sample

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        return self.sample(i)


def write(path: Path, fields: dict[str, Any], sample: Callable[[int], tuple[Any, ...]]) -> Path:
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(Samples(sample))
    return path


def served(loader: Loader) -> list[list[np.ndarray]]:
    """All batches of an epoch, each output as an array; a text without what its buffer held behind the end."""
    batches = []
    for batch in loader:
        arrays = [np.array(output.numpy() if isinstance(output, torch.Tensor) else output) for output in batch]
        batches.append(
            [JSONField.unpack(a) if a.dtype == np.uint8 and a.ndim == 2 and not a.all() else a for a in arrays]
        )
    return batches


def equal(one: np.ndarray, other: np.ndarray, within: int) -> None:
    if within:
        np.testing.assert_allclose(one.astype(int), other.astype(int), rtol=0, atol=within)
    else:
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", CASES)
def test_what_ffcvs_loader_delivers(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = write(tmp_path / "any.beton", case.fields, case.sample)
    custom = {"custom_fields": case.custom_fields} if case.custom_fields else {}
    options: dict[str, Any] = {"batch_size": BATCH, "num_workers": 1, "drop_last": False, **custom}
    theirs = served(Loader(str(path), os_cache=True, pipelines=case.pipelines(), **options))
    loader = PrunedLoader(path, pipelines=case.pipelines(), with_ids=True, **options)
    for ours, expected in zip(served(loader), theirs, strict=True):
        for one, other in zip(ours[:-1], expected, strict=True):
            equal(one, other, case.within)
    rows = [np.concatenate([np.asarray(batch[place]) for batch in theirs]) for place in range(len(theirs[0]))]
    ids = np.array([50, 3, 17, 4, 29, 30, 31, 8, 9])
    loader.set_selection(ids)
    for *outputs, batch_ids in served(loader):
        assert set(batch_ids.tolist()) <= set(ids.tolist())
        for output, row in zip(outputs, rows, strict=True):
            equal(output, row[batch_ids], case.within)


def test_a_batch_of_any_file_knows_its_samples(tmp_path: Path) -> None:
    case = CASES["numbers"]
    loader = PrunedLoader(write(tmp_path / "any.beton", case.fields, case.sample), BATCH, shuffle=True)
    for batch in loader.batches(epoch=3):
        np.testing.assert_array_equal(batch.targets[:, 0], batch.ids)  # the only integers are the labels
        np.testing.assert_allclose(batch.inputs[:, 0], np.sin(batch.ids.numpy()))  # there are no images
    nothing = PrunedLoader(loader.path, BATCH, pipelines={"index": None, "value": None}, with_ids=True)
    assert [len(batch) for batch in nothing] == [1] * (N // BATCH)
    assert all(batch.inputs is None and batch.targets is None for batch in nothing.batches(0))


def test_a_loader_shares_a_file_only_with_those_of_the_same_custom_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "text.beton", {"text": StringField()}, lambda i: (f"number {i}",))
    first, second = (PrunedLoader(path, BATCH, custom_fields={"text": StringField}) for _ in range(2))
    assert first.file is second.file

    class Other(StringField):
        pass

    assert PrunedLoader(path, BATCH, custom_fields={"text": Other}).file is not first.file
    np.testing.assert_array_equal(first.reader.alloc_table["sample_id"], np.arange(N))


class Broken(Field):
    @staticmethod
    def from_binary(binary: Any) -> Field:
        raise KeyError("nothing")


@pytest.mark.parametrize(
    ("custom_fields", "message"),
    [
        ({}, 'field "text" of .* is not of FFCV.s own types: pass its class in custom_fields'),
        ({"txt": StringField}, 'field "text" of .* is not of FFCV.s own types'),
        ({"text": StringField()}, 'custom_fields has <.*> for "text": pass the class'),
        ({"text": 5}, 'custom_fields has 5 for "text": pass the class'),
        ({"text": Broken}, r"Broken cannot describe the field .text.*KeyError: 'nothing'"),
        ([StringField], r"custom_fields is \[<class .*: pass a dict"),
    ],
)  # fmt: skip
def test_custom_fields_that_do_not_fit_are_one_line(tmp_path: Path, custom_fields: Any, message: str) -> None:
    path = write(tmp_path / "text.beton", {"text": StringField()}, lambda i: ("x",))
    with pytest.raises(UserError, match=message) as caught:
        PrunedLoader(path, BATCH, custom_fields=custom_fields)
    assert "\n" not in str(caught.value)


def test_what_needs_images_says_so(tmp_path: Path) -> None:
    case = CASES["numbers"]
    info = check_beton(write(tmp_path / "numbers.beton", case.fields, case.sample))
    assert (info.image_field, info.image_heights.size, info.label_field) == (None, 0, "index")
    for needs_images in (score_pipelines, stored_size, lambda info: read_images(info.path, [0])):
        with pytest.raises(UserError, match="has no image field"):
            needs_images(info)


def test_empty_values_are_refused(tmp_path: Path) -> None:
    """FFCV gives an empty value the address of the next one, and then reads one for the other without a word."""
    path = write(tmp_path / "empty.beton", {"b": BytesField()}, lambda i: (np.zeros(7 * (i != 3), np.uint8),))
    with pytest.raises(UserError, match="has an empty field 'b' in sample 3"):
        PrunedLoader(path, BATCH)
