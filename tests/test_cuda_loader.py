"""The loader on a GPU that lags behind: what it delivers there is what it delivers on the CPU.

`test_late_device.py` asks the same of a stand-in. Each guard is also left out, and the lagging test then fails.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

import pytest
import torch

from ffcv_prune import PrunedLoader, score_dataset
from ffcv_prune.data.beton import check_beton
from ffcv_prune.loading.pipelines import train_pipelines
from tests.betons import Beton
from tests.devices import BATCH_WAITS, BOTH, RING_GUARDS, finish, lag, leave_out, never_waiting, nothing, side_stream
from tests.nets import SmallNet

BATCH = 8
Served = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def make_loader(beton: Beton, device: str, batches_ahead: int = 3) -> PrunedLoader:
    pipelines = train_pipelines(check_beton(beton.path), "pad_crop_flip", device=device)
    options = {"batches_ahead": batches_ahead, "shuffle": True, "with_ids": True, "seed": 0}
    return PrunedLoader(beton.path, BATCH, 1, pipelines=pipelines, **options)


def serve(loader: PrunedLoader, device: str, batches: int = 1000, late: bool = True) -> Served:
    """Copies of an epoch's first batches, made when the device comes to it."""
    seen: Served = []
    epoch = iter(loader)
    for _, (images, labels, ids) in zip(range(batches), epoch, strict=False):
        assert images.device.type == labels.device.type == device
        assert images.dtype == torch.uint8 and images.is_contiguous(memory_format=torch.channels_last)
        if late:
            lag(device)
        seen.append((images.clone(), labels.clone(), ids.clone()))
    epoch.close()
    return seen


