"""A framework that is missing or too old is named in one line, before any of it is imported."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from torch.utils.data import DataLoader

from ffcv_prune import TorchLoader, extras
from ffcv_prune.errors import UserError
from ffcv_prune.extras import require
from tests.plain_loop import make_pruner
from tests.torch_data import Coloured

LEAST = {need.name: str(need.specifier).removeprefix(">=") for need in map(Requirement, requires("ffcv_prune") or ())}


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """All packages are installed in an ancient version."""
    monkeypatch.setattr(extras, "version", lambda package: "0.1")


def refusal(package: str, found: str = "0.1") -> str:
    message = f'{package} is {found}, and must be >={LEAST[package]}: pip install "ffcv_prune[{package}]"'
    return f"^{re.escape(message)}$"


@pytest.mark.parametrize("package", ["lightning", "accelerate", "timm", "transformers", "torch"])
def test_a_version_below_the_one_that_pip_knows_of_is_refused(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in (LEAST[package], f"{LEAST[package]}.1", "99.0rc1"):
        monkeypatch.setattr(extras, "version", lambda package, version=version: version)
        require(package)
    for version in ("0.1", f"{LEAST[package]}rc1"):
        monkeypatch.setattr(extras, "version", lambda package, version=version: version)
        with pytest.raises(UserError, match=refusal(package, version)):
            require(package)


@pytest.mark.usefixtures("old")
def test_where_pip_does_not_know_of_us_each_version_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(package: str) -> Any:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(extras, "requires", unknown)
    require("torch")


@pytest.mark.parametrize("framework", ["lightning", "transformers"])
def test_an_adapter_without_its_framework_is_refused(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> Any:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(extras, "version", missing)
    monkeypatch.delitem(sys.modules, f"ffcv_prune.adapters.{framework}", raising=False)
    monkeypatch.setitem(sys.modules, framework, None)  # an import of it would fail in another way
    message = rf'^{framework} is not installed: pip install "ffcv_prune\[{framework}\]"$'
    with pytest.raises(UserError, match=message):
        import_module(f"ffcv_prune.adapters.{framework}")


@pytest.mark.usefixtures("old")
def test_a_loader_of_an_old_timm_is_refused() -> None:
    TorchLoader.like(DataLoader(Coloured(), 16))  # of torch's own
    data = pytest.importorskip("timm.data", reason="needs timm")
    for training in (True, False):
        loader = data.create_loader(Coloured(), (3, 8, 8), 16, is_training=training, use_prefetcher=False)
        with pytest.raises(UserError, match=refusal("timm")):
            TorchLoader.like(loader)


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("in_use", [False, True])
def test_a_run_on_an_old_accelerate_is_refused_and_its_mere_import_is_not(
    in_use: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    state: Any = ModuleType("accelerate.state")
    state.is_initialized = lambda: in_use
    monkeypatch.setitem(sys.modules, "accelerate.state", state)
    if in_use:
        with pytest.raises(UserError, match=refusal("accelerate")):
            make_pruner()
    else:
        make_pruner()
