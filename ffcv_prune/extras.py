"""Packages that are not always installed, and how that is told."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from ffcv_prune.errors import UserError


def require(package: str, extra: str = "") -> None:
    """UserError unless a package is installed, in a version that setup.py asks for.

    Args:
        package: as pip knows it.
        extra: the extra of ffcv_prune that installs it; empty: the one of the same name.
    """
    remedy = f'pip install "ffcv_prune[{extra or package}]"'
    try:
        found = version(package)
    except PackageNotFoundError:
        raise UserError(f"{package} is not installed: {remedy}") from None
    for need in map(Requirement, _requirements()):
        if need.name == package and not need.specifier.contains(found, prereleases=True):
            raise UserError(f"{package} is {found}, and must be {need.specifier}: {remedy}")


def _requirements() -> list[str]:
    try:
        return requires("ffcv_prune") or []
    except PackageNotFoundError:  # a clone on PYTHONPATH, of which pip does not know
        return []


def check_accelerate() -> None:
    """UserError if the process trains with an Accelerate that is too old; one that is only imported does no harm."""
    state = sys.modules.get("accelerate.state")
    if state is not None and getattr(state, "is_initialized", lambda: True)():
        require("accelerate")
