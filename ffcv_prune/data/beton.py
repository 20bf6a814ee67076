"""The check of a ``.beton`` file before native code sees it.

FFCV trusts every number in the file. A wrong pointer is a read outside the mapping. A wrong size is a copy past the
end of a buffer. `check_beton` reads header, field table, metadata and allocation table with numpy and refuses what
FFCV could not have written. It reads the tables whole (48 bytes a sample), of the data a bit.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numpy as np
from ffcv.fields import BytesField, IntField, NDArrayField, RGBImageField
from ffcv.fields.base import Field
from ffcv.fields.rgb_image import IMAGE_MODES
from ffcv.types import (
    ALLOC_TABLE_TYPE,
    CURRENT_VERSION,
    TYPE_ID_HANDLER,
    FieldDescType,
    HeaderType,
    get_metadata_type,
)
from ffcv.utils import align_to_page, decode_null_terminated_string, is_power_of_2
from ffcv.writer import MAX_PAGE_SIZE, MIN_PAGE_SIZE

from ffcv_prune.data.tables import Allocations, DamagedError, read_allocations, read_checksums, read_records
from ffcv_prune.errors import WRITE, UserError, write_command

RAW, JPG = int(IMAGE_MODES["raw"]), int(IMAGE_MODES["jpg"])

# FFCV writes baseline JPEG, where a flat 16 x 16 block of 768 bytes takes at least 1.5 bytes (512 : 1). Above
# that, height or width is damaged, and would make the loader allocate gigabytes.
MAX_JPEG_RATIO = 1000

# JPEG start markers are looked up one read each: enough to find any hole in the file that is larger than a
# ten-thousandth of it, and bounded on a cold disk.
MAX_JPEG_PROBES = 10_000

_WITH_DATA = (RGBImageField, BytesField, NDArrayField)  # outside the metadata
_KNOWN = (*_WITH_DATA, IntField)


@dataclass(frozen=True)
class BetonInfo:
    """What a sound ``.beton`` holds. Arrays are indexed by dataset position; n is the number of samples.

    `fields` maps each field's name to FFCV's type id, `array_shapes` that of each array field to the shape of a
    sample. The image arrays describe the first image field; where there is none, it is None and they are empty.
    `label_field` and `labels` are of the integer field called "label", or else of the only integer field; None where
    there is neither.
    """

    path: Path
    num_samples: int
    page_size: int
    bytes: int
    fields: dict[str, int]
    array_shapes: dict[str, tuple[int, ...]]
    image_field: str | None
    image_heights: np.ndarray  # uint16[n]
    image_widths: np.ndarray  # uint16[n]
    image_modes: np.ndarray  # uint8[n], RAW or JPG
    label_field: str | None
    labels: np.ndarray | None  # int64[n]


@dataclass(frozen=True)
class BetonTables:
    """The tables of a sound ``.beton`` as FFCV's reader uses them; m allocations, n samples.

    Attributes:
        info: what they say.
        metadata: FFCV's records, one a sample.
        addresses: uint64[m], ascending: where data were allocated.
        sizes: uint64[m]: bytes allocated there.
        pointers: of each field outside the metadata, uint64[n]: the address of each sample's data.
        lengths: of each of these, uint32[n]: the bytes there.
        checksums: uint32[n], the CRC-32C of each sample (`data.checksums` says of what), or None.
    """

    info: BetonInfo
    metadata: np.ndarray
    addresses: np.ndarray
    sizes: np.ndarray
    pointers: dict[str, np.ndarray]
    lengths: dict[str, np.ndarray]
    checksums: np.ndarray | None


def require_labels(info: BetonInfo) -> tuple[str, np.ndarray]:
    """Return the name of the label field and the labels, int64[n]. UserError where it is not clear which they are."""
    if info.label_field is None or info.labels is None:
        integers = [name for name, type_id in info.fields.items() if TYPE_ID_HANDLER[type_id] is IntField]
        reason = f"integer fields {', '.join(integers)}, none called label" if integers else "no integer field"
        raise UserError(f'{info.path} has {reason}: write it again with the labels in an IntField called "label"')
    return info.label_field, info.labels


def require_images(info: BetonInfo) -> str:
    """Return the name of the image field. UserError where there is none."""
    if info.image_field is None:
        raise UserError(
            f"{info.path} has no image field: write one, or build a PrunedLoader with pipelines of your own"
        )
    return info.image_field


CustomFields = Mapping[str, type[Field]]  # the class of each field whose type is not FFCV's own


def check_beton(path: str | os.PathLike[str], custom_fields: CustomFields | None = None) -> BetonInfo:
    """Read the tables of a ``.beton`` and check everything that native code would trust.

    Raises UserError, one line, for a missing, truncated, foreign or damaged file. Damage inside an image's
    pixels is not seen. Of `custom_fields`, those are checked whose class is made from one of FFCV's and keeps its
    metadata; if the class has a decoder of its own, only the addresses are.
    """
    return read_tables(path, custom_fields).info


def read_tables(path: str | os.PathLike[str], custom_fields: CustomFields | None = None) -> BetonTables:
    """As `check_beton`, and keep the tables it read."""
    path = Path(path)
    if "\0" in str(path):
        raise UserError(f"{path} is no name of a file: it has a null character")
    try:
        # Opening a pipe would block until somebody writes to it.
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path} is not a file; name a .beton written by {WRITE}")
        with path.open("rb") as file:
            return _read(path, file, os.fstat(file.fileno()).st_size, custom_fields or {})
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; write it with {write_command(path)}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except DamagedError as error:
        raise UserError(f"{path} {error}; write it again with {write_command(path)}") from error


def _read(path: Path, file: BinaryIO, file_bytes: int, custom_fields: CustomFields) -> BetonTables:
    remedy = f"name one that {write_command(path)} has written"
    if file_bytes < HeaderType.itemsize:
        raise UserError(f"{path} is not a .beton, it has {file_bytes} bytes: {remedy}")
    header = read_records(file, HeaderType, 1, 0)[0]
    if header["version"] != CURRENT_VERSION:
        raise UserError(
            f"{path} is not a .beton of FFCV's format {CURRENT_VERSION} (it says {header['version']}): {remedy}"
        )
    # Python's integers: sums and products below cannot wrap around.
    n, page_size = int(header["num_samples"]), int(header["page_size"])
    num_fields, table_start = int(header["num_fields"]), int(header["alloc_table_ptr"])
    if n < 1:
        raise DamagedError("holds no samples")
    if not (is_power_of_2(page_size) and MIN_PAGE_SIZE <= page_size < MAX_PAGE_SIZE):
        raise DamagedError(f"is damaged: page size {page_size}")

    metadata_start = HeaderType.itemsize + num_fields * FieldDescType.itemsize
    if metadata_start > file_bytes:
        raise DamagedError(f"is truncated or damaged: no room for {num_fields} field descriptions")
    descriptors = read_records(file, FieldDescType, num_fields, HeaderType.itemsize)
    handlers = _handlers(path, descriptors, custom_fields)
    kinds = {name: _kind(handler) for name, handler in handlers.items()}
    image_field = next(_names_of(kinds, RGBImageField), None)
    integers = list(_names_of(kinds, IntField))
    label_field = "label" if "label" in integers else integers[0] if len(integers) == 1 else None

    metadata_type = get_metadata_type(list(handlers.values()))
    metadata_end = metadata_start + n * metadata_type.itemsize
    data_start = align_to_page(metadata_end, page_size)
    if table_start == file_bytes and not any(isinstance(handler, _WITH_DATA) for handler in handlers.values()):
        data_start = table_start  # all values stand in the metadata: FFCV writes no page and no allocation
        in_place = metadata_end <= table_start
    else:
        in_place = data_start < table_start < file_bytes
    if not in_place:
        raise DamagedError(
            f"is truncated or damaged: {n} samples, allocation table at byte {table_start} of {file_bytes}"
        )
    if (table_start - data_start) % page_size or (file_bytes - table_start) % ALLOC_TABLE_TYPE.itemsize:
        raise DamagedError("is truncated or damaged: pages or allocation table are not whole")

    metadata = read_records(file, metadata_type, n, metadata_start)
    columns = {name: metadata[key] for name, key in zip(handlers, metadata_type.names or (), strict=True)}
    num_allocations = (file_bytes - table_start) // ALLOC_TABLE_TYPE.itemsize
    table = read_allocations(file, num_allocations, table_start)
    allocations = Allocations(table, n, page_size, data_start, table_start)
    pointers, lengths = {}, {}
    for name, handler in handlers.items():
        kind, column = kinds[name], columns[name]
        if kind is None or kind not in _WITH_DATA:
            continue
        pointers[name] = (
            column["data_ptr"] if kind is RGBImageField else column["ptr"] if kind is BytesField else column
        )
        if type(handler).get_decoder_class is not kind.get_decoder_class:  # what FFCV's decoder needs does not count
            lengths[name] = allocations.check(name, pointers[name])
        elif kind is RGBImageField:
            lengths[name] = _check_images(file, name, column, allocations)
        elif kind is BytesField:
            lengths[name] = _check_bytes(name, column, allocations)
        else:
            lengths[name] = allocations.check(name, column, handler.element_size)
    checksums = read_checksums(file, n, metadata_end, int(allocations.ptrs[0])) if pointers else None

    images = np.empty(0, RGBImageField().metadata_type) if image_field is None else columns[image_field]
    info = BetonInfo(
        path=path,
        num_samples=n,
        page_size=page_size,
        bytes=file_bytes,
        fields={name: int(row["type_id"]) for name, row in zip(handlers, descriptors, strict=True)},
        array_shapes={name: tuple(map(int, handlers[name].shape)) for name in _names_of(kinds, NDArrayField)},
        image_field=image_field,
        image_heights=np.ascontiguousarray(images["height"]),
        image_widths=np.ascontiguousarray(images["width"]),
        image_modes=np.ascontiguousarray(images["mode"]),
        label_field=label_field,
        labels=None if label_field is None else np.ascontiguousarray(columns[label_field]),
    )
    return BetonTables(info, metadata, allocations.ptrs, allocations.sizes, pointers, lengths, checksums)


def _handlers(path: Path, descriptors: np.ndarray, custom_fields: CustomFields) -> dict[str, Field]:
    """Return FFCV's field objects by name, in the file's order."""
    handlers: dict[str, Field] = {}
    for row in descriptors:
        try:
            name = decode_null_terminated_string(row["name"])
        except UnicodeDecodeError:
            raise DamagedError("is damaged: a field's name is not ASCII") from None
        if not name or name in handlers:
            raise DamagedError(f"is damaged: field name {name!r} is empty or used twice")
        custom, type_id = custom_fields.get(name), int(row["type_id"])
        handler_type = custom or TYPE_ID_HANDLER.get(type_id)
        if handler_type is None and type_id in TYPE_ID_HANDLER:
            raise UserError(f'field "{name}" of {path} is not of FFCV\'s own types: pass its class in custom_fields')
        if handler_type is None:
            raise DamagedError(f"is damaged: field {name!r} is of type {type_id}, which FFCV does not know")
        try:
            handlers[name] = handler_type.from_binary(row["arguments"])
            get_metadata_type([handlers[name]])
        except Exception as error:  # FFCV parses shape and dtype of arrays without checks: anything may come
            if custom:
                raise UserError(
                    f'custom_fields: {custom.__name__} cannot describe the field "{name}" of {path} '
                    f"({type(error).__name__}: {error}); pass the class that it was written with"
                ) from error
            raise DamagedError(f"is damaged: the description of field {name!r} cannot be read") from error
    if not handlers:
        raise DamagedError("is damaged: it has no fields")
    return handlers


def _kind(handler: Field) -> type[Field] | None:
    """The class of FFCV that the field has the metadata of, or these and more; None where they are unknown."""
    for kind in _KNOWN:
        if isinstance(handler, kind):
            theirs, own = kind.metadata_type.fget(handler), handler.metadata_type
            if theirs.names is None:
                return kind if own == theirs else None
            return kind if all(own.names and own.fields.get(n, [None])[0] == theirs[n] for n in theirs.names) else None
    return None


def _names_of(kinds: dict[str, type[Field] | None], wanted: type[Field]) -> Iterator[str]:
    return (name for name, kind in kinds.items() if kind is wanted)


def _check_bytes(field: str, column: np.ndarray, allocations: Allocations) -> np.ndarray:
    empty = np.flatnonzero(column["size"] == 0)
    if empty.size:  # it has the address of what was written next
        raise DamagedError(
            f"has an empty field {field!r} in sample {empty[0]}: FFCV would read another sample in its place, "
            "or it in that one's, so that each needs a byte"
        )
    return allocations.check(field, column["ptr"], column["size"])


def _check_images(file: BinaryIO, field: str, images: np.ndarray, allocations: Allocations) -> np.ndarray:
    sizes = allocations.check(field, images["data_ptr"])
    modes = images["mode"]
    pixels = images["height"].astype(np.uint64)
    pixels *= images["width"]
    pixels *= np.uint64(3)
    is_raw, is_jpg = modes == RAW, modes == JPG
    sound = (is_raw & (sizes == pixels)) | (is_jpg & (pixels <= sizes * np.uint64(MAX_JPEG_RATIO)))
    sound &= pixels > 0
    if not sound.all():
        wrong = int(np.argmin(sound))
        raise DamagedError(
            f"is damaged: field {field!r} of sample {wrong} has {images['width'][wrong]} x "
            f"{images['height'][wrong]} pixels, mode {modes[wrong]}, in {sizes[wrong]} bytes "
            f"({np.count_nonzero(~sound)} of {len(sound)} samples are wrong)"
        )
    jpg = np.flatnonzero(is_jpg)
    for sample in jpg[np.linspace(0, len(jpg) - 1, min(len(jpg), MAX_JPEG_PROBES), dtype=np.int64)]:
        # The decoder's return code is never looked at: a batch would silently hold stale pixels.
        if os.pread(file.fileno(), 2, int(images["data_ptr"][sample])) != b"\xff\xd8":
            raise DamagedError(f"is damaged: field {field!r} of sample {sample} is no JPEG image")
    return sizes
