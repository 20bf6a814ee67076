"""The referee: the order of its runs, its claim, and a whole small grid."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.harness.rows import benchmark, read_csv
from benchmarks.harness.training import Images
from benchmarks.payoff import grid as grids
from benchmarks.payoff import page, referee
from benchmarks.payoff.data import variants
from benchmarks.payoff.grid import Case, Grid, choice_name
from benchmarks.payoff.judge import Judged, case_of, cases
from ffcv_prune.analysis.intervals import Difference
from ffcv_prune.errors import UserError
from ffcv_prune.loading.arguments import usable_cores
from tests.betons import Beton

BASE = """\
data: {train: x, test: x}
model: {name: resnet_tiny}
train: {epochs: 4, batch_size: 32, device: cpu, warmup_epochs: 1, lr_schedule: linear}
"""
SMALL = """\
config: base.yaml
epochs: 4
seeds: 2
hopeless: 100
carry: 2
budgets: [0.5, 0.7, 1.0]
tuned_budgets: [0.5, 1.0]
choices:
  train.lr: [0.02, 0.1]
conditions:
  small: {{data.train: {train}, data.test: {test}}}
methods:
  recent: {{prune.method: recent_loss, prune.keep: 0.5}}
  recent null: {{prune.method: recent_loss, prune.keep: 0.5, prune.null: true}}
  proxy: {{prune.method: proxy_batch, prune.proxy_model: resnet_tiny, prune.window: 64}}
  ucb: {{prune.method: ucb, prune.keep: 0.5, prune.period: 2}}
claim: {{methods: [], seeds: 2}}
"""
TWO = """\
conditions:
  small: {{data.train: {train}, data.test: {test}}}
  again: {{data.train: {train}, data.test: {test}, train.epochs: 3}}
