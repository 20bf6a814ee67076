"""The method that CONTRIBUTING.md shows is complete, short, and works when its file is put where the page says."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).resolve().parent.parent / "CONTRIBUTING.md"


def test_the_method_that_is_shown_works(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.splitlines()) <= 40
    module = types.ModuleType("below_peak")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses looks annotations up
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    (method,) = module.METHODS
    losses = np.arange(20, dtype=np.float32)
    for skip, expected in ((0, range(16, 20)), (0.1, range(14, 18)), (0.9, range(4))):
        state = method.replace(keep=0.2, skip=skip).start(20, epochs=1)
        state.record(None, losses, epoch=0)
        selection = state.select(0)
        assert selection is not None
        assert selection.ids.tolist() == list(expected)
    guarded = method.replace(keep=0.5, random_share=0.4, class_floor=1.0).start(20, epochs=1, groups=np.arange(20) % 2)
    guarded.record(None, losses, epoch=0)
    selection = guarded.select(0)
    assert selection is not None
    assert np.bincount(selection.ids % 2).tolist() == [5, 5]
