"""The checkpoint of a run: written whole or not at all, and refused unless it is sound and of the same run.

It holds tensors and plain containers only, and is read with ``weights_only``: reading one runs no code.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ffcv_prune.config import Config, fixed_keys
from ffcv_prune.errors import UserError
from ffcv_prune.training.run_folder import replace_file

FORMAT = 8
NAME = "checkpoint.pt"


def save(folder: Path, config: Config, data: Mapping[str, str], state: Mapping[str, Any]) -> None:
    """Write ``folder/checkpoint.pt``; the previous one stays until the new one is whole and on the disk.

    Args:
        data: fingerprints of the data sets, by name.
        state: tensors and plain containers.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "config": fixed_keys(config), "data": dict(data), "state": dict(state)}, buffer)
    replace_file(folder / NAME, buffer)


def load(folder: Path, config: Config, data: Mapping[str, str]) -> dict[str, Any]:
    """Return the state that `save` was given.

    Raises:
        UserError: there is none, it is damaged, or it is of another version, configuration or data set.
    """
    path = folder / NAME
    content = _read(path)
    if not isinstance(content, dict) or not {"format", "config", "data", "state"} <= content.keys():
        raise UserError(f"{path} is not the checkpoint of a run; {_restart(folder)}")
    if content["format"] != FORMAT:
        raise UserError(
            f"{path} has format {content['format']}, this version reads {FORMAT}; resume with the version that wrote it"
        )
    _check_config(path, content["config"], config)
    for name in sorted(data.keys() | content["data"].keys()):  # a smaller file to score may be on either side only
        if content["data"].get(name) != data.get(name):
            raise UserError(
                f"{path} was made with another data.{name} than {getattr(config.data, name)}; "
                f"name the file that the run began with: --data.{name}=PATH"
            )
    return content["state"]


def remove(folder: Path) -> None:
    """Remove the checkpoint of a finished run: there is nothing to resume."""
    (folder / NAME).unlink(missing_ok=True)


def _read(path: Path) -> Any:
    try:
        content = io.BytesIO(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: nothing was saved; {_restart(path.parent)}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    try:
        # torch writes a CRC-32 with every record and does not look at it when it reads.
        damaged = zipfile.ZipFile(content).testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        content.seek(0)
        return torch.load(content, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged file can make zipfile and the unpickler raise anything
        reason = str(error) if isinstance(error, zipfile.BadZipFile) else type(error).__name__
        raise UserError(f"{path} is damaged ({reason}); {_restart(path.parent)}") from error


def _restart(folder: Path) -> str:
    return f"begin again with --config {folder / 'config.yaml'}"


def _check_config(path: Path, saved: Mapping[str, Any], config: Config) -> None:
    now = fixed_keys(config)
    # The method first: which other keys there are, it says.
    for name in sorted(saved.keys() | now.keys(), key=lambda name: (name != "prune.method", name)):
        if saved.get(name) != now.get(name):
            raise UserError(
                f"{path} was made with {name}={saved.get(name)}, {path.parent / 'config.yaml'} has {now.get(name)}; "
                f"put it back, or begin a new run with --config"
            )
