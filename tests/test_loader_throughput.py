"""The benchmark of loaders: every rival delivers what was asked for, and the tables come from the rows."""

from __future__ import annotations

import argparse
import os
import pkgutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.harness.rows import Results
from benchmarks.loading import throughput
from benchmarks.loading.__main__ import main
from benchmarks.loading.rivals import RIVALS, Loader
from benchmarks.loading.rivals.data import Data
from benchmarks.loading.rivals.process import cpu_seconds, probes, run_epoch
from benchmarks.loading.throughput import COLUMNS, PIXEL_BOUND, prepare, summary
from ffcv_prune.data.images import read_images
from ffcv_prune.errors import UserError
from tests.betons import write_beton

ROOT = Path(__file__).resolve().parent.parent
BATCH, WORKERS = 8, 2


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    throughput.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Data]:
    """A case that is copied, and one that is decoded, cropped and resized."""
    folder = tmp_path_factory.mktemp("throughput")
    cifar = write_beton(folder / "cifar.beton", n=50, size=16)
    wnid = folder / "photographs" / "train" / "n01440764"
    wnid.mkdir(parents=True)
    for i, (height, width) in enumerate([(300, 420), (390, 250), (240, 240)]):
        across, down = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
        pixels = np.stack([across, down, np.full_like(down, 60 * i)], axis=2).astype(np.uint8)
        Image.fromarray(pixels).save(wnid / f"{i}.JPEG", quality=95)
    args = arguments(f"--cifar={cifar.path}", f"--imagenet-dir={wnid.parents[1]}", f"--out={folder}")
    args.imagenet_samples = 25
    return {case: prepare(case, args) for case in ("cifar_raw", "imagenet_jpeg")}


def naive(data: Data, i: int) -> NDArray[np.uint8]:
    pixels = read_images(data.path, [i])[0]
    height, width, _ = pixels.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    crop = pixels[top : top + side, left : left + side]
    return np.asarray(cv2.resize(crop, (data.side, data.side), interpolation=cv2.INTER_AREA))


@pytest.mark.parametrize("case", ["cifar_raw", "imagenet_jpeg"])
@pytest.mark.parametrize("name", RIVALS)
def test_a_loader_serves_each_selection(name: str, case: str, cases: dict[str, Data]) -> None:
    data = cases[case]
    try:
        build = pkgutil.resolve_name(f"benchmarks.loading.rivals.{RIVALS[name].loader}")
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed: extra rivals")
    loader = build(data, BATCH, WORKERS)
    rng = np.random.default_rng(0)
    # FFCV compiles for seconds for each selection; the others get a third one, of another length.
    for k in (len(data), 11) if name == "ffcv" else (len(data), 11, 20):
        asked = np.sort(rng.permutation(len(data))[:k])
        seen: dict[int, NDArray[np.uint8]] = {}

        def look(images: Any, ids: NDArray[np.int64], seen: dict[int, NDArray[np.uint8]] = seen) -> None:
            array = np.asarray(images)
            array = array.transpose(0, 2, 3, 1) if array.shape[1] == 3 else array
            seen.update(zip(ids.tolist(), array.copy(), strict=True))

        measured = run_epoch(loader, asked, look)  # raises unless each id came once
        assert measured.images == k
        assert 0 < measured.first_images <= BATCH  # the last, smaller one may be done first
        assert 0 < measured.first_seconds <= measured.seconds
        assert sorted(seen) == sorted(asked)
        for i in asked[:5].tolist():
            difference = np.abs(seen[i].astype(int) - naive(data, i).astype(int)).mean()
            assert difference <= (0 if case == "cifar_raw" else PIXEL_BOUND)
    loader.close()


def test_a_loader_that_serves_other_ids_is_found_out(cases: dict[str, Data]) -> None:
    class Repeats(Loader):
        def epoch(self, ids: NDArray[np.int64]) -> Any:
            yield np.zeros((len(ids), 1)), np.repeat(ids[:1], len(ids))

    with pytest.raises(AssertionError, match="each once"):
        run_epoch(Repeats(cases["cifar_raw"], 1, 1), np.arange(3))


def test_cpu_time_counts_children() -> None:
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    before = cpu_seconds()
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        alive = cpu_seconds() - before
        child.communicate(b"\n")
    assert 0.3 <= alive <= cpu_seconds() - before


