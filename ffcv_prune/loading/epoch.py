"""One pass over the data: a producer that has a ring of buffers filled, and the iterator that hands them out."""

from __future__ import annotations

import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numba
import numpy as np
import torch
from numpy.typing import NDArray

from ffcv_prune.errors import UserError, uninterrupted
from ffcv_prune.loading.read_ahead import ReadAhead, end
from ffcv_prune.loading.ring import Decoding, Ring
from ffcv_prune.loading.selectable import Position
from ffcv_prune.protocols import Batch

POLL_SECONDS = 0.5  # how soon a stopped or dead thread is noticed
CLOSED = "this epoch was closed, by close() or by the beginning of a newer one"


class LoaderError(RuntimeError):
    """The loader's thread failed; its exception is the cause."""


@dataclass
class Waiting:
    """Time that the consumer of a loader has waited for batches, over all its epochs."""

    seconds: float = 0.0


class _Producer:
    """Has the batches of one epoch made in the ring, in order.

    It has a thread, whose exceptions go to the consumer, never to the void. Where next to nothing is left to do once
    the images are made (`Ring.direct`), the consumer does it when it asks for the batch: to hand a batch of small
    images from thread to thread takes longer. The thread then only runs `once_begun`.
    """

    def __init__(self, decoding: Decoding, ring: Ring, ids: NDArray[np.int64], once_begun: Callable[[], None]) -> None:
        self.decoding, self.ring, self.once_begun = decoding, ring, once_begun
        target = once_begun if ring.direct else self._run
        self.thread = threading.Thread(target=target, daemon=True, name="ffcv_prune-loader")
        size, file, graph = decoding.batch_size, decoding.file, decoding.graph
        self.batches = [ids[i : i + size] for i in range(0, len(ids), size)]
        self.output: queue.SimpleQueue[tuple[int, Any] | BaseException | None] = queue.SimpleQueue()
        self.held = -1  # the batch that the consumer has
        self.lock = threading.RLock()  # a consumer that finishes a batch, and who closes the epoch meanwhile
        self.stop_requested = False
        self.fields = graph.decoded_fields
        self.stored = file.stored_samples(self.fields)
        self.read_ahead = ReadAhead(file, self.fields, ids, size) if decoding.read_ahead else None
        self.cuda = graph.cuda_device  # asked here: a new thread's current device is another

    def start(self) -> None:
        if self.read_ahead:
            self.read_ahead.start()
        if self.ring.direct:
            self.ring.workers.clear()  # of what an epoch left that Ctrl-C broke off anywhere
        else:
            self.thread.start()

    def _run(self) -> None:
        last: BaseException | None = None
        try:
            numba.set_num_threads(self.decoding.num_workers)  # holds for this thread only
            if self.cuda:
                torch.cuda.set_device(self.cuda)  # a new thread starts on device 0
            for number in range(len(self.batches)):
                batch = self._finish(number)
                if batch is None:
                    return
                self.output.put(batch)
        except BaseException as error:  # handed to the consumer, which raises it
            last = error
        finally:
            self.ring.workers.clear()  # the buffers are then left alone
        self.output.put(last)

    def batch(self, number: int) -> tuple[int, Any] | LoaderError | None:
        """What `output` gets, for a consumer that is done with the batch before. It may ask again after Ctrl-C."""
        if number == len(self.batches):
            return None
        with self.lock:
            self.held = number
            return self._finish(number) or LoaderError(CLOSED)

    def _finish(self, number: int) -> tuple[int, Any] | None:
        """(slot, outputs) of a batch; None if the epoch was stopped."""
        if not self._made(number):
            return None
        slot, ids = number % self.ring.slots, self.batches[number]
        outputs = self.ring.finish_batch(self.decoding, ids, slot)
        sound = self.stored is not None and not self.ring.workers.found_damaged
        self.decoding.file.check_decoded(ids, self.fields, self.decoding.num_workers > 1, sound)
        return slot, outputs

    def _made(self, number: int) -> bool:
        """Wait until the images of a batch are made; False if the epoch was stopped. The next batches are begun."""
        while not self.stop_requested:
            self._begin()
            if self.ring.workers.wait(number):
                return True
        return False

    def _begin(self) -> None:
        """Begin the batches for which there is room."""
        if self.read_ahead:
            # Not by what is submitted: several batches are, and where the disk holds the workers up, pages that were
            # read so far ahead may have left the memory before their turn.
            self.read_ahead.decoding(self.ring.workers.taken())
        for number in range(self.ring.workers.submitted(), min(len(self.batches), self.held + self.ring.slots)):
            if self.stop_requested:  # by a signal handler
                return
            slot = number % self.ring.slots
            self.ring.begin_batch(self.decoding, self.batches[number], slot, self.stored)
            if number + 1 == len(self.batches):  # while the workers make the last ones
                (self.thread.start if self.ring.direct else self.once_begun)()

    def gone_on(self) -> None:
        """The consumer has the next batch of `output`, and is done with the one before."""
        self.held += 1
        self.ring.workers.wake()

    def shut_down(self) -> None:
        """Stop the thread and wait for its end. May be called more than once."""
        self.stop_requested = True
        with uninterrupted():
            if os.getpid() == self.ring.process:  # in a fork the threads are not there
                self.ring.workers.wake()
                with self.lock:
                    if self.ring.direct and self.ring.producer is self:  # else a later epoch has the buffers
                        self.ring.workers.clear()
                end(self.thread)
        if self.read_ahead:
            self.read_ahead.stop()
        self.ring.settle()
        if self.ring.producer is self:
            self.ring.producer = None


