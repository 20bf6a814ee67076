"""Single images out of a ``.beton``, for people to look at: without compiling a loader, which takes seconds."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numpy as np
from ffcv.reader import Reader
from numpy.typing import NDArray
from PIL import Image

from ffcv_prune.data.beton import RAW, check_beton, require_images
from ffcv_prune.errors import UserError


def read_images(path: str | os.PathLike[str], ids: Sequence[int]) -> list[NDArray[np.uint8]]:
    """Decode the images at these dataset positions: uint8[H, W, 3] each, as they are stored.

    Raises:
        UserError: a missing or damaged file, positions that it does not have, an image that does not decode.
    """
    info = check_beton(path)
    field = require_images(info)
    if any(not 0 <= i < info.num_samples for i in ids):
        raise UserError(f"{path} has {info.num_samples} images: position {max(ids)} or {min(ids)} is not among them")
    reader = Reader(os.fspath(path))
    column = list(info.fields).index(field)
    metadata = reader.metadata[f"f{column}"]
    table = reader.alloc_table
    images = []
    with open(path, "rb") as file:
        for i in ids:
            height, width, pointer = (int(metadata[name][i]) for name in ("height", "width", "data_ptr"))
            file.seek(pointer)
            content = file.read(int(table["size"][table["ptr"] == pointer][0]))
            if info.image_modes[i] == RAW:
                images.append(np.frombuffer(content, np.uint8).reshape(height, width, 3))
            else:
                images.append(_decode(content, f"image {i} of {path}"))
    return images


def _decode(content: bytes, name: str) -> NDArray[np.uint8]:
    try:
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    except OSError as error:
        raise UserError(f"{name} is damaged ({error}); write the data set again") from None
