"""Where the seconds of an epoch go."""

from __future__ import annotations

import time

PHASES = ("load", "score", "select", "swap", "train", "eval", "save")


class Clock:
    """Wall-clock seconds by phase, and their "total", which includes what is in no phase.

    Attributes:
        seconds: seconds by phase, since the last `take`.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys((*PHASES, "total"), 0.0)
        self.start()

    def start(self) -> None:
        """Leave the time since the last lap out."""
        self._last = time.perf_counter()

    def lap(self, phase: str | None = None, **inside: float) -> None:
        """Charge the time since the last lap: `inside` to the phases it names, the rest to `phase`, if any."""
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        self.seconds["total"] += elapsed
        for name, seconds in inside.items():
            self.seconds[name] += seconds
        if phase is not None:
            self.seconds[phase] += max(0.0, elapsed - sum(inside.values()))

    def take(self) -> dict[str, float]:
        """Return the seconds and begin anew."""
        taken, self.seconds = self.seconds, dict.fromkeys(self.seconds, 0.0)
        return taken
