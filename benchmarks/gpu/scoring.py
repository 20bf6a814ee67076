"""The scoring pass by `benchmarks.speed.scoring`: decides whether it folds batch norms on a GPU."""

from __future__ import annotations

from statistics import median

from benchmarks.gpu.card import FORWARD, LOADER, SMALL_PASS, of_card
from benchmarks.gpu.data import CIFAR, MIX, SMALL, beton
from benchmarks.gpu.report import Report
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.step import GAIN
from benchmarks.harness.machine import fresh_python
from benchmarks.harness.rows import read_csv
from benchmarks.harness.tables import Row, groups, ratios, values
from benchmarks.speed.scoring import BARE, FOLDED, SCORE
from benchmarks.speed.scoring import SMALL as SMALL_SCORES

FOLDING = 1.0  # cuDNN adds the bias of a convolution apart, at the cost of the batch norm that it replaces


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
        forward = of_card(FORWARD, setting).get(model)
        speed = median(values(bare, "images_per_second"))
        report.figure(f"{title}: forward passes alone", speed, "images/s", forward)
        folded = FOLDING if setting.expects else None
        _ratio(
            report, f"{title}: folded of bare", bare, variants.get(FOLDED), f"fold on this device from {GAIN}", folded
        )
        decoded = None if forward is None else min(1.0, LOADER["mix"] * setting.spare / forward)
        for variant, what, expected in (
            (SCORE, "score_dataset of bare", decoded),
            (SMALL_SCORES, "from small images, of bare", None if decoded is None else SMALL_PASS * decoded),
        ):
            _ratio(report, f"{title}: {what}", bare, variants.get(variant), "decoding included", expected)


def _ratio(
    report: Report, name: str, bare: list[Row], own: list[Row] | None, note: str, expected: float | None = None
) -> None:
    """Decides an option or depends on the processor: never judged."""
    if own is not None:
        report.figure(name, median(ratios(bare, own, "seconds")), "", expected, note, judge=False)
