"""A framework that is missing or too old is named in one line, before any of it is imported."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from ffcv_prune.errors import UserError
from ffcv_prune.extras import require


def test_a_framework_that_is_installed_in_time_is_taken() -> None:
    require("torch", "2.6")


def test_a_framework_that_is_too_old_is_refused() -> None:
    with pytest.raises(UserError, match=r'^torch \S+ is too old: pip install "torch>=999"$'):
        require("torch", "999")


def test_the_extra_asks_for_the_versions_that_the_adapters_take() -> None:
    root = Path(__file__).resolve().parent.parent
    setup = (root / "setup.py").read_text()
    texts = [path.read_text() for path in (root / "ffcv_prune" / "adapters").glob("*.py")]
    needs = {need for text in texts for need in re.findall(r'^require\("(\w+)", "(.+?)"\)', text, re.MULTILINE)}
    assert {package for package, _ in needs} == {"lightning", "transformers", "accelerate"}
    for package, least in needs:
        assert f'"{package}>={least}"' in setup, package


@pytest.mark.parametrize("framework", ["lightning", "transformers"])
def test_an_adapter_without_its_framework_is_refused(framework: str) -> None:
    if find_spec(framework):
        pytest.skip(f"{framework} is installed")
    with pytest.raises(UserError, match=rf'^{framework} is not installed: pip install "{framework}>=[\d.]+"$'):
        import_module(f"ffcv_prune.adapters.{framework}")
    assert framework not in sys.modules
