"""One pass over the data: a thread that fills a ring of buffers, and the iterator that hands them out."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numba
import numpy as np
import torch
from ffcv.loader.epoch_iterator import select_buffer
from numpy.typing import NDArray

from ffcv_prune.errors import UserError, uninterrupted
from ffcv_prune.loading.augment import KeyedOperation, SharedOperation
from ffcv_prune.loading.read_ahead import ReadAhead
from ffcv_prune.protocols import Batch

if TYPE_CHECKING:
    from ffcv_prune.loading.loader import PrunedLoader

POLL_SECONDS = 0.5  # how soon a stopped or dead thread is noticed


class LoaderError(RuntimeError):
    """The loader's thread failed; its exception is the cause."""


class Ring:
    """The buffers of a loader, `batches_ahead + 2` slots, kept from epoch to epoch.

    A slot is: one batch with the consumer, `batches_ahead` in the queue, one being written. On CUDA a slot
    has a stream for its copies, an event `copied` (the host buffer may be overwritten) and an event
    `consumed` (the device buffer may be overwritten).
    """

    def __init__(self, loader: PrunedLoader) -> None:
        self.slots = loader.batches_ahead + 2
        self.output_sizes = loader.output_sizes
        memory = loader.graph.allocate_memory(loader.batch_size, self.slots)
        self.buffers = {f"memory_{node}": b for node, b in memory["operation"].items()}
        self.buffers |= {f"shared_memory_{node}": b for node, b in memory["shared"].items()}
        self.keys = [memory["operation"][node][1] for node, _ in loader.operations_of(KeyedOperation)]
        self.shared = {  # see SharedOperation
            f"memory_{node}": (np.zeros(1, np.int64), np.empty((loader.num_workers, op.scratch_bytes), np.uint8))
            for node, op in loader.operations_of(SharedOperation)
        }
        cuda = loader.cuda_device
        self.streams = [torch.cuda.Stream(cuda) if cuda else None for _ in range(self.slots)]
        # Blocking: where the device holds the loader up, its thread sleeps instead of taking a core from the decoder.
        self.copied = [torch.cuda.Event(blocking=True) if cuda else None for _ in range(self.slots)]
        self.consumed: list[torch.cuda.Event | None] = [None] * self.slots
        for slots in self.buffers.values():  # a list of tensors, one a slot, where the dtype is torch's
            for tensor, stream in zip(slots, self.streams, strict=True) if isinstance(slots, list) else ():
                if tensor.is_cuda:  # a copy may be on its way when the loader is dropped
                    tensor.record_stream(stream)

    def begin(self, seed: int, epoch: int, cuda: torch.device | None) -> None:
        """Prepare for a new epoch; the thread of the previous one has ended."""
        for key in self.keys:
            key[...] = seed, epoch
        if cuda:  # the device may still be reading the last batches of the previous epoch
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(cuda))
            self.consumed = [event] * self.slots


