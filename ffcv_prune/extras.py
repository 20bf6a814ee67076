"""Packages that are not always installed, and how that is told."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

from ffcv_prune.errors import UserError


def require(package: str, least: str) -> None:
    """UserError unless a package is installed, in at least this version: the oldest that was tried."""
    remedy = f'pip install "{package}>={least}"'
    try:
        found = version(package)
    except PackageNotFoundError:
        raise UserError(f"{package} is not installed: {remedy}") from None
    if Version(found) < Version(least):
        raise UserError(f"{package} {found} is too old: {remedy}")
