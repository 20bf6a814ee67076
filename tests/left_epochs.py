"""Ways to leave an epoch of a loader before its end."""

from __future__ import annotations

from contextlib import suppress

from ffcv_prune import PrunedLoader, TorchLoader

WAYS = ("break", "raise", "close")


def leave(loader: PrunedLoader | TorchLoader, after: int, how: str) -> None:
    """Take so many batches of the next epoch, and no more. `how` is one of `WAYS`."""
    if how == "close":
        batches = iter(loader)
        for _ in range(after):
            next(batches)
        loader.close()
        return
    with suppress(KeyboardInterrupt):
        for number, _ in enumerate(loader, 1):
            if number == after and how == "raise":
                raise KeyboardInterrupt
            if number == after:
                break
