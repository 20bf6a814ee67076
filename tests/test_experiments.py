"""The experiments: every file multiplies out, runs are found again, and the drawing follows from the rows."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness import machine
from benchmarks.harness.rows import write_csv
from benchmarks.paper import grid, runner
from benchmarks.paper.cells import RESULTS, cells, read_rows, table
from benchmarks.paper.estimate import duration, estimate, scoring_passes
from benchmarks.paper.figures import curve
from benchmarks.paper.selection_counts import find_cell, read_histogram
from benchmarks.paper.static_scores import make_scores
from ffcv_prune.errors import UserError
from tests.betons import Beton, write_beton
from tests.reports import painting_nothing

ROOT = Path(__file__).parents[1]
MINIMAL = """
about: {title: tiny}
grid: {methods: full full_equal random ucb_guarded, rates: [0.5, 0.75], config: base.yaml}
paper: {}
"""
BASE = """
data: {train: a.beton, test: b.beton}
model: {name: basic_cnn}
train: {epochs: 20, warmup_epochs: 1}
"""


def experiment(folder: Path, text: str, base: str = BASE) -> Path:
    (folder / "base.yaml").write_text(base)
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


def tiny_config(train: Path, test: Path) -> str:
    return f"""
data: {{train: {train}, test: {test}}}
model: {{name: basic_cnn}}
train: {{epochs: 4, batch_size: 32, lr: 0.02, device: cpu, amp: "off"}}
prune: {{period: 1}}
"""


def loaded(folder: Path, text: str, scale: str = "paper") -> list[grid.Run]:
    return grid.load(experiment(folder, text), scale)[1]


@cache
def experiment_runs(name: str, scale: str) -> tuple[grid.About, list[grid.Run]]:
    """`grid.load` of an experiment: half a second for the large ones, and several tests look at each."""
    return grid.load(grid.find(name), scale)


@pytest.mark.parametrize("name", grid.experiment_names())
def test_every_experiment_multiplies_out_at_each_of_its_scales(name: str) -> None:
    path = grid.find(name)
    lines = path.read_text().splitlines()
    scales = [scale for scale in grid.SCALES if any(line.startswith(f"{scale}:") for line in lines)]
    assert lines[0] in (f"# python -m benchmarks.paper {name}", f"# python -m benchmarks.paper {name} --scale small")
    for scale in scales:
        about, runs = experiment_runs(name, scale)
        assert about.title == grid.title(name) != ""
        assert {"full", "full_equal"} & {run.method for run in runs}  # the baseline that every claim must face
        assert [run.seed for run in runs] == sorted(run.seed for run in runs)
        if about.distribution:
            assert find_cell(about.distribution, runs)
        for run in runs:
            phases, epochs = run.config.prune.phases, run.config.train.epochs
            if run.is_static or run.swept is not None or not phases.prunes:
                continue  # one selection for the whole run, or chance
            if not run.config.prune.selector.has_fixed_size:
                continue  # InfoBatch selects in every epoch, until its final phase
            scored = sum(phases.selects(e, epochs) and phases.phase(e, epochs) == "method" for e in range(epochs))
            assert scored >= (6 if phases.warmup else 9 if scale == "paper" else 10), run


def test_the_settings_of_the_paper() -> None:
    """Section 4 and 4.1, in the configs that are run."""
    for name, rates in (("fig2", 9), ("fig6", 9)):
        runs = grid.load(grid.find(name), "paper")[1]
        (ucb,) = [run for run in runs if (run.method, run.rate, run.seed) == ("ucb", 0.7, 3)]
        train, prune = ucb.config.train, ucb.config.prune.values
        assert (train.epochs, train.batch_size, train.lr, train.weight_decay) == (200, 128, 0.1, 5e-4)
        assert (prune["period"], prune["alpha"], prune["keep"]) == (10, 0.8, 0.3)
        assert len({run.rate for run in runs if run.rate}) == rates
    assert ucb.config.model.name == "resnet34_cifar"
    (stretched,) = [run for run in grid.load(grid.find("fig5"), "paper")[1] if str(run) == "ucb 0.8 seed 0"]
    assert stretched.config.train.epochs == 1000


@pytest.mark.parametrize("name", grid.experiment_names())
def test_static_scores_have_the_epochs_of_the_paper(name: str) -> None:
    """Section 4: EL2N of "10 independent models trained for 20 epochs each", forget scores of a full run."""
    for scale, young in (("paper", 20), ("small", 2)):
        if name == "findings" and scale == "paper":
            continue
        for run in experiment_runs(name, scale)[1]:
            if run.scoring is None:
                continue
            static, train = run.scoring.static, run.scoring.train
            is_forget = static.method == "forget"
            assert (static.models, static.epochs) == ((1, train.epochs) if is_forget else (10, young)), run
            assert static.epochs >= train.warmup_epochs + 1  # an epoch at the full learning rate
            assert run.config.static == static


@pytest.mark.parametrize("name", grid.experiment_names())
def test_the_small_scale_has_each_collapsing_rule_guarded_too(name: str) -> None:
    if name in ("findings", "tab1", "fig23"):
        return  # the first has its own parts; the others ask what the rules do as they are written
    by_scale = {scale: {run.method for run in experiment_runs(name, scale)[1]} for scale in grid.SCALES}
    assert not {method for method in by_scale["paper"] if method.endswith("_guarded")}
    wanted = {f"{method}_guarded" for method in ("ema", "ucb") if method in by_scale["paper"]}
    assert by_scale["small"] == by_scale["paper"] | wanted


def test_rates_epochs_and_guards_follow_from_the_method(tmp_path: Path) -> None:
    runs = {str(run): run.config for run in loaded(tmp_path, MINIMAL)}
    assert list(runs) == [
        "full seed 0",
        "full_equal 0.5 seed 0",
        "full_equal 0.75 seed 0",
        "random 0.5 seed 0",
        "random 0.75 seed 0",
        "ucb_guarded 0.5 seed 0",
        "ucb_guarded 0.75 seed 0",
    ]
    equal = runs["full_equal 0.75 seed 0"]
    assert (equal.train.epochs, equal.train.warmup_epochs, equal.prune.name) == (5, 0.25, "full")
    assert (runs["random 0.75 seed 0"].prune.values["keep"], runs["random 0.75 seed 0"].train.epochs) == (0.25, 20)
    guarded = runs["ucb_guarded 0.5 seed 0"].prune.values
    assert (guarded["warmup"], guarded["final"], guarded["random_share"]) == (4, 4, 0.5)
    stretched = {str(run): run.config for run in loaded(tmp_path, MINIMAL.replace("grid: {", "grid: {stretch: true, "))}
    assert [c.train.epochs for c in stretched.values()] == [20, 20, 20, 40, 80, 40, 80]
    assert stretched["ucb_guarded 0.75 seed 0"].prune.phases.warmup == 16


def test_scales_and_parts_go_over_the_rest_and_seeds_come_first(tmp_path: Path) -> None:
    text = """
