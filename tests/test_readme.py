"""What README and docs show is so: its script runs, its table is the committed one, what it names exists."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import matplotlib
import pytest

from benchmarks import demo, pythons
from benchmarks.harness.rows import read_csv
from benchmarks.loading import cold, startup, swap, throughput, writer
from benchmarks.payoff import confirm, headroom, referee, seconds
from benchmarks.speed import agreement, long_run, proxy, saving, scoring, speedup, top_k, waiting
from ffcv_prune.config import SECTIONS
from ffcv_prune.data.recipe import Recipe
from ffcv_prune.methods import PRESETS
from tests.betons import write_beton

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_script_runs(tmp_path: Path) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    folder = tmp_path / "betons" / "fashion_mnist"
    folder.mkdir(parents=True)
    shutil.copy(write_beton(folder / "train.beton", n=1000, size=28).path, folder / "test.beton")
    (tmp_path / "own.py").write_text(script)
    run = subprocess.run([sys.executable, "own.py"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    accuracies = re.findall(r"epoch \d: 2 batches, test accuracy (\S+)", run.stdout)  # 300 samples
    assert len(accuracies) == 10
    assert float(accuracies[-1]) > 0.2  # ten classes, each of a colour of its own


def test_the_demo_of_the_page_is_that_of_the_committed_results(tmp_path: Path) -> None:
    results = ROOT / "benchmarks" / "results"
    rows = read_csv(results / "demo.csv")
    assert demo.page(rows) == (results / "demo.md").read_text(encoding="utf-8")
    (verdict,) = demo.verdicts(rows)
    assert verdict in README.replace("\n> ", " ")
    demo.draw(rows, tmp_path / "demo.svg")
    assert_same_picture(tmp_path / "demo.svg", results / "demo.svg")


def assert_same_picture(made: Path, kept: Path) -> None:
    """Compare two SVG files, unless another matplotlib made the kept one: it draws the same numbers otherwise."""
    picture = kept.read_text(encoding="utf-8")
    if f"Matplotlib v{matplotlib.__version__}," in picture:
        assert made.read_text(encoding="utf-8") == picture


PAGES = {  # of benchmarks/results: what makes them
    "speedup": speedup,
    "agreement": agreement,
    "scoring": scoring,
    "top_k": top_k,
    "proxy": proxy,
    "waiting": waiting,
    "long_run": long_run,
    "loading_swap": swap,
    "loading_throughput": throughput,
    "loading_busy": throughput,
    "loading_cold": cold,
    "loading_startup": startup,
    "loading_writer": writer,
    "pythons": pythons,
    "payoff": referee,
    "payoff_fashion": referee,
    "headroom_fashion": headroom,
    "payoff_seconds": seconds,
    "payoff_fashion_seconds": seconds,
    "payoff_confirm": confirm,
    "saving": saving,
}
# Others are linked from speed.md.
LINKED_FROM = {
    "long_run": "scale.md",
    "pythons": "compatibility.md",
    "payoff": "payoff.md",
    "payoff_fashion": "payoff.md",
    "payoff_seconds": "payoff.md",
    "payoff_fashion_seconds": "payoff.md",
    "payoff_confirm": "payoff.md",
    "headroom_fashion": "cheaper_scores.md",
}


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_of_results_are_those_of_the_committed_rows(name: str) -> None:
    results = ROOT / "benchmarks" / "results"
    with (results / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        table = PAGES[name].summary(list(csv.DictReader(file)))
    assert f"\n\n{table}\n" in (results / f"{name}.md").read_text(encoding="utf-8")
    page = ROOT / "docs" / LINKED_FROM.get(name, "speed.md")
    assert f"(../benchmarks/results/{name}.md)" in page.read_text(encoding="utf-8")


def test_the_page_on_payoff_is_short_and_its_decimals_are_of_the_rows() -> None:
    page = (ROOT / "docs" / "payoff.md").read_text(encoding="utf-8")
    made, of_cifar10, *others_of_it = (
        (ROOT / "benchmarks" / "results" / f"{name}.md").read_text(encoding="utf-8")
        for name in ("payoff_fashion", "payoff", "payoff_fashion_seconds", "payoff_seconds", "payoff_confirm")
    )
    decimals, others = (
        set(re.findall(r"[+-]?\d+\.\d+", text)) for text in (page, "".join([made, of_cifar10, *others_of_it]))
    )
    assert decimals and decimals <= others, decimals - others
    assert len(page.split()) <= 600
    (saving, *_) = re.findall(r"^\| recent_loss \| .*? at least \+(\d+\.\d+) ", made, re.MULTILINE)
    of_ten = re.search(
        r"^\| recent_loss \| [^|]* \| 10 \| .*? \| \+(\d+\.\d+) ± (\d+\.\d+) \|", of_cifar10, re.MULTILINE
    )
    assert of_ten is not None
    for name in ("README.md", "docs/methods/recent_loss.md"):
        words = " ".join((ROOT / name).read_text(encoding="utf-8").split())
        assert "more than 30 % of the work" in words and float(saving) > 30, name
        assert " ± ".join(f"{float(part):.0f}" for part in of_ten.groups()) + " %" in words, name


def test_the_card_of_the_proxy_has_its_share_of_the_seconds() -> None:
    rows = [row for row in read_csv(ROOT / "benchmarks/results/payoff.csv") if row["entry"] == "proxy_batch"]
    tuning = [row for row in rows if row["seed"] == "0"]
    shares = [100 * float(row["score_seconds"]) / float(row["seconds"]) for row in tuning]
    card = " ".join((ROOT / "docs/methods/proxy_batch.md").read_text(encoding="utf-8").split())
    assert len(tuning) == 5 and f"took {min(shares):.0f} to {max(shares):.0f} % of the seconds" in card
    assert {f"{float(row['proxy_share']):.2f}" for row in tuning} == {"0.28"} and "has 0.28 of the large" in card


PAGES_OF_FOLDERS = {"write_datasets": ROOT / "write_datasets/README.md", "rn_configs": ROOT / "rn_configs/README.md"}
OTHERS = {"train.beton", "train.py", "dataset.json", "data.in_memory"}  # files, and a key of ffcv-imagenet
KEYS = {
    section: {field.name for field in fields(kind)} for section, kind in (SECTIONS | get_type_hints(Recipe)).items()
}
KEYS["prune"] |= {
    "method",
    "save",
    "score_source",
    *(name for preset in PRESETS.values() for name in preset.parameters),
}
PROSE = [ROOT / "README.md", *PAGES_OF_FOLDERS.values(), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for recipe in re.findall(r"write_datasets.py --dataset (\w+)", text):
        assert (ROOT / "write_datasets" / f"{recipe}.yaml").exists(), recipe
    for config in re.findall(r"`((?:rn18|cifar10|fashion)_\w+)`", text):
        assert any((ROOT / folder / f"{config}.yaml").exists() for folder in PAGES_OF_FOLDERS), config
    for link in re.findall(r"\]\(([\w./]+)\)", text):
        assert (page.parent / link).exists(), link
    for module in re.findall(r"python -m ((?:benchmarks|ffcv_prune)(?:\.[a-z_]+)*)", text):
        path = ROOT / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").exists(), module
    for key in re.findall(rf"(?:`|--)((?:{'|'.join(KEYS)})\.[a-z]\w*)", text):
        section, name = key.split(".")
        assert name in KEYS[section] or key in OTHERS, key


@pytest.mark.parametrize("folder", PAGES_OF_FOLDERS)
def test_every_config_and_recipe_stands_on_the_page_of_its_folder(folder: str) -> None:
    page = PAGES_OF_FOLDERS[folder].read_text(encoding="utf-8")
    for path in (ROOT / folder).glob("*.yaml"):
        assert re.search(rf"\b{path.stem}`", page), path


def test_the_first_page_is_short_and_the_index_leads_to_all_others() -> None:
    assert len(README.split()) <= 900
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "docs" / "walkthrough.py"]:
        assert page.name == "README.md" or f"({page.name})" in index, page
