"""Files of images, and which of them a ``.beton`` can hold as they are."""

from __future__ import annotations

import io

from PIL import ExifTags, UnidentifiedImageError
from PIL.Image import Image as Picture
from PIL.Image import open as open_picture

_BASELINE = 0xC0  # the marker of its frame header
_NO_FRAMES = (0xC4, 0xC8, 0xCC)  # tables, among the markers of frame headers
_ALONE = (0x01, *range(0xD0, 0xD9))  # markers without a length
_SCAN, _END = 0xDA, 0xD9


def opened(content: bytes) -> Picture:
    """The image of a file. ValueError for what is none; what else is wrong shows when it is decoded."""
    try:
        return open_picture(io.BytesIO(content))
    except UnidentifiedImageError:  # its text names a place in memory
        raise ValueError("cannot identify image file") from None


def can_be_kept(content: bytes, picture: Picture, max_side: int, max_bytes: int) -> bool:
    """Whether a file is a baseline JPEG in colour, upright, of sides up to `max_side` pixels, up to `max_bytes` long.

    Progressive files take longer to decode. Those with an orientation are turned by some decoders only. Grey and CMYK
    ones have other channels.

    Args:
        content: of the file.
        picture: Pillow's, opened from it.
    """
    return (
        picture.format == "JPEG"
        and picture.mode == "RGB"
        and len(content) <= max_bytes
        and max(picture.size) <= max_side
        and _frame(content) == _BASELINE
        and _is_upright(picture)
    )


def _is_upright(picture: Picture) -> bool:
    try:
        return bool(picture.getexif().get(ExifTags.Base.Orientation, 1) == 1)
    except Exception:  # what older versions of Pillow raise on damaged tags; the pixels may be sound
        return False


def _frame(content: bytes) -> int:
    """The marker of the frame header, which says how the image is coded; 0 if there is none before the image."""
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker in (_SCAN, _END):
            break
        if marker & 0xF0 == 0xC0 and marker not in _NO_FRAMES:
            return marker
        if marker == 0xFF:  # a byte that fills
            place += 1
        elif marker in _ALONE:
            place += 2
        else:
            place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return 0