class Epoch:
    """Iterator over the batches of one epoch.

    Attributes:
        position: where it is.
        order: int64[m], the ids in the order they are served.

    `once_begun` is called in the thread when the last batch is in the making.

    Batches are views into a ring of buffers: clone what outlives the step. Those on the CPU are overwritten without
    asking any device, so copy them to one without `non_blocking`. Dropping the iterator, or calling
    `close`, ends its thread.
    """

    def __init__(
        self,
        decoding: Decoding,
        ring: Ring,
        start: Position,
        order: NDArray[np.int64],
        waiting: Waiting,
        once_begun: Callable[[], None],
    ) -> None:
        self.position = start
        self.order = order
        self._path, self._batch_size, self._with_ids = decoding.file.path, decoding.batch_size, decoding.with_ids
        self._waiting = waiting
        self._ids = torch.from_numpy(order)
        if decoding.graph.cuda_device:
            # A copy to the device from memory that is not pinned may first wait for the stream, in every step.
            self._ids = self._ids.pin_memory()
        self._ring = ring  # held: a decoder's output size may be set while the epoch is running
        if ring.producer is not None:  # of an epoch that was broken off before anybody could close it
            ring.producer.shut_down()
        ring.begin(decoding.seed, start.epoch)
        self._producer = _Producer(decoding, ring, order[start.served * self._batch_size :], once_begun)
        ring.producer = self._producer
        self._finished, self._first = False, start.served
        # Runs when the iterator is dropped, and at exit: a daemon thread inside native code must not outlive
        # the interpreter.
        self._shut_down = weakref.finalize(self, self._producer.shut_down)
        self._producer.start()

    def __iter__(self) -> Epoch:
        return self

    def __next__(self) -> tuple[Any, ...]:
        if self._finished:
            raise StopIteration
        if not self._shut_down.alive or os.getpid() != self._ring.process:
            raise LoaderError(CLOSED)
        self._ring.take_back()  # before a batch leaves the queue: the one that finds room there is written to this slot
        start = time.perf_counter()
        item = self._next_item()
        self._waiting.seconds += time.perf_counter() - start
        if not isinstance(item, tuple):
            self._finished = True
            self.close()
            if item is None:
                self.position.ended = True
                raise StopIteration
            if isinstance(item, LoaderError | UserError):
                raise item
            where = f"batch {self.position.served} of epoch {self.position.epoch}"
            raise LoaderError(f"{self._path}: {where} failed in the loader: {type(item).__name__}: {item}") from item
        slot, outputs = item
        self._ring.hand_out(slot)
        if not self._ring.direct:
            self._producer.gone_on()
        ids = self.next_ids
        self.position.served += 1
        return (*outputs, ids) if self._with_ids else outputs

    @property
    def next_ids(self) -> torch.Tensor:
        """int64[B]: the ids of the batch that comes next.

        Of this epoch's own array, in no ring: a copy of them to a device may be as asynchronous as it likes.
        """
        first = self.position.served * self._batch_size
        return self._ids[first : first + self._batch_size]

    def _next_item(self) -> tuple[int, Any] | BaseException | None:
        if self._ring.direct:
            try:
                return self._producer.batch(self.position.served - self._first)
            except Exception as error:
                return error
        while True:
            alive = self._producer.thread.is_alive()  # asked first: what a thread put before it ended is still read
            try:
                return self._producer.output.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if not alive:
                    return LoaderError(f"{self._path}: the loader's thread ended without a word")

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
