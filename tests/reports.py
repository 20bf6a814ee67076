"""Reports of runs that are trained for something else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from matplotlib.figure import Figure


@contextmanager
def painting_nothing() -> Iterator[None]:
    """Figures are made and not painted, which takes several times as long as a small run trains."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda *_, **__: None)
        yield
