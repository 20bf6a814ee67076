"""What tells data sets apart: a checkpoint or a file of scores is of one of them."""

from __future__ import annotations

import hashlib
import os

import numpy as np

from ffcv_prune.data.beton import BetonInfo

FINGERPRINT_BLOCKS, FINGERPRINT_BLOCK_BYTES = 64, 4096


def fingerprint(info: BetonInfo) -> str:
    """A short text that differs between data sets: 16 hexadecimal digits.

    Made from the tables already in memory and from `FINGERPRINT_BLOCKS` pieces of the file, so that it costs
    milliseconds at any size. Path and date of the file do not enter: a copy has the same fingerprint.
    """
    digest = hashlib.blake2b(repr((info.num_samples, info.page_size, info.bytes, info.fields)).encode(), digest_size=8)
    for column in (info.labels, info.image_heights, info.image_widths, info.image_modes):
        if column is not None:
            digest.update(column.tobytes())
    with info.path.open("rb") as file:
        for offset in np.linspace(0, info.bytes, FINGERPRINT_BLOCKS, endpoint=False, dtype=np.int64):
            digest.update(os.pread(file.fileno(), FINGERPRINT_BLOCK_BYTES, int(offset)))
    return digest.hexdigest()