class _Producer(threading.Thread):
    """Decodes the batches of one epoch into the ring. Its exceptions go to the consumer, never to the void."""

    def __init__(self, loader: PrunedLoader, ring: Ring, ids: NDArray[np.int64]) -> None:
        super().__init__(daemon=True, name="ffcv_prune-loader")
        self.loader = loader
        self.ring = ring
        size = loader.batch_size
        self.batches = [ids[i : i + size] for i in range(0, len(ids), size)]
        self.output: queue.Queue[tuple[int, Any] | BaseException | None] = queue.Queue(loader.batches_ahead)
        self.stop_requested = threading.Event()
        self.read_ahead = ReadAhead(loader.file, loader.decoded_fields, ids, size) if loader.read_ahead else None
        # The stream that the consumer works on; __next__ keeps it up to date.
        self.cuda = loader.cuda_device  # asked here: a new thread's current device is another
        self.consumer_stream = torch.cuda.current_stream(self.cuda) if self.cuda else None

    def run(self) -> None:
        last: BaseException | None = None
        try:
            numba.set_num_threads(self.loader.num_workers)  # holds for this thread only
            if self.cuda:
                torch.cuda.set_device(self.cuda)  # a new thread starts on device 0
            if self.read_ahead:
                self.read_ahead.start()
            for b, ids in enumerate(self.batches):
                slot = b % self.ring.slots
                if self.read_ahead:
                    self.read_ahead.decoding(b)
                self.loader.file.check_unchanged()  # reading what is no longer there would kill the process (SIGBUS)
                if not self._put((slot, self._decode(ids, slot))):
                    return
                if self.consumer_stream is not None:
                    # Batch b found room, so the consumer has taken batch b - batches_ahead, and all work on
                    # the one before it is submitted: that one's slot is the next to be written.
                    event = torch.cuda.Event()
                    event.record(self.consumer_stream)
                    self.ring.consumed[(slot + 1) % self.ring.slots] = event
        except BaseException as error:  # handed to the consumer, which raises it
            last = error
        self._put(last)

    def _decode(self, ids: NDArray[np.int64], slot: int) -> tuple[Any, ...]:
        stream, copied, consumed = self.ring.streams[slot], self.ring.copied[slot], self.ring.consumed[slot]
        if copied is not None:
            copied.synchronize()  # the pinned buffer's last copy, several batches ago
        with torch.cuda.stream(stream) if stream is not None else nullcontext():
            if stream is not None and consumed is not None:
                stream.wait_event(consumed)
            stages, outputs = self.loader.code
            values: dict[str, Any] = {
                "batch_indices": ids,
                "storage_state": self.loader.memory_manager.context.state,
                "metadata": self.loader.reader.metadata,
            }
            values |= {name: select_buffer(b, slot, len(ids)) for name, b in self.ring.buffers.items()}
            for name, (taken, scratch) in self.ring.shared.items():
                taken[0] = 0
                values[name] = (*values[name], taken, scratch)
            for stage, nodes in stages:
                values |= {f"result_{node}": result for node, result in zip(nodes, stage(**values), strict=True)}
            if copied is not None:
                copied.record(stream)
        return tuple(values[f"result_{node}"] for node in outputs)

    def _put(self, item: tuple[int, Any] | BaseException | None) -> bool:
        while not self.stop_requested.is_set():
            try:
                self.output.put(item, timeout=POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def shut_down(self) -> None:
        """Stop the thread and wait for its end. May be called more than once."""
        self.stop_requested.set()
        with uninterrupted():
            while self.is_alive():
                try:  # room for a put that waits
                    self.output.get_nowait()
                except queue.Empty:
                    self.join(timeout=0.01)
        if self.read_ahead:
            self.read_ahead.stop()


class Epoch:
    """Iterator over the batches of one epoch.

    Attributes:
        epoch: number of the epoch.
        order: int64[m], the ids in the order they are served.
        selection: int64[k], sorted: what the order was made of; None: all samples.
        served: batches handed out so far, those skipped at the start included.

    Batches are views into a ring of buffers: clone what outlives the step. Those on the CPU are overwritten without
    asking any device, so copy them to one without `non_blocking`. Dropping the iterator, or calling
    `close`, ends its thread.
    """

    def __init__(
        self,
        loader: PrunedLoader,
        epoch: int,
        order: NDArray[np.int64],
        first_batch: int,
        selection: NDArray[np.int64] | None,
    ) -> None:
        self.epoch = epoch
        self.order = order
        self.selection = selection
        self.served = first_batch
        self._loader = loader
        self._ids = torch.from_numpy(order)
        if loader.cuda_device:
            # A copy to the device from memory that is not pinned may first wait for the stream, in every step.
            self._ids = self._ids.pin_memory()
        self._ring = loader.ring  # held: a decoder's output size may be set while the epoch is running
        self._ring.begin(loader.seed, epoch, loader.cuda_device)
        self._producer = _Producer(loader, self._ring, order[first_batch * loader.batch_size :])
        self._finished = False
        # Runs when the iterator is dropped, and at exit: a daemon thread inside native code must not outlive
        # the interpreter.
        self._shut_down = weakref.finalize(self, self._producer.shut_down)
        self._producer.start()

    def __iter__(self) -> Epoch:
        return self

    def __next__(self) -> tuple[Any, ...]:
        if self._finished:
            raise StopIteration
        if not self._shut_down.alive:
            raise LoaderError("this epoch was closed, by close() or by the beginning of a newer one")
        start = time.perf_counter()
        item = self._next_item()
        self._loader.wait_seconds += time.perf_counter() - start
        if not isinstance(item, tuple):
            self._finished = True
            self.close()
            if item is None:
                raise StopIteration
            if isinstance(item, LoaderError | UserError):
                raise item
            raise LoaderError(
                f"{self._loader.path}: batch {self.served} of epoch {self.epoch} failed in the loader's thread: "
                f"{type(item).__name__}: {item}"
            ) from item
        slot, outputs = item
        stream = self._ring.streams[slot]
        if stream is not None:
            self._producer.consumer_stream = torch.cuda.current_stream(self._loader.cuda_device)
            self._producer.consumer_stream.wait_stream(stream)
        ids = self.next_ids
        self.served += 1
        return (*outputs, ids) if self._loader.with_ids else outputs

    @property
    def next_ids(self) -> torch.Tensor:
        """int64[B]: the ids of the batch that comes next.

        Of this epoch's own array, in no ring: a copy of them to a device may be as asynchronous as it likes.
        """
        first = self.served * self._loader.batch_size
        return self._ids[first : first + self._loader.batch_size]

    def _next_item(self) -> tuple[int, Any] | BaseException | None:
        while True:
            alive = self._producer.is_alive()  # asked first: what a thread put before it ended is still read
            try:
                return self._producer.output.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if not alive:
                    return LoaderError(f"{self._loader.path}: the loader's thread ended without a word")

    @property
    def running(self) -> bool:
        """True until the last batch was asked for, an error was raised, or the epoch was closed."""
        return self._shut_down.alive and not self._finished

    def close(self) -> None:
        """End the thread and wait for it. The ring can then be used by another epoch."""
        self._shut_down()


class Batches:
    """The batches of an epoch, each with the ids of its rows and with inputs and targets told apart by field.

    Args:
        epoch: of one loader.
        input_place, target_place: of these among the loader's outputs; None where there are none.
    """

    def __init__(self, epoch: Epoch, input_place: int | None, target_place: int | None) -> None:
        self._epoch, self._places = epoch, (input_place, target_place)

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        ids = self._epoch.next_ids
        outputs = next(self._epoch)
        inputs, targets = (None if place is None else outputs[place] for place in self._places)
        return Batch(ids, inputs, targets, outputs)

    def close(self) -> None:
        """End the thread that works ahead."""
        self._epoch.close()
