"""The wheel where there is no clone: what it holds, and Fashion-MNIST compiled and trained from an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement

import ffcv_prune

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "ffcv_prune", "write_datasets", "rn_configs")
COMMANDS = ("write", "train", "report", "scores")
OWN = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def run(*command: str | Path, cwd: Path, code: int = 0) -> str:
    """What a command prints; on standard error where it is to fail."""
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=OWN, capture_output=True, text=True, timeout=1500)
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stderr if code else done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: what an earlier build left in the clone would go into it."""
    copy, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        take = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        options = {"symlinks": True, "ignore": shutil.ignore_patterns("__pycache__")} if take is shutil.copytree else {}
        take(ROOT / name, copy / name, **options)
    run(sys.executable, *["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w"], out, ".", cwd=copy)
    (made,) = out.glob("*.whl")
    return made


def test_the_wheel_holds_each_recipe_and_each_config(wheel: Path) -> None:
    assert "-cp310-abi3-" in wheel.name
    held = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("write_datasets", "rn_configs"):
        files = {f"ffcv_prune/{folder}/{path.name}" for path in (ROOT / folder).glob("*.yaml")}
        assert files and files <= held
    assert {name.split("/")[0].split("-")[0] for name in held} == {"ffcv_prune"}  # no script of the root's among them


def test_each_framework_is_an_extra_and_one_extra_is_all_of_them(wheel: Path) -> None:
    (metadata,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    needs = [Requirement(line) for line in re.findall(r"^Requires-Dist: (.*)", text, re.M)]

    def brought_by(extra: str) -> set[str]:
        found = (need for need in needs if need.marker and need.marker.evaluate({"extra": extra}))
        return {f"{need.name}{need.specifier}" for need in found}

    parts = {extra: brought_by(extra) for extra in ("lightning", "accelerate", "timm", "transformers")}
    for extra, brought in parts.items():
        assert [need for need in brought if re.fullmatch(rf"{extra}>=[\d.]+", need)], brought
    assert parts["accelerate"] < parts["transformers"]  # on which its Trainer runs
    assert brought_by("frameworks") == set().union(*parts.values()) < brought_by("test")
    names = [need.partition(">=")[0] for need in brought_by("frameworks")]
    assert len(names) == len(set(names))  # of each package one oldest version


def write_fashion_mnist(folder: Path) -> None:
    """Its four files as torchvision keeps them, with 400 images in bright and dark classes."""
    folder.mkdir(parents=True)
    for name, n in (("train", 300), ("t10k", 100)):
        labels = (np.arange(n) % 10).astype(np.uint8)
        images = np.random.default_rng(0).integers(0, 25, (n, 28, 28)) + 23 * labels[:, None, None]
        header = struct.pack(">IIII", 2051, n, 28, 28)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images.astype(np.uint8).tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, n) + labels.tobytes())


def lend_packages(environment: Path, wheel: Path, cwd: Path) -> None:
    """Install the wheel alone; all that it depends on is that of this environment, in which its own is not found."""
    venv.create(environment, with_pip=False)
    run(sys.executable, *["-m", "pip", "-q", "--python"], environment, "install", "--no-deps", wheel, cwd=cwd)
    (site,) = environment.glob("lib/python*/site-packages")
    lent = [path for path in sys.path if path.endswith("-packages")]
    # Their own .pth files are not read. By this one of them setuptools brings distutils, from Python 3.12 on.
    shims = [file.read_text() for path in lent for file in Path(path).glob("distutils-precedence.pth")]
    (site / "lent.pth").write_text("\n".join([*lent, *shims]))


def install_everything(environment: Path, wheel: Path, cwd: Path) -> None:
    venv.create(environment, with_pip=True)
    run(environment / "bin/python", *["-m", "pip", "-q", "install"], f"{wheel}[ffcv]", cwd=cwd)


@pytest.mark.timeout(1600)
@pytest.mark.parametrize("install", [lend_packages, pytest.param(install_everything, marks=pytest.mark.slow)])
def test_the_commands_compile_and_train_from_an_empty_folder(install: object, wheel: Path, tmp_path: Path) -> None:
    environment, empty = tmp_path / "environment", tmp_path / "empty"
    empty.mkdir()
    assert callable(install)
    install(environment, wheel, empty)
    where = run(environment / "bin/python", "-c", "import ffcv_prune; print(ffcv_prune.__file__)", cwd=empty)
    assert Path(where).is_relative_to(environment)
    write, train, report, scores = (environment / "bin" / f"ffcv-prune-{name}" for name in COMMANDS)

    write_fashion_mnist(tmp_path / "raw" / "FashionMNIST" / "raw")
    said = run(train, "--config=fashion_ucb", cwd=empty, code=2)
    remedy = "ffcv-prune-write --dataset fashion_mnist"
    assert said == f"error: betons/fashion_mnist/train.beton does not exist; write it with {remedy}\n"
    said = run(write, "--dataset=fashion_mnist", "--data-dir=../raw", "--workers=1", cwd=empty)
    assert "betons/fashion_mnist/train.beton: 300 images" in said
    short = ("--train.epochs=3", "--train.batch_size=50", "--prune.warmup=1", "--prune.final=1", "--data.num_workers=1")
    said = run(train, "--config=fashion_ucb", *short, cwd=empty)
    assert said.splitlines()[-1].endswith("run folder runs/fashion_ucb")
    assert run(report, "runs/fashion_ucb", cwd=empty) == "report: report.html\n"
    assert (empty / "report.html").stat().st_size > 10_000
    for command in (write, train, report, scores):
        assert run(command, "--help", cwd=empty).startswith(f"usage: {command.name} ")
    assert sorted(path.name for path in empty.iterdir()) == ["betons", "report.html", "runs"]


def test_the_version_stands_in_setup_py_and_the_papers_of_it_agree() -> None:
    (version,) = re.findall(r'version="(.*)"', (ROOT / "setup.py").read_text())
    assert ffcv_prune.__version__ == version
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version
    assert f"({version})" in (ROOT / "CHANGELOG.md").read_text()