"""


def row(grid: Grid, case: Case, accuracy: float, work: float) -> dict[str, str]:
    return {
        "key": str(grid.key(case)),
        "condition": case.condition,
        "entry": case.entry,
        "choice": case.choice,
        "seed": str(case.seed),
        "accuracy": str(accuracy),
        "work": str(work),
        "epochs": "4",
    }


@pytest.fixture
def small(tmp_path: Path, beton: Beton, test_beton: Beton) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    path = tmp_path / "grid.yaml"
    path.write_text(SMALL.format(train=beton.path, test=test_beton.path))
    return path


def drive(grid: Grid, accuracy: Any) -> list[Case]:
    """All cases in the order in which they are asked for, with these accuracies of the entries and choices."""
    return [case_of(own) for own in driven_rows(grid, accuracy)]


def driven_rows(grid: Grid, accuracy: Any) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    while left := cases(grid, rows):
        budget = grid.entry(left[0].entry).budget
        rows.append(row(grid, left[0], accuracy(left[0]), 1000 * (budget or 0.7)))
    return rows


def test_each_entry_is_tuned_by_one_seed_and_run_for_the_others(small: Path) -> None:
    grid = grids.load(small)
    order = drive(grid, lambda case: 0.5 if case.choice == "lr=0.02" else 0.6)
    first = [(case.choice, case.seed) for case in order if case.entry == "full 0.5"]
    assert first == [("lr=0.02", 0), ("lr=0.1", 0), ("lr=0.1", 1), ("lr=0.1", 2)]
    assert len(order) == len(set(order)) == 5 * 4 + 3 + 2
    null = [(case.choice, case.seed) for case in order if case.entry == "recent null"]
    assert null == [("lr=0.1", 1), ("lr=0.1", 2)]  # its method's choice


def test_a_new_choice_does_not_hide_the_best_that_was_tried(small: Path) -> None:
    accuracies = {"0.02": 0.5, "0.1": 0.6, "0.3": 0.4}

    def accuracy(case: Case) -> float:
        return accuracies[case.choice.removeprefix("lr=")]

    rows = driven_rows(grids.load(small), accuracy)
    text = small.read_text()
    assert "[0.02, 0.1]" in text
    small.write_text(text.replace("[0.02, 0.1]", "[0.02, 0.1, 0.3]"))
    grid = grids.load(small)
    rows += [row(grid, case, accuracy(case), 500) for case in cases(grid, rows) if case.entry.startswith("full")]
    judged = Judged(grid, grid.first_condition, rows)
    recent = grid.entry("recent")
    assert judged.choice(grid.budgets[0]) == "lr=0.1" and judged.choice(recent) is None
    best = judged.trial(recent)
    assert best is not None and best["choice"] == "lr=0.1"


def test_runs_go_seed_after_seed_and_full_data_before_the_methods(small: Path) -> None:
    order = [(case.entry, case.seed) for case in drive(grids.load(small), lambda case: 0.6)]
    fulls, methods = {"full 0.5", "full 0.7", "full 1"}, {"recent", "recent null", "proxy", "ucb"}
    assert {entry for entry, _ in order[:5]} == fulls
    assert order[5:11] == [(entry, 0) for _ in range(2) for entry in ("recent", "proxy", "ucb")]
    assert [seed for _, seed in order] == [0] * 11 + [1] * 7 + [2] * 7
    for start in (11, 18):
        assert {entry for entry, _ in order[start : start + 3]} == fulls
        assert {entry for entry, _ in order[start + 3 : start + 7]} == methods


def test_some_methods_alone_bring_what_they_are_judged_by(small: Path) -> None:
    text = small.read_text().replace("  proxy:", "  recent 0.7: {prune.method: recent_loss, prune.keep: 0.7}\n  proxy:")
    small.write_text(text.replace("claim: {methods: [], seeds: 2}", "claim: {methods: [recent], seeds: 4}"))
    grid = grids.load(small)
    fulls = {"full 0.5", "full 0.7", "full 1"}
    for names, entries, seeds in (
        (["recent"], {"recent", "recent null"}, 4),
        (["recent null"], {"recent", "recent null"}, 4),
        (["recent 0.7"], {"recent", "recent null", "recent 0.7"}, 4),  # which is tuned after recent
        (["ucb"], {"ucb"}, 2),
    ):
        order = drive(grid.only(names), lambda case: 0.6)
        assert {case.entry for case in order} == fulls | entries
        assert max(case.seed for case in order if case.entry == "full 1") == seeds
    with pytest.raises(UserError, match='the grid has no "recnt"; did you mean "recent"'):
        grid.only(["recnt"])


def test_some_conditions_alone_bring_the_first_which_tunes(small: Path) -> None:
    text = small.read_text()
    (line,) = re.findall(r"^  small: .*\n", text, re.MULTILINE)
    small.write_text(text.replace(line, line + "".join(line.replace("small", name) for name in ("again", "third"))))
    grid = grids.load(small)
    assert list(grid.under(["third"]).conditions) == ["small", "third"]
    assert list(grid.under(["small"]).conditions) == ["small"]
    with pytest.raises(UserError, match='the grid has no condition "thrid"; did you mean "third"'):
        grid.under(["thrid"])


def test_data_that_a_later_run_lacks_is_named_before_the_first(small: Path, tmp_path: Path) -> None:
    text = small.read_text()
    (line,) = re.findall(r"^  small: .*\n", text, re.MULTILINE)
    lacking = re.sub(r"data.train: [^,]*", "data.train: lacking.beton", line.replace("small", "later"))
    small.write_text(text.replace(line, line + lacking))
    rows = tmp_path / "rows.csv"
    with pytest.raises(UserError, match=r"^later: lacking\.beton does not exist; compile it with") as refused:
        benchmark(referee, words=[f"--grid={small}", f"--csv={rows}"])
    assert "\n" not in str(refused.value) and not rows.exists()


def test_full_data_has_one_choice_for_all_budgets(small: Path) -> None:
    """The better one on the mean of the tuned budgets, though one of them prefers the other."""
    better = {("full 0.5", "lr=0.02"): 0.61, ("full 1", "lr=0.1"): 0.63}
    order = drive(grids.load(small), lambda case: better.get((case.entry, case.choice), 0.6))
    counted = [case for case in order if case.entry.startswith("full") and case.seed]
    assert len(counted) == 6 and {case.choice for case in counted} == {"lr=0.1"}


def test_the_claim_has_a_p_after_its_last_seed_only(small: Path) -> None:
    small.write_text(small.read_text().replace("methods: [], seeds: 2", "methods: [recent], seeds: 3"))
    grid = grids.load(small)
    of = {"full 0.5": (0.5, 500), "full 0.7": (0.6, 700), "full 1": (0.7, 1000), "recent": (0.65, 300)}

    def told(accuracy: float, seeds: int) -> list[str]:
        rows = []
        for case in drive(grid, lambda case: 0.6):
            own, work = of.get(case.entry, (0.6, 700))
            own = accuracy if case.entry == "recent" else own
            if case.seed <= seeds:
                rows.append(row(grid, case, own + 0.002 * case.seed * (case.entry == "recent"), work))
        made = page.text(grid, [Judged(grid, "small", rows)])
        (line,) = (
            line for line in made.partition("The claim:")[2].splitlines() if line.endswith(("| yes |", "| no |"))
        )
        return [cell.strip() for cell in line.split("|")[2:-1]]

    seeds, _, saving, least, p, shown = told(0.65, 3)
    assert seeds == "3 of 3" and 60 < float(saving.split()[0]) < 70 and 0 < float(p) < 0.01 and shown == "yes"
    assert 60 < float(least) < float(saving.split()[0])
    assert told(0.65, 2)[0] == "2 of 3" and told(0.65, 2)[4:] == ["", "no"]
    assert told(0.40, 3)[4:] == ["", "no"]  # below the curve: it may save less than it seems
    assert told(0.75, 3)[2] == "at least +70.00" and told(0.75, 3)[5] == "yes"  # the saving is a bound, not the gap
    of["recent"] = (0.75, 800)
    assert told(0.75, 3)[4:] == ["", "no"]  # full data of a cost above 1000 are not known


def test_the_methods_of_a_claim_share_its_level(small: Path) -> None:
    text = small.read_text()
    ahead = Difference(0.35, 0.1, 9)
    assert 0.01 > ahead.p() > 0.01 / 2
    for methods, shown, words in (
        ("[recent]", "yes", "p < 0.01, 2 seeds. ± is the 99% interval"),
        ("[recent, ucb]", "no", "p < 0.005 (0.01 for 2 methods), 2 seeds. ± is the 99.5% interval"),
    ):
        small.write_text(text.replace("methods: [], seeds: 2", f"methods: {methods}, seeds: 2"))
        grid = grids.load(small)
        assert page.shown(ahead, 0.25, 2, grid)["shown"] == shown
        assert words in page.text(grid, [Judged(grid, "small", driven_rows(grid, lambda case: 0.6))])


def test_a_saving_without_spread_is_not_found(small: Path) -> None:
    """All seeds below the curve: their savings are one bound, whose p would be 0."""
    small.write_text(small.read_text().replace("seeds: 2\nhopeless", "seeds: 3\nhopeless"))
    grid = grids.load(small)
    low = {1: 0.30, 2: 0.45, 3: 0.15}

    def accuracy(case: Case) -> float:
        return low.get(case.seed, 0.3) if case.entry == "ucb" else 0.6 + 0.01 * (case.entry == "full 1")

    own = [made for made in driven_rows(grid, accuracy) if made["entry"] == "ucb" or made["entry"].startswith("full")]
    text = page.text(grid, [Judged(grid, "small", own)])
    (line,) = [line for line in text.splitlines() if line.startswith("| ucb | lr=0.02 | 3 |")]
    assert "| at most -40.00 |" in line and "the 95 % interval over" in text


def test_full_data_tries_all_choices_and_a_method_one_key_after_the_other(small: Path) -> None:
    small.write_text(small.read_text().replace("[0.02, 0.1]", "[0.02, 0.1, 0.2]\n  train.label_smoothing: [0.2, 0]"))
    order = drive(grids.load(small), lambda case: 0.7 if case.choice.startswith("lr=0.1") else 0.6)

    def tried(entry: str) -> list[str]:
        return [case.choice for case in order if case.entry == entry and case.seed == 0]

    assert tried("recent") == [f"lr={rate} label_smoothing=0.2" for rate in (0.02, 0.1, 0.2)] + [
        "lr=0.1 label_smoothing=0"
    ]
    assert tried("full 1") == [f"lr={rate} label_smoothing={part}" for rate in (0.02, 0.1, 0.2) for part in (0.2, 0)]


def test_a_method_far_below_the_curve_gets_no_more_runs(small: Path) -> None:
    text = small.read_text().replace("hopeless: 100", "hopeless: 1")
    small.write_text(text.replace("  ucb:", "  ucb 0.3: {prune.method: ucb, prune.keep: 0.3}\n  ucb:"))
    grid = grids.load(small)
    order = drive(grid, lambda case: 0.4 if case.entry == "ucb" else 0.6)
    assert [case.seed for case in order if case.entry == "ucb"] == [0, 0]  # it is tuned first
    assert "ucb 0.3" not in {case.entry for case in order}
    assert [case.seed for case in order if case.entry == "recent"] == [0, 0, 1, 2]
    order = drive(grid, lambda case: 0.4 if case.entry == "recent" else 0.6)
    assert "recent null" not in {case.entry for case in order}


def test_other_conditions_take_over_the_choices_and_the_methods_that_are_left(
    small: Path, beton: Beton, test_beton: Beton
) -> None:
    text = small.read_text().replace("hopeless: 100", "hopeless: 1")
    start, end = text.index("conditions:"), text.index("methods:")
    two = TWO.format(train=beton.path, test=test_beton.path)
    small.write_text(text[:start] + two + text[end:])
    grid = grids.load(small)

    def accuracy(case: Case) -> float:
        low = case.entry == "proxy" and case.condition == "again"
        gain = {"recent": 0.02, "proxy": 0.03, "ucb": 0.01}.get(case.entry, 0)
        return 0.4 if low else 0.6 + gain + 0.001 * (case.choice == "lr=0.1")

    order = [case for case in drive(grid, accuracy) if case.condition == "again"]
    assert {case.choice for case in order} == {"lr=0.1"} and {case.seed for case in order} == {1, 2}
    entries = {"full 0.5", "full 0.7", "full 1", "recent", "recent null", "proxy"}
    assert {case.entry for case in order} == entries
    assert [case.seed for case in order if case.entry == "proxy"] == [1]
    # A method of the claim waits for no other and is run to its last seed.
    small.write_text(small.read_text().replace("claim: {methods: []", "claim: {methods: [ucb]"))
    order = drive(
        grids.load(small).only(["ucb"]),
        lambda case: 0.4 if case.entry == "ucb" and case.condition == "again" else accuracy(case),
    )
    again = [case for case in order if case.condition == "again"]
    assert {case.entry for case in again} == {"full 0.5", "full 0.7", "full 1", "ucb"}
    assert [case.seed for case in again if case.entry == "ucb"] == [1, 2]


def test_claimed_methods_get_more_seeds_at_the_end(small: Path) -> None:
    small.write_text(small.read_text().replace("methods: [], seeds: 2", "methods: [recent], seeds: 4"))
    order = drive(grids.load(small), lambda case: 0.6)
    assert {(case.entry, case.seed) for case in order[-10:]} == {
        (entry, seed) for entry in ("full 0.5", "full 0.7", "full 1", "recent", "recent null") for seed in (3, 4)
    }


def test_claimed_methods_may_get_more_seeds_elsewhere(small: Path) -> None:
    text = small.read_text().replace("methods: [], seeds: 2", "methods: [recent], seeds: 2, elsewhere: 3")
    small.write_text(re.sub(r"  small: (.*)\n", r"  small: \1\n  again: \1\n", text))
    order = drive(grids.load(small), lambda case: 0.6)
    seeds = Counter((case.condition, case.entry) for case in order if case.seed)
    for entry in ("full 0.5", "full 1", "recent", "recent null"):
        assert (seeds["small", entry], seeds["again", entry]) == (2, 3)
    assert seeds["again", "ucb"] == 2
    assert {case.condition for case in order[-5:]} == {"again"} and {case.seed for case in order[-5:]} == {3}


@pytest.mark.parametrize("path", sorted(grids.GRID.parent.glob("grid*.yaml")), ids=lambda path: path.stem)
def test_every_run_of_a_grid_is_one(path: Path) -> None:
    """All methods and conditions of the grids that come with the benchmark make a configuration."""
    grid = grids.load(path)
    for condition in grid.conditions:
        for entry in grid.entries:
            choice = choice_name({name: values[-1] for name, values in grid.values.items()})
            made = grid.config(Case(condition, entry.name, choice, 1), "runs")
            warmup = float(str(grid.base["train.warmup_epochs"].text)) / grid.epochs
            assert made.run.seed == 1 and made.train.warmup_epochs / made.train.epochs == pytest.approx(warmup)
    assert len(grid.budgets) >= 6 and [len(values) for values in grid.values.values()] == [3, 3] and grid.seeds >= 3


def test_a_grid_with_an_unknown_key_is_refused(small: Path) -> None:
    small.write_text(small.read_text().replace("seeds:", "sedes:"))
    with pytest.raises(UserError, match='unknown key "sedes"; did you mean "seeds"'):
        grids.load(small)


@pytest.mark.usefixtures("unpainted")
def test_a_small_grid_from_end_to_end(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = small.read_text().replace("budgets: [0.5, 0.7, 1.0]", "budgets: [0.5, 1.0]").replace("[0.02, 0.1]", "[0.02]")
    small.write_text(text.replace("methods: [], seeds: 2", "methods: [recent], seeds: 2"))  # the order is tested above
    csv = small.with_name("payoff.csv")
    jobs = 2 - usable_cores() % 2
    words = ["--csv", str(csv), "--grid", str(small), f"--jobs={jobs}"]
    benchmark(referee, words=[*words, "--methods", "recent"])
    assert {row["entry"] for row in read_csv(csv)} == {"full 0.5", "full 1", "recent", "recent null"}
    benchmark(referee, words=words)
    rows = read_csv(csv)
    assert len(rows) == 5 * 3 + 2
    assert {int(row["cores"]) for row in rows} == {usable_cores() // jobs}
    with pytest.raises(UserError, match="does not divide the"):
        benchmark(referee, words=[*words[:-1], f"--jobs={usable_cores() + 1}"])
    by_entry = {name: [own for own in rows if own["entry"] == name] for name in ("full 1", "recent", "proxy", "ucb")}
    full, recent, proxy, ucb = (own[-1] for own in by_entry.values())
    assert float(full["work"]) == int(full["samples_seen"]) == 4 * 6 * 32
    assert float(recent["work"]) == int(recent["samples_seen"]) < int(full["samples_seen"])
    assert float(ucb["work"]) > int(ucb["samples_seen"]) + int(ucb["forwards"]) / 3 > int(ucb["samples_seen"])
    assert float(proxy["proxy_share"]) == 1 and float(proxy["work"]) > int(proxy["proxy_forwards"]) / 3
    page = csv.with_suffix(".md").read_text()
    for words_of_page in (
        "## small",
        "| full data |",
        "saving in work, %",
        "above its null twin",
        "± is the",
        "The first seed decides",
        "| recent | 2 of 2 |",
    ):
        assert words_of_page in page
    assert "still to do" not in page
    before = csv.read_text()
    benchmark(referee, words=words)  # nothing is repeated
    assert csv.read_text() == before
    assert "all runs of the grid are done" in capsys.readouterr().out
    assert set(Judged(grids.load(small), "small", rows).curves) == {1, 2}


def test_the_data_sets_are_what_they_say() -> None:
    n, classes = 2000, 10
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (n, 4, 4, 3)).astype(np.uint8)
    whole = Images(images, np.arange(n) % classes)
    made = variants(whole, classes)
    for percent in (20, 40):
        assert (made[f"wrong_{percent}"].labels != whole.labels).mean() == percent / 100
    assert len(made["redundant"]) == n
    of_image = {image.tobytes(): label for image, label in zip(whole.images, whole.labels, strict=True)}
    assert all(
        of_image[image.tobytes()] == label
        for image, label in zip(made["redundant"].images, made["redundant"].labels, strict=True)
    )
    assert len({image.tobytes() for image in made["redundant"].images}) <= 500
    assert np.bincount(made["fifth"].labels).tolist() == [n // classes // 5] * classes


def test_a_row_that_other_settings_made_does_not_count(small: Path) -> None:
    """A rule that changes after runs were made has them repeated: those that it concerns, and no others."""
    grid = grids.load(small)
    rows = [row(grid, case, 0.6, 1000) for case in drive(grid, lambda case: 0.6)]
    assert not cases(grid, rows)
    small.write_text(small.read_text().replace("ucb, prune.keep: 0.5", "ucb, prune.keep: 0.4"))
    changed = grids.load(small)
    assert cases(changed, rows) == [Case("small", "ucb", "lr=0.02", 0)]
    assert len(Judged(changed, "small", rows).rows) == len(rows) - 4
    small.write_text(small.read_text().replace("  ucb: ", "  renamed: "))
    assert len(Judged(grids.load(small), "small", rows).rows) == len(rows) - 4


def refuse_high_rates(case: Case, path: Path) -> dict[str, Any]:
    """In place of a run: it diverges at the higher of both rates."""
    if case.choice == "lr=0.1":
        raise UserError("the training loss is nan, the model diverged")
    return {"condition": case.condition, "entry": case.entry, "choice": case.choice, "seed": case.seed} | {
        "accuracy": 0.5,
        "work": 100.0,
    }


def test_a_run_that_fails_is_named_and_holds_up_no_other(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(referee, "measure", refuse_high_rates)
    csv = small.with_name("payoff.csv")
    with pytest.raises(UserError, match=r"2 runs failed, the first is full 0.5, lr=0.1, seed 0: .* diverged"):
        benchmark(referee, words=["--csv", str(csv), "--grid", str(small), "--methods", "recent"])
    done = {(row["entry"], row["choice"]) for row in read_csv(csv)}
    assert done == {("full 0.5", "lr=0.02"), ("full 1", "lr=0.02"), ("recent", "lr=0.02")}


def test_rows_of_other_rules_alone_have_no_page(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(referee, "measure", refuse_high_rates)
    csv = small.with_name("payoff.csv")
    words = ["--csv", str(csv), "--grid", str(small)]
    with pytest.raises(UserError, match="diverged"):
        benchmark(referee, words=words)
    small.write_text(small.read_text().replace("epochs: 4", "epochs: 5"))
    with pytest.raises(UserError, match=r"no row is of the present rules of grid.yaml: name another --csv"):
        benchmark(referee, words=[*words, "--redraw"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("claim: {methods: [], seeds: 2}", "claim: {seeds: 3}"),
        ("claim: {methods: [], seeds: 2}", "claim:"),
        ("seeds: 2\nhopeless", "seeds: two\nhopeless"),
        ("choices:\n  train.lr: [0.02, 0.1]", "confirm: {method: recent}\nchoices:\n  train.lr: [0.02]"),
    ],
)
def test_a_grid_with_a_wrong_value_is_refused_in_one_line(small: Path, old: str, new: str) -> None:
    text = small.read_text()
    assert old in text
    small.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=r"^grid.yaml: a value is not as in the grid that comes with the benchmark"):
        grids.load(small)


def test_a_step_of_a_proxy_costs_its_whole_window(small: Path) -> None:
    """Its backward pass goes through all samples of the window, however few it is trained on."""
    grid = grids.load(small)
    config = grid.config(Case("small", "proxy", "lr=0.02", 1), "runs")
    made = {"samples_seen": 300, "forwards": 0, "proxy_share": 0.5, "decoded": 600, "decode_share": 0.1}
    made |= {"proxy_forwards": 600, "proxy_steps": 3}
    assert referee.work(made, config) == pytest.approx(300 + 0.5 * (600 / 3 + 3 * 64 * 2 / 3) + 60)
