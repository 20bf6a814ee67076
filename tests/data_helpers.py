"""Small source images for the tests of recipes and writer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

RECIPE = """\
source: {folder: small}
splits: {train: train, test: test}
"""


def write_images(root: Path, counts: Mapping[str, int], side: int = 8, suffix: str = "png") -> None:
    """Write ``root/CLASS/0000.png`` … of noise: `counts` says how many of each class."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        rng = np.random.default_rng([label, count])
        for i in range(count):
            pixels = rng.integers(0, 256, (side, side + label, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:04}.{suffix}")


def write_recipe(folder: Path, text: str = RECIPE, name: str = "small") -> str:
    """Write a recipe file and return its path."""
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return str(path)
