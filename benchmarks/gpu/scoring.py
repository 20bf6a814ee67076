"""The scoring pass by `benchmarks.speed.scoring`: decides whether it folds batch norms on a GPU."""

from __future__ import annotations

from statistics import median

from benchmarks.gpu.data import CIFAR, MIX, SMALL, beton
from benchmarks.gpu.report import Report
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.step import GAIN
from benchmarks.harness.machine import fresh_python
from benchmarks.harness.rows import read_csv
from benchmarks.harness.tables import Row, groups, ratios, values
from benchmarks.speed.scoring import BARE, FOLDED, SCORE
from benchmarks.speed.scoring import SMALL as SMALL_SCORES


def run(setting: Setting, report: Report) -> None:
    path = setting.out / "scoring.csv"
    path.unlink(missing_ok=True)
    options = [f"--beton={beton(setting, CIFAR)}", f"--models={setting.scale.cifar_model}", "--skip-compile"]
    if setting.small:
        options += ["--samples=64", "--batch-sizes=32", "--repeats=1"]
    else:
        options += ["--samples=20000", "--batch-sizes=256,1024", "--repeats=3"]
        options += [f"--imagenet={beton(setting, MIX)}", f"--imagenet-score={beton(setting, SMALL)}"]
    words = ["-m", "benchmarks.speed.scoring", f"--device={setting.device.type}", f"--csv={path}", *options]
    fresh_python(words)
    for (model, size), rows in groups(read_csv(path), "model", "batch_size").items():
        variants = {variant: own for (variant,), own in groups(rows, "variant").items()}
        bare, title = variants[BARE], f"{model} x {size}"
        report.figure(f"{title}: forward passes alone", median(values(bare, "images_per_second")), "images/s")
        _ratio(report, f"{title}: folded of bare", bare, variants.get(FOLDED), f"fold on this device from {GAIN}")
        _ratio(report, f"{title}: score_dataset of bare", bare, variants.get(SCORE), "decoding included")
        _ratio(report, f"{title}: from small images, of bare", bare, variants.get(SMALL_SCORES), "decoding included")


def _ratio(report: Report, name: str, bare: list[Row], own: list[Row] | None, note: str) -> None:
    if own is not None:
        report.figure(name, median(ratios(bare, own, "seconds")), "", note=note)