def test_cpu_time_does_not_shrink_while_threads_come_and_go() -> None:
    """As Grain's do: an epoch has threads of its own."""
    over = threading.Event()

    def churn() -> None:
        while not over.is_set():
            threads = [threading.Thread(target=time.sleep, args=(0.0001,)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    churning = threading.Thread(target=churn)
    churning.start()
    try:
        measured = [cpu_seconds() for _ in range(1000)]
    finally:
        over.set()
        churning.join()
    assert measured == sorted(measured)


def test_a_core_is_kept_busy_no_longer_than_asked() -> None:
    children = Path(f"/proc/{os.getpid()}/task/{threading.main_thread().native_id}/children")
    before = set(children.read_text().split())
    with throughput.busy(1):
        (child,) = set(children.read_text().split()) - before
        stat = Path(f"/proc/{child}/stat")
        while sum(map(int, stat.read_text().split()[13:15])) <= 10:  # ticks: a tenth of a second of a core
            time.sleep(0.05)
    assert set(children.read_text().split()) == before


def test_the_command_measures_and_its_tables_come_from_its_rows(
    cases: dict[str, Data],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results, cifar = tmp_path / "loader.csv", cases["cifar_raw"].path.with_name("cifar.beton")
    command = [sys.executable, "-m", "benchmarks.loading", "throughput", f"--csv={results}", f"--cifar={cifar}"]
    command += [
        f"--out={tmp_path}",
        "--loaders=ours,spdl",
        "--repeats=2",
        "--seconds=0",
        "--cases=cifar_raw,imagenet_raw",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "imagenet_raw: skipped" in done.stdout
    rows = Results(results, COLUMNS, "").read()
    assert ('pip install -e ".[rivals]"' in done.stdout) == (not any(row["loader"] == "spdl" for row in rows))
    ours = [row for row in rows if row["loader"] == "ours"]
    assert [(row["repeat"], row["keep"]) for row in ours] == [
        ("0", "1.0"),
        *[(repeat, keep) for repeat in "12" for keep in ("0.3", "0.5", "1.0")],
    ]
    for row in ours:
        assert int(row["images"]) == round(float(row["keep"]) * 50) * max(int(row["epochs"]), 1)
        assert float(row["cpu_seconds"]) > 0 and row["cpu"] and row["date"] and row["version"]
    page = results.with_suffix(".md").read_text()
    assert page == f"# {throughput.TITLE}\n\n{summary(rows)}\n" and page in done.stdout
    monkeypatch.setattr(sys, "argv", ["loading", *command[3:], "--cases=cifar_raw"])
    main()
    assert page in capsys.readouterr().out and Results(results, COLUMNS, "").read() == rows
    monkeypatch.setattr(sys, "argv", ["loading", *command[3:], "--seconds=1"])
    with pytest.raises(UserError, match=r"`.*seconds=0.0 .*`, not `.*seconds=1.0 .*another --csv"):
        main()


def row(loader: str, keep: float, repeat: int, seconds: float, cpu: float) -> dict[str, str]:
    values: dict[str, Any] = {
        "case": "cifar_raw", "loader": loader, "keep": keep, "repeat": repeat, "images": 1000, "seconds": seconds,
        "cpu_seconds": cpu, "first_images": 500, "first_seconds": 0.4, "first_cpu_seconds": 0.1, "samples": 1000,
        "batch_size": 500, "workers": 2, "pixel_difference": 0.5, "version": "x 1", "cpu": "c", "cores": 2,
        "date": "2026-01-02", "commit": "abc", "settings": "repeats=3", "memory_gb": 8, "gpus": "", "python": 3,
        "torch": 2, "ffcv": 1, "numba": 4, "numpy": 5,
    }  # fmt: skip
    return {name: str(value) for name, value in values.items()}


def test_what_the_table_says() -> None:
    rows = [row("ours", 1.0, 0, 9.0, 9.0)]  # the warm-up is in no figure
    for repeat, slower in ((1, 1), (2, 2), (3, 1)):
        rows += [row("ours", 1.0, repeat, 0.5 * slower, 0.5), row("ours", 0.3, repeat, 0.5 * slower, 0.6)]
        rows += [row("ffcv", 1.0, repeat, 1.0 * slower, 2.0), row("ffcv", 0.3, repeat, 2.0 * slower, 4.0)]
    lines = [line.split(" | ") for line in summary(rows).splitlines() if line.startswith("|")]
    head = [word.strip("| ") for word in lines[0]]
    cells = {(line[0].strip("| "), line[1]): dict(zip(head, line, strict=True)) for line in lines[2:]}
    assert cells["ffcv_prune", "0.3"]["images/s"] == "2,000 (1,000–2,000)"
    assert cells["ffcv_prune", "0.3"]["subset, time"] == "1 (1–1)"
    assert cells["ffcv_prune", "0.3"]["subset, CPU"].startswith("1.2 (1.2–1.2)")
    assert cells["FFCV, rebuilt", "0.3"]["ours ÷ its"] == "4 (4–4)"
    assert cells["FFCV, rebuilt", "1"]["its CPU ÷ ours"] == "4 (4–4)"
    assert cells["FFCV, once it runs", "1"]["images/s"] == "833 (312–833)"  # 500 in 1.0 - 0.4 s, or in 2.0 - 0.4 s


def test_what_a_user_can_get_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "rows.csv"
    for words, message in (
        (["thruput"], "did you mean"),
        (["throughput", "--cases=cifar_rw"], "did you mean"),
        (["throughput", "--loaders=webdataset"], "is not one of them"),
        (["throughput", f"--cifar={tmp_path / 'none.beton'}", "--cases=cifar_raw"], "does not exist"),
        (["throughput", "--redraw"], "cannot read .*measure first"),
    ):
        monkeypatch.setattr(sys, "argv", ["loading", *words, f"--csv={results}"])
        with pytest.raises(UserError, match=message):
            main()
    assert not [*tmp_path.iterdir()]


def test_the_probes_are_images_of_the_data(cases: dict[str, Data]) -> None:
    for data in cases.values():
        assert np.array_equal(probes(data), np.arange(len(data)))  # fewer than PROBES: all of them
