"""The ring under a device that lags behind: no batch is overwritten before it was copied, or before it was used.

With a stand-in for the device (`late_device`), so that it runs everywhere; `test_cuda_loader.py` asks a real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.transforms import Squeeze, ToTensor, ToTorchImage

from ffcv_prune import PrunedLoader
from ffcv_prune.loading.ring import Ring
from tests import late_device
from tests.betons import Beton
from tests.late_device import Device, Event, Stream

BATCH = 8


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with pytest.MonkeyPatch.context() as patch:
        made = Device()
        late_device.install(patch, made)
        yield made


@pytest.fixture(scope="module", params=[1, 3], ids=["1 ahead", "3 ahead"])
def compiled(request: pytest.FixtureRequest, device: Device, beton: Beton) -> PrunedLoader:
    """Laps its ring five times and more."""
    pipelines = {
        "image": [SimpleRGBImageDecoder(), ToTensor(), late_device.ToLateDevice(device), ToTorchImage()],
        "label": [IntDecoder(), ToTensor(), late_device.ToLateDevice(device), Squeeze(1)],
    }
    return PrunedLoader(
        beton.path, BATCH, 1, pipelines=pipelines, shuffle=True, with_ids=True, batches_ahead=request.param
    )


@pytest.fixture
def loader(compiled: PrunedLoader, device: Device) -> Iterator[PrunedLoader]:
    """With a ring of its own: one test may leave it in disorder."""
    compiled._ring = None
    yield compiled
    compiled.close()
    device.forget()


Seen = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def consume(loader: PrunedLoader, device: Device, stream: Stream | None = None, batches: int = 1000) -> Seen:
    """Submit, for each batch, work that looks at it when the device gets there; as slow as a device can be."""
    seen: Seen = []
    with device.stream(stream or device.current_stream()):
        epoch = iter(loader)
        for _, (images, labels, ids) in zip(range(batches), epoch, strict=False):
            device.current_stream().submit(
                lambda images=images, labels=labels, ids=ids: seen.append((images.clone(), labels.clone(), ids))
            )
        epoch.close()
    return seen


def check(seen: Seen, beton: Beton, batches: int) -> None:
    assert len(seen) == batches
    for images, labels, ids in seen:
        np.testing.assert_array_equal(images.permute(0, 2, 3, 1), beton.images[ids])
        np.testing.assert_array_equal(labels, beton.labels[ids])


def two_epochs(loader: PrunedLoader, device: Device, beton: Beton) -> None:
    """A whole one, one that is closed half way, and a whole one again; on changing streams."""
    side = Stream(device)
    whole = len(beton) // BATCH
    first = consume(loader, device)
    half = consume(loader, device, side, whole // 2)
    last = consume(loader, device, side)
    again = consume(loader, device)
    device.run()
    for seen, batches in ((first, whole), (half, whole // 2), (last, whole), (again, whole)):
        check(seen, beton, batches)


def test_nothing_is_overwritten_that_the_device_still_needs(loader: PrunedLoader, device: Device, beton: Beton) -> None:
    two_epochs(loader, device, beton)


def forget(*_: Any, **__: Any) -> None:
    """In place of what orders the device."""


# What keeps a batch whole, and what the consumer sees without it.
GUARDS: dict[str, tuple[type, str, Callable[..., None]]] = {
    "host waits until a slot was copied": (Event, "synchronize", forget),
    "copies wait until a slot was used": (Stream, "wait_event", forget),
    "a batch waits for its copies": (Stream, "wait_stream", forget),
    "what was used is told": (Ring, "take_back", forget),
}


@pytest.mark.parametrize("guard", GUARDS)
def test_it_is_overwritten_without_any_of_the_guards(
    guard: str, loader: PrunedLoader, device: Device, beton: Beton, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail."""
    monkeypatch.setattr(*GUARDS[guard])
    with pytest.raises(AssertionError):
        two_epochs(loader, device, beton)


def test_a_consumer_that_keeps_up_is_not_held_up_by_its_own_batch(
    loader: PrunedLoader, device: Device, beton: Beton
) -> None:
    """A slot's next copies wait for the work on the batch that it held, and for none that was submitted later."""
    epoch, order = iter(loader), []
    for number, (images, _, _) in zip(range(len(loader)), epoch, strict=True):
        device.current_stream().submit(lambda number=number, images=images: order.append(number))
        ring = loader.ring
        held = ring._held
        assert held is not None and held[0] == number % ring.slots
        for slot, consumed in enumerate(ring.consumed):
            assert consumed is not None
            if slot == (number - 1) % ring.slots and number:
                device.run(lambda consumed=consumed: consumed.reached >= consumed.recorded)
                assert order[-1:] == [number - 1]  # and not yet this one's
    epoch.close()


def test_a_loader_that_is_closed_has_no_copies_on_their_way(loader: PrunedLoader, device: Device) -> None:
    """Its host buffers may be freed next."""
    epoch = iter(loader)
    next(epoch)
    epoch.close()
    assert all(copied is not None and copied.reached == copied.recorded for copied in loader.ring.copied)


class Allocated:
    """In place of a tensor: what PyTorch's allocator is told of it."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []

    def record_stream(self, stream: Stream) -> None:
        self.streams.append(stream)


def test_memory_is_kept_for_every_stream_that_got_a_batch(loader: PrunedLoader, device: Device) -> None:
    """Without it, the allocator gives the memory of a loader that is dropped to others at once."""
    buffer, side = Allocated(), Stream(device)
    loader.ring._on_device = [buffer]
    for stream in (device.current_stream(), side, side, device.current_stream()):
        consume(loader, device, stream, batches=3)
    assert buffer.streams == [device.current_stream(), side]
