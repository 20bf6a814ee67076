"""The folder of a run: what was asked, what made it, what happened, and what came out.

runs/NAME/
  config.yaml                  the resolved configuration
  machine.json                 machine, versions, commit, date
  dataset.json                 classes, counts per class, number of samples
  log.jsonl                    one JSON object per epoch, flushed line by line; locked while a process trains
  selections/epoch_0010.npy    int64[k], sorted: the selection made at the start of epoch 10
  status.json                  "running", "finished", "interrupted" or "failed", and after how many epochs
  checkpoint.pt                where `--resume` goes on, until the run is finished (`training.checkpoint`)
  weights.pt                   state_dict of the model, on the CPU
  result.csv                   one row: the run in short
  report.html                  the run to look at
  profile.json                 with --profile: where the time went (`training.profile`)
"""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ffcv_prune import machine
from ffcv_prune.errors import UserError

DISK = "which must be on a disk that has locks, renames files and appends to them"
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # of object storage: s3://, gs://, hf://
RESUME = "mend that, then --resume goes on from the last checkpoint"


class RunFolder:
    """Writes the files of a run. Of two processes that open the same folder, the second gets a `UserError`.

    Attributes:
        path: the folder.
        rows: the log so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._last_selection: NDArray[np.int64] | None = None  # of which `overlap` was asked
        with _writing(path / "log.jsonl"):
            (path / "selections").mkdir(exist_ok=True)
            self._log = open(path / "log.jsonl", "ab", buffering=0)  # noqa: SIM115 - closed by `close`
        try:
            fcntl.flock(self._log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
        except OSError as error:
            self._log.close()
            if isinstance(error, BlockingIOError):
                raise UserError(f"another process is training in {path}; wait for it or stop it") from None
            raise UserError(f"cannot lock {path / 'log.jsonl'}: {error.strerror}; see --run.out, {DISK}") from None

    @classmethod
    def create(cls, out: str | Path, name: str) -> RunFolder:
        """Create ``out/NAME``, or ``NAME_2``, ``NAME_3``, … if it exists. UserError if that is not possible."""
        if not name or Path(name).name != name:
            raise UserError(f'run.name "{name}" is not a folder name; run.out says where it goes')
        return cls(create_unused(Path(out), name))

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """Open the folder of a run that did not finish. UserError if it did, or still runs."""
        try:
            status = json.loads((path / "status.json").read_text(encoding="utf-8"))["status"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{path} is not the folder of a run: it has no readable status.json") from None
        if status == "finished":
            raise UserError(f"{path} is already finished; its result is in {path / 'result.csv'}")
        return cls(path)

    def rewind(self, epochs: int) -> None:
        """Forget what was logged after `epochs` epochs. UserError if fewer were logged, or lines are damaged."""
        lines = (self.path / "log.jsonl").read_bytes().splitlines(keepends=True)[:epochs]
        try:
            self.rows = [json.loads(line) for line in lines]
            sound = [row["epoch"] for row in self.rows] == list(range(epochs))
        except (ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            raise UserError(f"{self.path / 'log.jsonl'} is damaged: it does not hold the {epochs} epochs that ended")
        self._log.truncate(sum(map(len, lines)))

    def describe(
        self,
        config: str,
        classes: Sequence[str],
        class_counts: NDArray[np.int64],
        train_samples: int,
        test_samples: int,
    ) -> None:
        """Write the description of the run: its config as YAML, the machine, and its data. Of the data, the names of C
        classes and the training samples of each, int64[C].
        """
        self.write_config(config)
        self.write_json("machine.json", provenance())
        self.write_json(
            "dataset.json",
            {
                "classes": list(classes),
                "class_counts": class_counts.tolist(),
                "train_samples": train_samples,
                "test_samples": test_samples,
            },
        )

    def write_config(self, text: str) -> None:
        replace_file(self.path / "config.yaml", text.encode())

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        replace_file(self.path / name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one line to log.jsonl; it is on the disk when this returns."""
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        with _writing(self.path / "log.jsonl"):
            if self._log.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._log.fileno())
        self.rows.append(dict(row))

    def save_selection(self, epoch: int, ids: NDArray[np.int64]) -> None:
        content = io.BytesIO()
        np.save(content, ids)
        replace_file(self._selection_path(epoch), content)

    def overlap(self, epoch: int, ids: NDArray[np.int64]) -> float | None:
        """The share of the selection `ids` of an epoch that the selection before it held too; None for the first.

        To be asked once for each selection, in order.
        """
        before, self._last_selection = self._last_selection, ids
        if before is None:  # the first one since the folder was opened
            paths = (self.path / "selections").glob("epoch_*.npy")
            earlier = [other for path in paths if (other := int(path.stem.removeprefix("epoch_"))) < epoch]
            if not earlier:
                return None
            before = np.load(self._selection_path(max(earlier)))
        return round(len(np.intersect1d(ids, before, assume_unique=True)) / len(ids), 6)

    def _selection_path(self, epoch: int) -> Path:
        return self.path / "selections" / f"epoch_{epoch:04d}.npy"

    def save_weights(self, model: torch.nn.Module) -> None:
        content = io.BytesIO()
        torch.save({name: value.cpu() for name, value in model.state_dict().items()}, content)
        replace_file(self.path / "weights.pt", content)

    def write_result(self, row: Mapping[str, Any]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerow(row)
        replace_file(self.path / "result.csv", text.getvalue().encode())

    def set_status(self, status: str, reason: str = "") -> None:
        self.write_json("status.json", {"status": status, "epochs": len(self.rows), "reason": reason, "date": now()})

    def close(self) -> None:
        self._log.close()


def create_unused(out: Path, name: str) -> Path:
    """Create and return the folder out/name, or out/name_2, out/name_3, … if it exists."""
    if ADDRESS.match(str(out)):
        raise UserError(f"{out} is an address, and runs are written to a folder; see --run.out, {DISK}")
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


def replace_file(path: Path, content: bytes | io.BytesIO, remedy: str = RESUME) -> None:
    """Write `path` so that it has the old content or the new one, never a part, even if the power fails.

    Raises:
        UserError: the disk is full, or the file cannot be written for another reason.
    """
    temporary = path.with_name(path.name + ".part")
    with _writing(path, remedy):
        try:
            with temporary.open("wb") as file, _view(content) as view:
                file.write(view)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)  # gives back the space of what was written
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name
        finally:
            os.close(folder)


def _view(content: bytes | io.BytesIO) -> memoryview:
    """To be released: a traceback that holds the view of a buffer ends Python 3.12.1 (cpython, gh-111049)."""
    return memoryview(content) if isinstance(content, bytes) else content.getbuffer()


@contextmanager
def _writing(path: Path, remedy: str = RESUME) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; {remedy}") from error


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
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # a repository around a .venv has another's commit
        return _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def provenance() -> dict[str, Any]:
    """Machine and versions (`machine.describe`), commit of the checkout, date."""
    return machine.describe() | {"commit": commit(), "date": now()}