about: {title: tiny}
settings: {train.epochs: 8, train.lr: 0.05}
grid: {methods: random, rates: [0.5], config: base.yaml, seeds: 2}
small:
  settings: {train: {epochs: 4}}
parts:
  one: {}
  two:
    settings: {data.train: other.beton}
    grid: {rates: [0.25]}
    sweeps: {prune.period: {values: [1, 2], methods: ucb}}
"""
    runs = loaded(tmp_path, text, "small")
    assert [str(run) for run in runs] == [
        "one random 0.5 seed 0",
        "two random 0.25 seed 0",
        "two ucb 0.25 prune.period=1 seed 0",
        "two ucb 0.25 prune.period=2 seed 0",
        "one random 0.5 seed 1",
        "two random 0.25 seed 1",
        "two ucb 0.25 prune.period=1 seed 1",
        "two ucb 0.25 prune.period=2 seed 1",
    ]
    assert {run.config.train.epochs for run in runs} == {4}
    assert {run.config.train.lr for run in runs} == {0.05}
    assert [run.config.data.train for run in runs[:2]] == ["a.beton", "other.beton"]
    assert runs[3].config.prune.values["period"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("rates:", "rate:"), 'unknown key "grid.rate".*did you mean "grid.rates"'),
        (("full_equal", "full_equals"), 'unknown method "full_equals"; did you mean "full_equal"'),
        (("paper: {}", "paper: {settings: {train.epoch: 5}}"), '"train.epoch".*did you mean "train.epochs"'),
        (("paper: {}", "paper: {}\nsetings: {}"), 'unknown key "setings"; did you mean "settings"'),
        (("title: tiny", "title: tiny, figures: acuracy"), 'unknown figure "acuracy"; did you mean "accuracy"'),
        (("paper: {}", "small: {}"), "no scale paper; add --scale small"),
        (("paper: {}", "paper: {sweeps: {prune.c: {value: 1}}}"), "sweep of prune.c needs"),
        (("rates: [0.5, 0.75]", "rates: [1.5]"), r"grid\.rates=1\.5"),
        (("methods: full full_equal random ucb_guarded, ", ""), "no run; name methods"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in MINIMAL
    with pytest.raises(UserError, match=message) as caught:
        loaded(tmp_path, MINIMAL.replace(*change))
    assert "\n" not in str(caught.value)


def test_the_key_is_of_what_decides_the_result(tmp_path: Path) -> None:
    run = loaded(tmp_path, MINIMAL)[-1]
    config = run.config
    elsewhere = replace(
        run,
        label="other",
        config=replace(config, run=replace(config.run, name="x", out="y"), data=replace(config.data, num_workers=1)),
    )
    assert elsewhere.key == run.key
    assert replace(run, config=replace(config, run=replace(config.run, seed=1))).key != run.key
    assert replace(run, config=replace(config, train=replace(config.train, lr=0.2))).key != run.key
    assert len({run.key for run in loaded(tmp_path, MINIMAL)}) == 7


def test_durations() -> None:
    assert [duration(seconds) for seconds in (12, 29, 430, 7500)] == ["12 s", "29 s", "7 min", "2 h 05 min"]


def test_the_passes_that_are_estimated_are_those_that_took_time() -> None:
    runs = experiment_runs("findings", "small")[1]
    for cell in cells(runs, read_rows(RESULTS / "small.csv")):
        for made in cell.rows:  # keeping the losses of training takes InfoBatch a moment
            assert (scoring_passes(cell.run.config) > 0) == (float(made["score_seconds"]) > 1), str(cell.run)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, beton: Beton) -> tuple[grid.About, list[grid.Run], Path, Path]:
    """A grid of three methods and two seeds, of which the first runs were done before and one was interrupted."""
    folder = tmp_path_factory.mktemp("grid")
    test = write_beton(folder / "test.beton", n=83, seed=1)
    text = """
