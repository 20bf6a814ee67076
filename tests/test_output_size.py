"""Progressive resizing: `decoder.output_size` set between epochs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba.core.event as numba_event
import pytest
from ffcv.fields.decoders import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
from ffcv.transforms import ToTensor, ToTorchImage

from ffcv_prune import PrunedLoader
from ffcv_prune.loading.augment import CentreCrop, RandomResizedCrop
from tests.betons import Beton

DECODERS: list[Callable[[], Any]] = [
    lambda: CentreCrop(8, 1.0),
    lambda: RandomResizedCrop(8),
    lambda: CenterCropRGBImageDecoder((8, 8), 1.0),
    lambda: RandomResizedCropRGBImageDecoder((8, 8)),
]


@pytest.mark.parametrize("build", DECODERS)
def test_output_size_takes_effect_at_the_next_epoch_without_compiling(beton: Beton, build: Callable[[], Any]) -> None:
    decoder = build()
    loader = PrunedLoader(beton.path, 32, pipelines={"image": [decoder, ToTensor(), ToTorchImage()]})
    assert {tuple(batch[0].shape) for batch in loader} == {(32, 3, 8, 8)}
    ring = loader.ring
    decoder.output_size = (8, 8)
    assert len(list(loader)) == len(loader) and loader.ring is ring
    with numba_event.install_recorder("numba:compile") as recorder:
        decoder.output_size = (12, 10)
        running = iter(loader)
        decoder.output_size = (6, 6)
        assert {tuple(batch[0].shape) for batch in running} == {(32, 3, 12, 10)}
        batches = [batch[0].clone() for batch in loader]
    assert {tuple(images.shape) for images in batches} == {(32, 3, 6, 6)}
    assert all(images.float().std() > 0 for images in batches)
    assert not recorder.buffer
