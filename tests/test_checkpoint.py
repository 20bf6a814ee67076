"""What is no checkpoint of this run is refused, with the reason; what is one is read back as it was."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import random
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ffcv_prune import config, methods
from ffcv_prune.config import Config
from ffcv_prune.data.beton import check_beton
from ffcv_prune.data.fingerprint import fingerprint
from ffcv_prune.errors import UserError
from ffcv_prune.training import checkpoint
from ffcv_prune.training.run_folder import RunFolder, replace_file
from ffcv_prune.training.trainer import train
from tests.betons import Beton, write_beton, write_run

DATA = {"train": "0123456789abcdef", "test": "fedcba9876543210"}


@pytest.fixture
def settings(tmp_path: Path, beton: Beton) -> Config:
    path = write_run(tmp_path / "small.yaml", beton, epochs=2, run=f"out: {tmp_path / 'runs'}")
    return config.load(["--config", str(path)])


def state() -> dict[str, Any]:
    return {"weights": {"a": torch.arange(300.0), "b": torch.ones(2, 3)}, "position": (3, 4), "seed": None}


def changed(settings: Config, section: str, **keys: Any) -> Config:
    return replace(settings, **{section: replace(getattr(settings, section), **keys)})


@pytest.fixture
def saved(tmp_path: Path, settings: Config) -> Path:
    """A folder with a checkpoint of `settings` and DATA."""
    checkpoint.save(tmp_path, settings, DATA, state())
    return tmp_path


def same(loaded: dict[str, Any]) -> bool:
    own = state()
    tensors = all(torch.equal(loaded["weights"][name], tensor) for name, tensor in own["weights"].items())
    return tensors and loaded["position"] == own["position"] and loaded["seed"] is None


def test_what_is_saved_comes_back(saved: Path, settings: Config) -> None:
    assert same(checkpoint.load(saved, settings, DATA))
    assert not list(saved.glob("*.part"))


def test_no_flipped_bit_passes_unnoticed(saved: Path, settings: Config) -> None:
    path = saved / "checkpoint.pt"
    whole = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for position in rng.sample(range(len(whole)), 400):
        content = bytearray(whole)
        content[position] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            assert same(checkpoint.load(saved, settings, DATA))  # padding, or a field that nobody reads
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 200


def test_a_truncated_checkpoint_is_refused(saved: Path, settings: Config) -> None:
    path = saved / "checkpoint.pt"
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"checkpoint\.pt is damaged"):
            checkpoint.load(saved, settings, DATA)


def test_foreign_checkpoints_are_refused_with_the_reason(
    saved: Path, settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(match: str, own: Config = settings, data: dict[str, str] = DATA) -> None:
        with pytest.raises(UserError, match=match) as error:
            checkpoint.load(saved, own, data)
        assert "\n" not in str(error.value)

    refused(r"train\.lr=0\.02, .*config\.yaml has 0\.2", changed(settings, "train", lr=0.2))
    refused(r"prune\.method=full", replace(settings, prune=methods.PRESETS["ucb"]))
    refused(r"another data\.train than .*--data\.train=PATH", data=DATA | {"train": "0"})
    refused(r"another data\.test", data=DATA | {"test": "0"})
    for section, keys in {
        "run": {"save_every": 1.0},
        "data": {"train": "moved.beton", "num_workers": 1},
        "train": {"device": "auto"},
    }.items():
        assert same(checkpoint.load(saved, changed(settings, section, **keys), DATA))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
        refused(rf"has format {checkpoint.FORMAT - 1}, this version reads {checkpoint.FORMAT}")
    torch.save({"weight": torch.ones(3)}, saved / "checkpoint.pt")
    refused(r"is not the checkpoint of a run")
    torch.save(print, saved / "checkpoint.pt")  # code, which is never loaded
    refused(r"is damaged")
    (saved / "checkpoint.pt").unlink()
    refused(r"nothing was saved; begin again with --config")


def test_fingerprints_tell_data_sets_apart_but_not_copies(beton: Beton, tmp_path: Path) -> None:
    own = fingerprint(check_beton(beton.path))
    content = beton.path.read_bytes()
    copy = tmp_path / "copy.beton"
    copy.write_bytes(content)
    assert fingerprint(check_beton(copy)) == own
    others = {fingerprint(check_beton(write_beton(tmp_path / f"{n}.beton", n=n).path)) for n in (203, 202, 201)}
    assert others > {own}
    assert len(others) == 3
    other_pixels = write_beton(tmp_path / "pixels.beton", seed=0, size=16)
    brighter = bytearray(content)
    brighter[len(content) // 2] ^= 255  # in the page of pixels
    other_pixels.path.write_bytes(brighter)
    assert fingerprint(check_beton(other_pixels.path)) != own


def test_a_run_is_resumed_only_by_one_process_and_only_if_it_is_not_finished(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "run")
    folder.set_status("running")
    with pytest.raises(UserError, match="another process is training"):
        RunFolder.reopen(folder.path)
    folder.close()
    reopened = RunFolder.reopen(folder.path)
    reopened.set_status("finished")
    reopened.close()
    with pytest.raises(UserError, match="already finished"):
        RunFolder.reopen(folder.path)
    with pytest.raises(UserError, match=r"no readable status\.json"):
        RunFolder.reopen(tmp_path)


@pytest.mark.parametrize("out", ["s3://bucket/runs", "gs://bucket", Path("hf://runs")])
def test_object_storage_takes_no_run_folder(out: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"is an address, and runs are written to a folder; see --run\.out"):
        RunFolder.create(out, "run")
    assert not list(tmp_path.iterdir())


def test_a_disk_without_locks_takes_no_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"cannot lock .*log\.jsonl: No locks available; see --run\.out"):
        RunFolder.create(tmp_path, "run")


def test_a_log_that_lost_lines_is_refused(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "run")
    for epoch in range(3):
        folder.log({"epoch": epoch})
    folder.rewind(2)
    assert folder.rows == [{"epoch": 0}, {"epoch": 1}]
    folder.log({"epoch": 2, "again": True})
    assert [json.loads(line) for line in (folder.path / "log.jsonl").read_text().splitlines()] == folder.rows
    for damaged in ("", '{"epoch": 0}\n', '{"epoch": 0}\n{"epoch": 2}\n', '{"epoch": 0}\n{"epo'):
        (folder.path / "log.jsonl").write_text(damaged)
        with pytest.raises(UserError, match=r"log\.jsonl is damaged"):
            folder.rewind(2)
    folder.close()


def test_what_resume_accepts_on_the_command_line(tmp_path: Path, settings: Config) -> None:
    run = str(train(settings).folder)
    with pytest.raises(UserError, match="already finished"):
        own, folder = config.read_command(["--resume", run])
        train(own, resume=folder)
    own, folder = config.read_command(["--resume", run, "--data.train=moved.beton", "--run.save_every=5"])
    assert folder == Path(run)
    assert (own.data.train, own.run.save_every, own.train) == ("moved.beton", 5.0, settings.train)
    with pytest.raises(UserError, match=r"train\.lr may not change when a run is resumed"):
        config.read_command(["--resume", run, "--train.lr=1"])
    with pytest.raises(UserError, match=r"--resume and --config exclude each other"):
        config.read_command(["--resume", run, "--config", "x.yaml"])
    with pytest.raises(UserError, match=r"no config\.yaml"):
        config.read_command(["--resume", str(tmp_path)])


def test_a_failed_write_releases_its_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.12.1 may crash when it collects a traceback that holds the view of one."""

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    content = io.BytesIO(b"content")
    with pytest.raises(UserError, match="No space left on device") as kept:
        replace_file(tmp_path / "file", content)
    content.truncate(0)  # BufferError where a view is left
    assert kept.tb is not None and not [*tmp_path.iterdir()]


@pytest.mark.requires_root
def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, settings: Config) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        checkpoint.save(disk, settings, DATA, state())
        with pytest.raises(UserError, match=r"cannot write .*checkpoint\.pt: No space left on device"):
            checkpoint.save(disk, settings, DATA, {"big": torch.rand(100_000)})
        assert same(checkpoint.load(disk, settings, DATA))
        assert os.listdir(disk) == ["checkpoint.pt"]
        replace_file(disk / "small", b"there is room for this again")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