def three_epochs(loader: PrunedLoader, device: str, late: bool = True) -> Served:
    """A whole one, one that is closed half way, and a whole one on another stream."""
    loader.set_epoch(0)
    seen = serve(loader, device, late=late)
    seen += serve(loader, device, len(loader) // 2, late)
    with side_stream(device):
        seen += serve(loader, device, late=late)
    finish(device)
    return [(images.cpu(), labels.cpu(), ids) for images, labels, ids in seen]


def check_equal(found: Served, expected: Served) -> None:
    assert len(found) == len(expected)
    for own, other in zip(found, expected, strict=True):
        for tensor, wanted in zip(own, other, strict=True):
            assert torch.equal(tensor, wanted)


@pytest.fixture(scope="module", params=["raw", "jpeg"])
def stored(request: pytest.FixtureRequest, beton: Beton, jpg_beton: Beton) -> Beton:
    return beton if request.param == "raw" else jpg_beton


@pytest.fixture(scope="module")
def expected(stored: Beton) -> Served:
    return three_epochs(make_loader(stored, "cpu"), "cpu")


@pytest.mark.parametrize("batches_ahead", [1, 3])
@pytest.mark.parametrize("device", BOTH)
def test_a_lagging_device_gets_every_batch_whole(
    device: str, batches_ahead: int, stored: Beton, expected: Served
) -> None:
    check_equal(three_epochs(make_loader(stored, device, batches_ahead), device), expected)


@pytest.mark.cuda
@pytest.mark.parametrize("guard", RING_GUARDS)
@pytest.mark.parametrize("batches_ahead", [1, 3])
def test_without_the_guards_of_the_ring_it_does_not(
    batches_ahead: int, guard: str, beton: Beton, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail."""
    whole = three_epochs(make_loader(beton, "cpu"), "cpu")
    loader = make_loader(beton, "cuda", batches_ahead)
    leave_out(guard, monkeypatch)
    with pytest.raises(AssertionError):
        check_equal(three_epochs(loader, "cuda"), whole)


def late_copies(beton: Beton, device: str) -> Served:
    """The first batches of a loader whose copies come late, to a consumer that does not."""
    loader = make_loader(beton, device)
    for stream in loader.ring.streams:
        if stream is not None:
            with torch.cuda.stream(stream):
                lag(device, 100_000_000)
    seen = serve(loader, device, batches=4, late=False)
    finish(device)
    return [(images.cpu(), labels.cpu(), ids) for images, labels, ids in seen]


@pytest.mark.parametrize("device", BOTH)
def test_a_batch_waits_for_its_copies(device: str, beton: Beton) -> None:
    check_equal(late_copies(beton, device), late_copies(beton, "cpu"))


@pytest.mark.cuda
def test_without_its_guard_it_does_not(beton: Beton, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail."""
    whole = late_copies(beton, "cpu")
    leave_out(BATCH_WAITS, monkeypatch)
    with pytest.raises(AssertionError):
        check_equal(late_copies(beton, "cuda"), whole)


@pytest.mark.parametrize("device", BOTH)
def test_ids_are_pinned_and_cross_without_waiting(device: str, beton: Beton) -> None:
    loader = make_loader(beton, device)
    epoch = iter(loader)
    crossed = []
    for _, _, ids in epoch:
        assert ids.is_pinned() == (device == "cuda")
        with never_waiting(device):
            crossed.append(ids.to(device, non_blocking=True))
    assert torch.equal(torch.cat(crossed).cpu(), torch.from_numpy(epoch.order))


@pytest.fixture
def collected() -> Iterator[None]:
    gc.collect()
    yield
    gc.collect()


@pytest.mark.parametrize("device", BOTH)
def test_a_loader_gives_its_memory_back(device: str, beton: Beton, collected: None) -> None:
    before = torch.cuda.memory_allocated()
    loader = make_loader(beton, device)
    serve(loader, device)
    held = torch.cuda.memory_allocated() - before
    assert (held > 0) == (device == "cuda")
    loader.close()
    del loader
    gc.collect()
    finish(device)
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("device", BOTH)
def test_twenty_rings_in_a_row_take_the_memory_of_two(device: str, beton: Beton, collected: None) -> None:
    loader = make_loader(beton, device)
    before, held = torch.cuda.memory_allocated(), []
    for _ in range(20):
        loader._ring = None  # as for each new size of the images
        serve(loader, device, batches=5)
        gc.collect()
        finish(device)
        held.append(torch.cuda.memory_allocated() - before)
    assert max(held) <= 2 * held[0]


def held_when_dropped(beton: Beton, device: str) -> torch.Tensor:
    """A batch that a late stream copies after its loader is gone. By then others have taken the free memory."""
    torch.cuda.empty_cache()  # what is allocated next comes from little memory
    loader = make_loader(beton, device)
    assert loader.ring is not None  # its memory comes from the usual stream
    with side_stream(device):
        epoch = iter(loader)
        images, _, _ = next(epoch)
        lag(device, 400_000_000)
        seen = images.clone()
    epoch.close()
    del epoch, images, loader
    gc.collect()
    time.sleep(0.05)  # the streams of the slots are through
    others = [torch.full_like(seen, 255) for _ in range(1000)]
    finish(device)
    del others
    return seen.cpu()


@pytest.mark.parametrize("device", BOTH)
def test_a_batch_is_whole_after_its_loader_is_gone(device: str, beton: Beton, collected: None) -> None:
    expected = next(iter(make_loader(beton, "cpu")))[0]
    assert torch.equal(held_when_dropped(beton, device), expected)


@pytest.mark.cuda
def test_it_is_not_where_the_allocator_does_not_know_its_stream(
    beton: Beton, collected: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail."""
    expected = next(iter(make_loader(beton, "cpu")))[0]
    monkeypatch.setattr(torch.Tensor, "record_stream", nothing)
    assert not torch.equal(held_when_dropped(beton, "cuda"), expected)


@pytest.mark.cuda
def test_on_a_gpu_batch_norms_are_not_folded_unless_asked(beton: Beton, monkeypatch: pytest.MonkeyPatch) -> None:
    folded: list[bool] = []
    monkeypatch.setattr("ffcv_prune.scoring.forward.fold_batch_norm", lambda _: folded.append(True))
    model = SmallNet().to("cuda")
    pipelines = train_pipelines(check_beton(beton.path), "none", device="cuda")
    loader = PrunedLoader(beton.path, 64, 1, pipelines=pipelines, shuffle=False, drop_last=False)
    score_dataset(model, loader)
    assert not folded
    score_dataset(model, loader, fold=True)
    assert folded
