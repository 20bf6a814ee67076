from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.harness.machine import ROOT
from benchmarks.harness.rows import Results
from benchmarks.loading import startup, swap, writer
from benchmarks.loading.__main__ import main
from ffcv_prune.errors import UserError


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["loading", *words])
        main()
        return capsys.readouterr().out

    return run


def test_swap_and_its_table(tmp_path: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap, "CONSTRUCTORS", ("PrunedLoader",))
    csv = tmp_path / "swap.csv"
    words = ["swap", "--samples=400", "--large=100", "--repeats=1", f"--csv={csv}"]
    run(*words)
    rows = Results(csv, swap.COLUMNS, "").read()
    assert [row["measured"] for row in rows] == ["8 x 8", "256 x 256", "PrunedLoader"]
    assert [row["compiled"] for row in rows] == ["0", "0", ""]
    page = csv.with_suffix(".md").read_text()
    assert page.count("| 8 x 8 | 400 |") == 1 and page.count("| PrunedLoader | 400 |") == 1
    assert page in run("swap", "--redraw", f"--csv={csv}")
    assert "3 of 3 cases" in run(*words) and Results(csv, swap.COLUMNS, "").read() == rows


def test_cold_and_its_table(tmp_path: Path, run: Callable[..., str]) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photographs / f"{i}.jpg")
    csv = tmp_path / "cold.csv"
    words = ["cold", f"--photographs={photographs}", f"--folder={tmp_path}", f"--csv={csv}", "--repeats=1"]
    words += ["--scale=0.02", "--megabytes=1"]
    run(*words, "--only=256 raw")
    page = csv.with_suffix(".md").read_text()
    assert page.count("| 256 raw |") == 2 * 3 * 3  # keeps, situations, loaders
    assert "The disk delivered 256 raw (" in page
    assert page in run("cold", "--redraw", f"--csv={csv}")
    with pytest.raises(UserError, match=r"scale=0.02 .* not .*scale=1.0 "):
        run(*words, "--only=256 raw", "--scale=1.0")


def test_cold_without_photographs(tmp_path: Path, run: Callable[..., str]) -> None:
    with pytest.raises(UserError, match="--photographs: name a folder"):
        run("cold", f"--csv={tmp_path / 'cold.csv'}")


def test_writer_and_its_table(tmp_path: Path, run: Callable[..., str]) -> None:
    photographs = tmp_path / "train/n01"
    photographs.mkdir(parents=True)
    for i, side in enumerate((40, 50, 60)):
        down, right = np.mgrid[0:side, 0:side] * 4
        Image.fromarray(np.stack([down, right, down], axis=2).astype(np.uint8)).save(
            photographs / f"{i}.JPEG", format="JPEG", quality=95
        )
    csv = tmp_path / "writer.csv"
    words = ["writer", "--images=9", "--max-resolution=50", "--workers=1", "--repeats=1", f"--csv={csv}"]
    with pytest.raises(UserError, match="--imagenet-dir: name a folder"):
        run(*words)
    run(*words, f"--imagenet-dir={tmp_path}")
    rows = {(row["writer"], row["stored"]): row for row in Results(csv, writer.COLUMNS, "").read()}
    assert tuple(rows) == writer.CASES
    assert [row["kept"] for row in rows.values()] == ["0.0", "", "0.0", "", "0.6666667", ""]  # one is too large
    assert float(rows[writer.OURS, writer.RAW]["difference"]) == 0
    compressed, kept = (float(rows[writer.OURS, stored]["difference"]) for stored in (writer.JPG, writer.KEPT))
    assert 0 < kept < compressed
    assert rows[writer.STOCK, writer.JPG]["difference"] == rows[writer.OURS, writer.JPG]["difference"]
    files = sum(file.stat().st_size for file in photographs.iterdir())
    assert rows[writer.FOLDER, writer.FILES]["bytes"] == str(3 * files)
    page = csv.with_suffix(".md").read_text()
    assert page.count("| ffcv_prune |") == 3 and page.count("| torchvision | the files |") == 1
    assert page in run("writer", "--redraw", f"--csv={csv}")


def test_startup_and_its_table(tmp_path: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "CASES", (("all three", "ffcv_prune"), ("scoring", "FFCV")))
    commands = [command for command in startup.COMMANDS if command.startswith("train_imagenet.py")]
    monkeypatch.setattr(startup, "COMMANDS", {command: startup.COMMANDS[command] for command in commands})
    csv = tmp_path / "startup.csv"
    words = ["startup", "--samples=128", "--repeats=1", f"--csv={csv}"]
    run(*words)
    rows = Results(csv, startup.COLUMNS, "").read()
    all_three = ["all three", *(f"all three: {kind}" for kind in startup.KINDS)]
    assert [(row["measured"], row["cache"]) for row in rows] == [
        *((name, state) for state in ("empty", "filled") for name in all_three),
        *(("scoring", state) for state in ("empty", "filled")),
        *((command, "") for command in commands),
    ]
    total, _, _, _, filled, _, _, _, stock, stock_filled = rows[:10]
    compiled = {row["measured"]: int(row["compiled"]) for row in rows[:4]}
    assert compiled.pop("all three") == sum(compiled.values())
    assert compiled["all three: test"] < compiled["all three: training"]  # shared within a process
    for column in ("compiled", "import_compiled"):  # and from process to process; FFCV keeps nothing
        assert int(filled[column]) < int(total[column]) and int(stock_filled[column]) == int(stock[column]) > 0
    assert all(float(row["cpu_seconds"]) > 0 and float(row["seconds"]) > 0 for row in rows)
    page = csv.with_suffix(".md").read_text()
    assert page.count("| all three | ffcv_prune |") == 2 and page.count("| `python train_imagenet.py --help` |") == 1
    assert page in run("startup", "--redraw", f"--csv={csv}")
    assert "4 of 4 cases" in run(*words) and Results(csv, startup.COLUMNS, "").read() == rows


def test_what_the_startup_table_says() -> None:
    made = {"cpu": "c", "cores": "2", "memory_gb": "8", "gpus": "", "python": "3", "torch": "2", "ffcv": "1"}
    made |= {"numba": "4", "numpy": "5", "commit": "abc", "date": "2026-01-02", "settings": "repeats=2"}
    rows = []
    for repeat, slower in enumerate((1, 3)):
        for made_by, cpu in (("ffcv_prune", 1), ("FFCV", 4 * slower)):
            row = {"measured": "test", "loader": made_by, "cache": "filled", "compiled": 7, "cpu_seconds": cpu}
            row |= {"seconds": 9, "import_seconds": 8, "import_cpu_seconds": cpu, "import_compiled": 6}
            rows.append(row | {"repeat": repeat})
        for name, cpu in (("train_imagenet.py --help", 0.5), (startup.ALL_IMPORTS, 5)):
            rows.append({"measured": name, "loader": "", "repeat": repeat, "seconds": 2, "cpu_seconds": cpu * slower})
    page = startup.summary([made | {name: str(value) for name, value in row.items()} for row in rows])
    ours, stock, *_ = (line for line in page.splitlines() if line.startswith("| test |"))
    assert ours.endswith("| 1 (1–1) | 7 (7–7) | 8 (8–8) | 1 (1–1) | 6 (6–6) | 8 (4–12) |") and stock.endswith("|  |")
    assert "| `python train_imagenet.py --help` | 2 (2–2) | 1 (0.5–1.5) | 0.1 (0.1–0.1) |" in page


def test_the_processes_of_startup_have_not_imported_what_they_measure() -> None:
    code = "import sys, benchmarks.loading.startup; print({'numba', 'ffcv'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