about: {title: "tiny, indeed", figures: accuracy zoom top5 time samples sweep distribution, distribution: ucb 0.5}
grid: {methods: full full_equal random ucb, rates: [0.5, 0.75], config: base.yaml, seeds: 2}
small:
  sweeps: {prune.c: {values: [0, 1], methods: ucb}}
"""
    about, runs = grid.load(experiment(folder, text, tiny_config(beton.path, test.path)), "small")
    csv_file = folder / "small.csv"
    with painting_nothing():
        runner.run_all(runs[:3], csv_file, folder / "runs")
        first = csv_file.read_text()
        runner.run_all(runs, csv_file, folder / "runs")
    assert csv_file.read_text().startswith(first)
    return about, runs, csv_file, folder


Done = tuple[grid.About, list[grid.Run], Path, Path]


def test_each_run_is_done_once_and_its_row_says_all(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    _, runs, csv_file, folder = done
    rows = read_rows(csv_file)
    lines = csv_file.read_text().splitlines()
    assert len(lines) == 1 + len(rows) == 1 + len({run.key for run in runs})
    assert len(rows) == len(runs) - 4  # c = 1 is the default: two rates and two seeds of the sweep are runs of ucb
    before = csv_file.read_text()
    runner.run_all(runs, csv_file, folder / "runs")
    assert csv_file.read_text() == before
    row = rows[next(run.key for run in runs if str(run) == "ucb 0.5 seed 1")]
    assert (row["seed"], row["keep"], row["method"], row["epochs"]) == ("1", "0.5", "ucb", "4")
    points = curve(dict(row))
    assert len(points) == 4
    assert points[-1] == (int(row["samples_seen"]), pytest.approx(float(row["accuracy"]), abs=1e-4))
    assert float(row["score_seconds"]) > 0
    assert row["torch"] and row["cpu"] and row["date"]


def test_no_run_is_added_to_rows_of_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, path = loaded(tmp_path, MINIMAL), tmp_path / "paper.csv"
    write_csv(path, [{"key": run.key} | machine.here() | {"gpus": "Another"} for run in runs[:2]])
    runner.run_all(runs[:2], path, tmp_path)  # nothing is to do
    monkeypatch.setattr(runner, "train", lambda *_: pytest.fail("it trains"))
    with pytest.raises(UserError, match=r"rows of another machine \(gpus Another\); name another --csv"):
        runner.run_all(runs, path, tmp_path)


def test_the_table_and_the_figures_come_from_the_rows(done: Done, tmp_path: Path) -> None:
    about, runs, csv_file, folder = done
    out = tmp_path / "tiny"
    rows = read_rows(csv_file)
    runner.redraw(about, runs, rows, folder / "runs", out)
    text = out.with_suffix(".md").read_text()
    accuracies = [100 * float(rows[run.key]["accuracy"]) for run in runs if run.method == "random" and run.rate == 0.5]
    assert f"| random | 0.5 |  | {np.mean(accuracies):.2f} ± {np.std(accuracies, ddof=1):.2f} | 2 |" in text
    assert "missing" not in text
    pictures = {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")}
    assert set(pictures) == {f"tiny_{kind}.svg" for kind in about.figures.split()}
    counts, selections = read_histogram(tmp_path / "tiny_selections.csv")
    assert (selections, counts.size) == (8, 203)
    assert counts.sum() == 8 * 102  # two seeds, four selections, half of the samples each time
    (folder / "runs" / "selections").rename(folder / "runs" / "elsewhere")
    try:  # a fresh clone has no run folders: the committed histogram serves
        runner.redraw(about, runs, rows, folder / "runs", out)
    finally:
        (folder / "runs" / "elsewhere").rename(folder / "runs" / "selections")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")} == pictures


def test_what_is_missing_is_said(done: Done, tmp_path: Path) -> None:
    about, runs, csv_file, folder = done
    rows = read_rows(csv_file)
    part = dict(list(rows.items())[:2])
    runner.redraw(about, runs, part, folder / "runs", tmp_path / "tiny")
    assert f"{len(runs) - 2} of {len(runs)} runs are missing" in (tmp_path / "tiny.md").read_text()
    assert table(cells(runs, part)).count("\n") == 3
    with pytest.raises(UserError, match="no run of this experiment"):
        runner.redraw(about, runs, {}, folder / "runs", tmp_path / "none")
    assert not (tmp_path / "none.md").exists()
    plan = runner.plan(runs, part)
    assert plan.count(" done ") == 2
    assert f"{len(rows) - 2} of {len(rows)} different runs to do, about " in plan
    assert min(estimate(runs).values()) > 0


def test_a_damaged_csv_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.csv"
    assert read_rows(path) == {}
    path.write_text("key,accuracy\nabc,0.5\ndef\n")
    with pytest.raises(UserError, match="cut short"):
        read_rows(path)


def test_the_command_lists_and_refuses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["paper", *arguments])
        runner.main()
        return capsys.readouterr().out

    listed = run("--list")
    assert [line.split()[0] for line in listed.splitlines()] == grid.experiment_names()
    with pytest.raises(UserError, match='unknown experiment "fig3"'):
        run("fig3")
    with pytest.raises(UserError, match="name an experiment"):
        run()


STATIC = """
about: {title: static scores}
grid: {methods: full full_equal forget el2n_ucb last_ema always_ema, rates: [0.5], config: base.yaml, seeds: 2}
small: {}
"""


def test_static_scores_are_made_once_and_charged_to_every_run(
    tmp_path: Path, beton: Beton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the scores' path is relative
    test = write_beton(tmp_path / "test.beton", n=83, seed=1)
    runs = grid.load(experiment(tmp_path, STATIC, tiny_config(beton.path, test.path)), "small")[1]
    by_name = {str(run): run for run in runs}
    first, second = (by_name[f"forget 0.5 seed {seed}"].config.prune.values["scores"] for seed in range(2))
    assert first == second
    assert by_name["forget 0.5 seed 1"].config.static.epochs == 4
    csv_file = tmp_path / "small.csv"
    with painting_nothing():
        runner.run_all(runs, csv_file, tmp_path / "runs")
    rows = read_rows(csv_file)
    assert len(rows) == len(runs) + 2  # and the EMA runs whose selections are used again
    cost = {rows[by_name[f"forget 0.5 seed {seed}"].key]["static_seconds"] for seed in range(2)}
    assert len(cost) == 1
    assert float(cost.pop()) > 0
    assert float(rows[by_name["full seed 0"].key]["static_seconds"]) == 0

    def selections(run: grid.Run | None) -> dict[str, np.ndarray]:
        assert run is not None
        return dict(np.load(tmp_path / "runs" / "selections" / f"{run.key}.npz"))

    for seed in range(2):
        static, anew = by_name[f"last_ema 0.5 seed {seed}"], by_name[f"always_ema 0.5 seed {seed}"]
        assert static.source is not None
        assert (static.source.method, static.source.seed) == ("ema", 1 - seed)
        source = selections(static.source)
        np.testing.assert_array_equal(selections(static)["last"], source["last"])
        assert set(selections(static)["counts"].tolist()) == {0, 4}  # the same samples at every selection
        always = np.argsort(-source["counts"], kind="stable")[:51]  # half of the 102 that are kept
        counts = selections(anew)["counts"]
        assert (counts[always] == 4).all()
        assert 0 < counts[np.setdiff1d(np.arange(len(beton)), always)].mean() < 2
    assert "static scores, s" in table(cells(runs, rows))
    assert estimate([by_name["forget 0.5 seed 0"]])  # the file is there: it costs no more


def test_missing_selections_of_a_finished_run_are_named(tmp_path: Path) -> None:
    run = loaded(tmp_path, MINIMAL.replace("random ucb_guarded", "last_ema"))[-1]
    with pytest.raises(UserError, match=r"remove the row \w+ of the CSV to repeat that run"):
        make_scores(run, None, tmp_path)  # type: ignore[arg-type] - refused before the loaders are used
