"""A stand-in for CUDA's streams and events, whose device does nothing until somebody waits for it.

What a stream was given then runs in its order, and that of different streams in any order that the events allow, drawn
at random. So an overwritten buffer shows, without a GPU, wherever an order is possible in which it is overwritten.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State


class Event:
    def __init__(self, device: Device) -> None:
        self.device, self.recorded, self.reached = device, 0, 0

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or self.device.current_stream()
        with self.device.lock:
            self.recorded += 1
            stream.work.append((self._reach, self.recorded, None))

    def _reach(self, number: int) -> None:
        self.reached = number

    def synchronize(self) -> None:
        self.device.waits += 1
        self.device.run(lambda: self.reached >= self.recorded)


class Stream:
    """Work: what to call, with what, and the record of an event that must be reached before."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.work: deque[tuple[Callable[[Any], None], Any, tuple[Event, int] | None]] = deque()
        device.streams.append(self)

    def submit(self, work: Callable[[], None]) -> None:
        with self.device.lock:
            self.work.append((lambda _: work(), None, None))

    def wait_event(self, event: Event) -> None:
        self._await(event)

    def wait_stream(self, stream: Stream) -> None:
        event = Event(self.device)
        event.record(stream)
        self._await(event)  # and not by `wait_event`: a test leaves out one of the two

    def _await(self, event: Event) -> None:
        with self.device.lock:
            self.work.append((lambda _: None, None, (event, event.recorded)))


class Device:
    """Attributes: `waits`, how often the host waited for it."""

    def __init__(self, seed: int = 0) -> None:
        self.lock = threading.RLock()
        self.streams: list[Stream] = []
        self.waits = 0
        self._random = random.Random(seed)
        self._current = threading.local()
        self._default = Stream(self)

    def current_stream(self, _: Any = None) -> Stream:
        return getattr(self._current, "stream", self._default)

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before = self.current_stream()
        self._current.stream = stream
        try:
            yield
        finally:
            self._current.stream = before

    def run(self, done: Callable[[], bool] = lambda: False) -> None:
        """Work until `done`, or until nothing is left."""
        with self.lock:
            while not done():
                ready = [stream for stream in self.streams if stream.work and self._may_run(stream)]
                if not ready:
                    assert not any(stream.work for stream in self.streams), "streams wait for each other"
                    return
                work, argument, _ = self._random.choice(ready).work.popleft()
                work(argument)

    def forget(self) -> None:
        """Drop what is left."""
        with self.lock:
            for stream in self.streams:
                stream.work.clear()

    @staticmethod
    def _may_run(stream: Stream) -> bool:
        awaited = stream.work[0][2]
        return awaited is None or awaited[0].reached >= awaited[1]


class ToLateDevice(Operation):
    """FFCV's ToDevice, whose copy waits in the current stream. The device's memory is the CPU's."""

    def __init__(self, simulated: Device) -> None:
        super().__init__()
        self.simulated, self.device = simulated, torch.device("cuda", 0)

    def generate_code(self) -> Callable[..., Any]:
        def to_device(inp: torch.Tensor, dst: torch.Tensor) -> torch.Tensor:
            out, target = dst[: len(inp)], dst[: len(inp)]  # two views: FFCV's Squeeze changes the shape of one

            def copy() -> None:
                target.copy_(inp)

            self.simulated.current_stream().submit(copy)
            return out

        return to_device

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        return replace(previous_state, jit_mode=False), AllocationQuery(
            previous_state.shape, dtype=previous_state.dtype, device=torch.device("cpu")
        )


def install(patch: pytest.MonkeyPatch, device: Device) -> None:
    """Let `torch.cuda` make streams and events of this device."""
    patch.setattr(torch.cuda, "Stream", lambda *_, **__: Stream(device))
    patch.setattr(torch.cuda, "Event", lambda **_: Event(device))
    patch.setattr(torch.cuda, "current_stream", device.current_stream)
    patch.setattr(torch.cuda, "stream", device.stream)
    patch.setattr(torch.cuda, "set_device", lambda _: None)
    patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
