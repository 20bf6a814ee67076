"""The buffers that batches are made in, and the making: images by the workers, then FFCV's operations."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numpy as np
import torch
from ffcv.fields import RGBImageField
from ffcv.loader.epoch_iterator import select_buffer
from numpy.typing import NDArray

from ffcv_prune.errors import UserError
from ffcv_prune.loading import kernels, native_code
from ffcv_prune.loading.augment import PadCropFlip, PlannedDecoder
from ffcv_prune.loading.graph import PipelineGraph, PlannedImages
from ffcv_prune.loading.native_code import StoredSamples
from ffcv_prune.loading.open_file import OpenFile
from ffcv_prune.loading.workers import workers


@dataclass(frozen=True)
class Decoding:
    """What the batches of an epoch are made with.

    Attributes:
        file: where the samples are.
        graph: the operations.
        code: FFCV's compiled stages, each with the nodes whose results it returns; and the nodes that are delivered.
        batch_size: samples a batch.
        batches_ahead: batches decoded in advance.
        num_workers: threads that decode.
        read_ahead: whether the disk is asked for what comes.
        seed: of the keyed augmentations.
        with_ids: whether the positions of the samples are delivered, too.
    """

    file: OpenFile
    graph: PipelineGraph
    code: tuple[Any, Any]
    batch_size: int
    batches_ahead: int
    num_workers: int
    read_ahead: bool
    seed: int
    with_ids: bool


class Ring:
    """The buffers of a loader, `batches_ahead + 2` slots at most, kept from epoch to epoch.

    A slot is: one batch with the consumer, `batches_ahead` that are made or in the making, one more in the making.
    `begin_batch` has its images made, by threads that work on several slots side by side; `finish_batch` does the
    rest. On CUDA a slot has a stream for its copies and two events. After `copied` the host buffer may be overwritten,
    after `consumed` the device buffer. The consumer's thread hands a slot out and takes it back; the loader's thread
    writes into it in between.

    Attributes:
        direct: whether `finish_batch` only makes views of what the native code makes.
        size: what it was made for, see `size_of`.
        process: number of the process that it was made in; in a fork, its threads are not there.
    """

    def __init__(self, decoding: Decoding) -> None:
        graph = decoding.graph
        samples = decoding.file.info.num_samples
        self.slots = min(decoding.batches_ahead, -(-samples // decoding.batch_size)) + 2  # no epoch has more batches
        self.size = self.size_of(decoding)
        try:
            memory = graph.allocate_memory(min(decoding.batch_size, samples), self.slots)
        except (MemoryError, RuntimeError) as error:
            raise UserError(
                f"{self.slots} batches of {decoding.batch_size} samples find no room in memory ({error}): "
                "use a smaller batch_size or batches_ahead"
            ) from error
        self.buffers = {f"memory_{node}": b for node, b in memory["operation"].items()}
        self.buffers |= {f"shared_memory_{node}": b for node, b in memory["shared"].items()}
        self.planned = graph.planned
        moved = {images.node for images in self.planned if images.move is not None}
        self.keys = {
            node: memory["operation"][node][1] for node, _ in graph.operations_of(PadCropFlip) if node not in moved
        }
        self._random_nodes = graph.random_nodes
        self._size = min(decoding.batch_size, samples)
        size = self._size, len(native_code.JOB)
        self.jobs = [[np.zeros(size, np.int64) for _ in self.planned] for _ in range(self.slots)]
        self.stored = [self._stored(decoding.file, images) for images in self.planned]
        numbers = graph.only_numbers if graph.cuda_device is None and native_code.library() is not None else None
        self.direct = numbers is not None
        copies = [
            [
                native_code.number_task(decoding.file.column(f), memory["operation"][n][slot])
                for n, f in (numbers or {}).items()
            ]
            for slot in range(self.slots)
        ]
        tasks: list[list[native_code.Task]] = []
        for slot, own in enumerate(self.jobs):
            tasks.append([])
            for jobs, images, stored in zip(own, self.planned, self.stored, strict=True):
                made = memory["operation"][images.node][0][slot]
                colour = None if images.move is None else images.move.colour
                tasks[slot].append(native_code.task(jobs, made, images.decoder.scaled, colour, stored))
        largest = [self._largest(decoding, images.field) for images in self.planned]
        self.workers = workers(tasks, decoding.num_workers, largest, copies)
        self.process = os.getpid()
        self.cuda = cuda = graph.cuda_device
        self._whole: list[tuple[tuple[NDArray[Any], bool], ...] | None] = [None] * self.slots
        self.producer: Any = None  # of the epoch that has the buffers
        self.streams = [torch.cuda.Stream(cuda) if cuda else None for _ in range(self.slots)]
        # Blocking: where the device holds the loader up, its thread sleeps instead of taking a core from the decoder.
        self.copied = [torch.cuda.Event(blocking=True) if cuda else None for _ in range(self.slots)]
        self.consumed = [torch.cuda.Event() if cuda else None for _ in range(self.slots)]
        for event in self.consumed:  # what was submitted before may still work on the memory that the slots got
            if event is not None:
                event.record(torch.cuda.current_stream(cuda))
        self._held: tuple[int, torch.cuda.Stream] | None = None  # handed out last, and where to
        self._on_device: list[torch.Tensor] = []
        self._consumers: set[torch.cuda.Stream] = set()  # streams that the allocator knows of
        for slots in self.buffers.values():  # a list of tensors, one a slot, where the dtype is torch's
            for tensor, stream in zip(slots, self.streams, strict=True) if isinstance(slots, list) else ():
                if tensor.is_cuda:  # a copy may be on its way when the loader is dropped
                    tensor.record_stream(stream)
                    self._on_device.append(tensor)

    @staticmethod
    def size_of(decoding: Decoding) -> tuple[Any, ...]:
        """Samples of a batch, batches ahead, threads, and the sizes of the images."""
        return decoding.batch_size, decoding.batches_ahead, decoding.num_workers, decoding.graph.output_sizes

    @staticmethod
    def _stored(file: OpenFile, images: PlannedImages) -> native_code.StoredImages | None:
        """By which the native code finds whole images; None where the decoder wants another part of them."""
        if type(images.decoder).plan is not PlannedDecoder.plan or native_code.library() is None:
            return None
        column = file.column(images.field)
        if column.dtype != RGBImageField().metadata_type:  # a custom field's
            return None
        mapped, places, sizes = file.memory_manager.context.state
        own = column.ctypes.data, column.strides[0], places.ctypes.data, sizes.ctypes.data, len(places)
        return native_code.StoredImages(mapped.ctypes.data, *own)

    @staticmethod
    def _largest(decoding: Decoding, field: int) -> int:
        """Bytes of the largest image of a field."""
        column = decoding.file.column(field)
        return 3 * int((column["height"].astype(np.int64) * column["width"]).max())

    def begin(self, seed: int, epoch: int) -> None:
        """Prepare for a new epoch; the thread of the previous one has ended."""
        self.take_back()  # the device may still be reading the last batch of the previous epoch
        self.seed, self.epoch = seed, epoch
        self.seeds = {node: kernels.operation_seed(seed, i) for i, node in enumerate(self._random_nodes)}
        for node, key in self.keys.items():
            key[...] = self.seeds[node], epoch

    def hand_out(self, slot: int) -> None:
        """Let the consumer's current stream use a slot, once its copies have arrived."""
        stream = self.streams[slot]
        if stream is not None:
            consumer = torch.cuda.current_stream(self.cuda)
            consumer.wait_stream(stream)
            self._held = slot, consumer
            if consumer not in self._consumers:  # it may still read a batch when the loader is dropped
                self._consumers.add(consumer)
                for tensor in self._on_device:
                    tensor.record_stream(consumer)

    def take_back(self) -> None:
        """All work on the slot that was handed out last is submitted: when it is done, the slot may be overwritten."""
        if self._held is not None:
            slot, consumer = self._held
            consumed = self.consumed[slot]
            assert consumed is not None
            consumed.record(consumer)
            self._held = None

    def settle(self) -> None:
        """Wait for the copies from host buffers, of which PyTorch's allocator knows nothing: they may be freed next."""
        for copied in self.copied:
            if copied is not None:
                copied.synchronize()

    def begin_batch(self, decoding: Decoding, ids: NDArray[np.int64], slot: int, stored: StoredSamples | None) -> None:
        """Have the images of the samples `ids` made. `stored`: have these checked first. The caller holds both."""
        copied = self.copied[slot]
        if copied is not None:
            copied.synchronize()  # the pinned buffer's last copy, several batches ago
        storage_state = decoding.file.memory_manager.context.state
        for images, whole, jobs in zip(self.planned, self.stored, self.jobs[slot], strict=True):
            own = jobs[: len(ids)]
            if whole is None:
                column = decoding.file.column(images.field)
                seed = self.seeds.get(images.decoder_node, self.seed)
                images.decoder.plan(own, ids, column, storage_state, seed, self.epoch)
            if images.move is not None:
                images.move.plan(own, ids, self.seeds[images.node], self.epoch)
        self.workers.submit(slot, ids, stored)

    def finish_batch(self, decoding: Decoding, ids: NDArray[np.int64], slot: int) -> tuple[Any, ...]:
        """The outputs for the samples `ids`, whose images are made: views into the slot, which on CUDA may not be
        written yet."""
        if not self.direct or len(ids) < self._size:
            return self._outputs(decoding, ids, slot)
        outputs = self._whole[slot]
        if outputs is None:
            made = self._outputs(decoding, ids, slot)
            outputs = self._whole[slot] = tuple(
                (o.numpy(), True) if isinstance(o, torch.Tensor) else (o, False) for o in made
            )
        # Each batch has storages of its own: the consumer may share their memory, or change their shapes.
        with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
            return tuple(torch.from_numpy(array) if is_tensor else array.view() for array, is_tensor in outputs)

    def _outputs(self, decoding: Decoding, ids: NDArray[np.int64], slot: int) -> tuple[Any, ...]:
        stream, copied, consumed = self.streams[slot], self.copied[slot], self.consumed[slot]
        with torch.inference_mode(False) if stream is None else torch.cuda.stream(stream):
            if stream is not None and consumed is not None:
                stream.wait_event(consumed)
            stages, outputs = decoding.code
            manager = decoding.file.memory_manager
            values: dict[str, Any] = {
                "batch_indices": ids,
                "storage_state": manager.context.state,
                "metadata": manager.reader.metadata,
            }
            values |= {name: select_buffer(b, slot, len(ids)) for name, b in self.buffers.items()}
            for stage, nodes in stages:
                values |= {f"result_{node}": result for node, result in zip(nodes, stage(**values), strict=True)}
            if copied is not None:
                copied.record(stream)
        return tuple(values[f"result_{node}"] for node in outputs)
