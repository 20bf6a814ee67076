"""The folder of a run: what was asked, what made it, what happened, and what came out.

runs/NAME/
  config.yaml                  the resolved configuration
  machine.json                 machine, versions, commit, date
  dataset.json                 classes, counts per class, number of samples
  log.jsonl                    one JSON object per epoch, flushed line by line
  selections/epoch_0010.npy    int64[k], sorted: the selection made at the start of epoch 10
  status.json                  "running", "finished", "interrupted" or "failed", and after how many epochs
  weights.pt                   state_dict of the model
  result.csv                   one row: the run in short
  report.html                  the run to look at
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ffcv_prune import machine
from ffcv_prune.errors import UserError


class RunFolder:
    """Creates ``out/NAME`` (``NAME_2``, ``NAME_3``, … if it exists) and writes its files.

    Raises:
        UserError: the folder cannot be created.
    """

    def __init__(self, out: str | Path, name: str) -> None:
        if not name or Path(name).name != name:
            raise UserError(f'run.name "{name}" is not a folder name; run.out says where it goes')
        self.path = create_unused(Path(out), name)
        (self.path / "selections").mkdir()
        self._log = open(self.path / "log.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - closed by `close`

    def write_config(self, text: str) -> None:
        (self.path / "config.yaml").write_text(text, encoding="utf-8")

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        replace_file(self.path / name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one line to log.jsonl; it is on its way to the disk when this returns."""
        self._log.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._log.flush()

    def save_selection(self, epoch: int, ids: NDArray[np.int64]) -> None:
        np.save(self.path / "selections" / f"epoch_{epoch:04d}.npy", ids)

    def save_weights(self, model: torch.nn.Module) -> None:
        """Write weights.pt: first to a temporary name, so that the name stands for a whole file."""
        temporary = self.path / "weights.pt.part"
        torch.save(model.state_dict(), temporary)
        temporary.replace(self.path / "weights.pt")

    def write_result(self, row: Mapping[str, Any]) -> None:
        append_csv(self.path / "result.csv", row)

    def set_status(self, status: str, epochs: int, reason: str = "") -> None:
        self.write_json("status.json", {"status": status, "epochs": epochs, "reason": reason, "date": now()})

    def close(self) -> None:
        self._log.close()


def create_unused(out: Path, name: str) -> Path:
    """Create and return the folder out/name, or out/name_2, out/name_3, … if it exists."""
    number = 1
    while True:
        path = out / (name if number == 1 else f"{name}_{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(f"cannot create the run folder {path}: {error.strerror}; see --run.out") from None


def replace_file(path: Path, content: bytes) -> None:
    """Write `path` so that a reader sees the old content or the new one, never a part."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def append_csv(path: Path, row: Mapping[str, Any]) -> None:
    """Append one row; a new file gets the header first.

    Raises:
        UserError: the file has other columns.
    """
    new = not path.exists() or path.stat().st_size == 0
    if not new:
        with path.open(newline="", encoding="utf-8") as file:
            if next(csv.reader(file)) != list(row):
                raise UserError(f"{path} has other columns than this version writes; name another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def now() -> str:
    """The time in UTC, to the second, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def commit() -> str:
    """Short hash of the checkout this code runs from, "+" added when it has changes; "" outside of git."""
    try:
        return _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def provenance() -> dict[str, Any]:
    """Machine and versions (`machine.describe`), commit of the checkout, date."""
    return machine.describe() | {"commit": commit(), "date": now()}
