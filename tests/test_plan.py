"""prune.save: what is solved, and that runs follow it. The pace is fed: no test looks at the clock."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ffcv_prune import config, methods
from ffcv_prune.analysis.runs import read_run
from ffcv_prune.analysis.verdicts import savings
from ffcv_prune.errors import Terminated, UserError
from ffcv_prune.methods import PRESETS, Method
from ffcv_prune.training import loop
from ffcv_prune.training import pace as pace_of_machine
from ffcv_prune.training import plan as planning
from ffcv_prune.training.loaders import Loaders
from ffcv_prune.training.loop import Trainer
from ffcv_prune.training.pace import Pace, measure, of_log
from ffcv_prune.training.plan import NEAR, Plan, Scale, seconds_of, sized
from ffcv_prune.training.run_log import kept_share
from ffcv_prune.training.stop import StopSignals
from ffcv_prune.training.trainer import train
from ffcv_prune.training.world import World
from ffcv_prune.words import percent
from tests.betons import Beton, write_run

ROOT = Path(__file__).resolve().parent.parent
PLANNED = [name for name, method in PRESETS.items() if method.sized_by]
PROXY = {"proxy_model": "basic_cnn", "window": 64}
VARIANTS = {
    **{name: PRESETS[name] for name in PLANNED if name != "proxy_batch"},
    "proxy_batch": methods.build("proxy_batch", **PROXY),
    "ucb both": methods.build("ucb", score_source="both", period=2, warmup=2),
    "ucb both budget": methods.build("ucb", score_source="both", score_budget=0.5, period=1, warmup=4),
    "ucb budget": methods.build("ucb", score_budget=0.3, period=3, final=0.2, final_mode="full"),
    "ema full": methods.build("ema", period=4, warmup=1, warmup_mode="full", class_floor=0.5),
}

Configure = Callable[..., config.Config]
paces = st.builds(
    Pace,
    step=st.floats(0.5, 2.0),
    forward=st.floats(0.0, 0.4),
    proxy=st.floats(0.0, 0.4),
    test=st.floats(0.0, 500.0),
    epoch=st.floats(0.0, 50.0),
)
scales = st.builds(
    Scale,
    n=st.integers(300, 3000),
    batch_size=st.integers(1, 100),
    epochs=st.integers(4, 30),
    eval_every=st.integers(1, 5),
    setup=st.floats(100.0, 300.0),
    full_setup=st.floats(0.0, 100.0),
)


def jump(plan: Plan) -> float:
    """The share of a full run by which its seconds jump where each epoch gains a batch, or a sample of each window."""
    samples = plan.scale.batch_size + (plan.scale.n // plan.preset.values.get("window", plan.scale.n))
    return plan.scale.epochs * samples * plan.pace.step / plan.full_seconds(plan.pace)


@given(name=st.sampled_from(list(VARIANTS)), pace=paces, scale=scales, asked=st.floats(0.01, 0.99))
@example(  # keep=0.63125 and the float just above it leave another number of batches
    name="p_sgd",
    pace=Pace(1.0),
    scale=Scale(n=720, batch_size=35, epochs=4, eval_every=1, setup=100.0, full_setup=0.0),
    asked=0.34375,
)
@settings(deadline=None, max_examples=150)
def test_a_plan_saves_what_is_asked_or_names_what_can_be_saved(
    name: str, pace: Pace, scale: Scale, asked: float
) -> None:
    preset = VARIANTS[name]
    try:
        plan = Plan.make(asked, preset, pace, scale)
    except UserError as error:
        assert "\n" not in str(error)
        found = re.search(r"(-?\d+\.\d{3}) at (least|most)", str(error))
        assert found is not None
        limit, at = float(found[1]), found[2]
        shares = all_shares(preset, pace, scale)
        if at == "most":
            assert asked > limit and max(shares) <= limit + NEAR
        else:
            assert asked < limit and min(shares) >= limit - NEAR
        return
    saved = plan.saved(plan.seconds())
    assert saved == pytest.approx(asked, abs=NEAR + jump(plan) / 2)
    assert all(scale.trained(plan.method, epoch) >= scale.batch_size for epoch in range(scale.epochs))


def all_shares(preset: Method, pace: Pace, scale: Scale) -> list[float]:
    """What is saved with sizes, periods and phases on a grid, as far as each epoch has a batch."""
    plan, shares = Plan(0.0, preset, scale, pace), []
    options: dict[str, tuple[Any, ...]] = {"period": (preset.values.get("period"), scale.epochs)}
    options |= {mode: (preset.values.get(mode), "random") for mode in ("warmup_mode", "final_mode")}
    known = {key: values for key, values in options.items() if key in preset.values}
    for chosen in itertools.product(*known.values()):
        method = preset.replace(**dict(zip(known, chosen, strict=True)))
        for value in (*np.linspace(0.01, 1, 34), *np.geomspace(1e-4, 0.01, 10)):
            try:
                choice = sized(method, float(value))
                fits = all(scale.trained(choice, epoch) for epoch in range(scale.epochs))
            except UserError:
                continue
            if fits:
                shares.append(plan.saved(plan.seconds(choice)))
    return shares


@pytest.mark.parametrize("name", VARIANTS)
def test_the_predicted_samples_are_those_of_the_method(name: str) -> None:
    method, scale = VARIANTS[name], Scale(500, 32, 12, 5, 0.0, 0.0)
    rng = np.random.default_rng(0)
    scores = {"scores": rng.random((2, scale.n)).astype(np.float32)} if "scores" in method.values else {}
    state = method.start(scale.n, scale.epochs, groups=np.arange(scale.n) % 10, **scores)
    counts = {"train": 0, "score": 0}
    for epoch in range(scale.epochs):
        wanted = state.wanted(epoch)
        if wanted is not None:
            counts["score"] += wanted.size
            state.record(wanted, rng.random(wanted.size), epoch=epoch)
        state.select(epoch)
        assert state.selection is not None
        trained = state.selection.ids[: state.selection.ids.size // 32 * 32]
        counts["train"] += trained.size
        if method.records_losses:
            state.record(trained, rng.random(trained.size), epoch=epoch)
    ones = Pace(*[1.0] * len(fields(Pace)))
    predicted = seconds_of(method, replace(ones, checkpoints=0.0), scale)
    selections = sum(method.phases.selects(epoch, scale.epochs) for epoch in range(scale.epochs))
    assert predicted == counts | {"select": selections, "eval": 3, "other": 12}
    assert sum(seconds_of(method, ones, scale).values()) == 2 * sum(predicted.values())


def test_a_method_whose_size_no_parameter_sets_is_refused(configure: Configure) -> None:
    for name in PRESETS.keys() - set(PLANNED):
        with pytest.raises(
            UserError, match=f"evenly how much method {name} trains on; take one of c_sgd, .*, ucb"
        ) as refused:
            configure(method=name, save=0.4)
        assert "\n" not in str(refused.value)
    assert {"infobatch", "seta", "ies", "kakurenbo", "repb", "rs2", "full"} <= PRESETS.keys() - set(PLANNED)


def row(epoch: int, seen: int, forwards: int = 0, accuracy: float | None = None, **seconds: float) -> dict[str, Any]:
    """A line of a log; a selection was made where the clock has seconds for it."""
    phases = dict.fromkeys(("load", "score", "select", "swap", "train", "eval", "save"), 0.0) | seconds
    cost = {"forwards": forwards, "proxy_forwards": 0}
    total = sum(phases.values()) + 0.25
    return {
        "epoch": epoch,
        "samples_seen": seen,
        "cost": cost,
        "test_accuracy": accuracy,
        "selected": phases["select"] > 0,
        "seconds": phases | {"total": total},
    }


def test_the_pace_of_a_log() -> None:
    before = Pace(step=9.0, forward=9.0, proxy=9.0, test=9.0, epoch=1.0, compilation=3.0, first_checkpoint=0.25)
    rows = [
        row(0, 100, 300, load=3.0, train=40.0, score=60.0, select=0.5, swap=1.5, save=0.25),
        row(1, 200, 300, accuracy=0.5, load=2.0, train=57.0, eval=4.0),
    ]
    # 2 of 5 s of waiting are for the two first batches
    found = replace(before, step=0.5, forward=0.2, test=4.0, epoch=(2 + 2 * 0.25) / 2, selection=2.0)
    assert of_log(rows, before) == found
    rows.append(row(2, 300, 300, train=50.0, save=2.0))
    assert of_log(rows, before).checkpoints == pytest.approx(2.0 / (168.5 + 50.25))
    assert of_log(rows[:1], before).test == 9.0
    before = replace(before, first_checkpoint=0.0)
    by_training = [row(epoch, 100 * (epoch + 1), train=50.0, score=0.5, select=0.25) for epoch in range(2)]
    assert of_log(by_training, before) == replace(before, step=0.5, epoch=0.25, selection=0.75)
    made_no_step = row(0, 0, load=1.0)
    assert of_log([made_no_step], before).step == 9.0


def test_passes_become_rarer_before_an_epoch_has_only_some_batches() -> None:
    """Not a batch an epoch beside a pass before each, which cost most of the seconds."""
    scale = Scale(50_000, 128, 200, 10, setup=50.0, full_setup=40.0)
    pace = Pace(step=1e-3, forward=3.5e-4, test=2.0, epoch=0.1)
    for asked, period in ((0.4, None), (0.5, None), (0.62, 2), (0.63, 2), (0.8, 4), (0.85, 16)):
        plan = Plan.make(asked, methods.build("ucb", period=1), pace, scale)
        assert plan.values.get("period") == period and plan.planned == pytest.approx(asked, abs=0.002)
        assert scale.least_trained(plan.method) >= 0.1 * scale.n
    few = Plan.make(0.95, methods.build("ucb", period=1), pace, scale)  # no plan has a tenth in every epoch
    assert few.planned == pytest.approx(0.95, abs=0.002) and few.values["period"] == 64


def test_passes_become_rarer_while_there_is_time_for_a_correction_then_phases_are_given_up() -> None:
    scale = Scale(1000, 10, 30, 30, setup=0.0, full_setup=0.0)
    preset = methods.build("ucb", period=1, final=0.2, final_mode="full")
    plans = [Plan.make(asked, preset, Pace(step=1.0, forward=0.3), scale) for asked in (0.4, 0.6, 0.8, 0.95)]
    assert [(p.method.values["period"], p.method.values["final_mode"]) for p in plans] == [
        (1, "full"),
        (2, "full"),
        (4, "random"),
        (16, "random"),  # not 30, with which no selection could be corrected
    ]
    short = methods.build("ucb", period=1, final=19, final_mode="full")
    plan = Plan.make(0.5, short, Pace(step=1.0, forward=0.35), scale)
    assert plan.values.keys() == {"keep", "final_mode"}  # the period begins anew where phases are given up


def test_a_plan_says_that_it_cannot_be_corrected() -> None:
    for period, told in ((5, False), (10, True)):
        preset = methods.build("random", period=period)
        plan = Plan.make(0.5, preset, Pace(step=1.0), Scale(1000, 10, 10, 10, 0.0, 0.0))
        assert plan.in_words().endswith("; no selection comes late enough to correct it") == told


def test_the_last_checkpoint_is_of_both_runs() -> None:
    scale = Scale(1000, 10, 4, 4, setup=0.0, full_setup=0.0)
    plan = Plan.make(0.5, methods.build("random", period=1), Pace(step=1.0), scale)
    rows = [row(epoch, 500 * (epoch + 1), train=499.75, save=0.0) for epoch in range(4)]
    assert plan.forecast(rows, since=1000.0) == pytest.approx(1 - 3000 / 5000, abs=0.001)


def test_a_prediction_that_was_off_is_corrected_once() -> None:
    scale = Scale(1000, 10, 12, 12, setup=100.0, full_setup=50.0)
    plan = Plan.make(0.5, methods.build("ucb", period=2), Pace(step=1.0, forward=0.1), scale)
    assert plan.saved(plan.seconds()) == pytest.approx(0.5, abs=0.005)
    trained, keep = scale.trained(plan.method, 0), plan.method.values["keep"]
    assert [plan.is_due(epoch) for epoch in range(6)] == [False] * 4 + [True, False]
    # passes take three times as long
    score = [300.0, 0.0] * 2
    rows = [row(e, (e + 1) * trained, (e // 2 + 1) * 1000, train=trained, score=score[e]) for e in range(4)]
    off = plan.forecast(rows)
    assert off == pytest.approx(0.5 - 6 * 200 / plan.full_seconds(plan.pace), abs=0.01)
    words = plan.correct(rows)
    assert "plan corrected" in words and "\n" not in words
    assert plan.method.values["keep"] < keep
    assert plan.forecast(rows) == pytest.approx(0.5, abs=NEAR + jump(plan) / 2)
    assert not any(plan.is_due(epoch) for epoch in range(12))


def test_a_prediction_that_holds_is_left_alone_and_a_hopeless_one_saves_what_it_can() -> None:
    scale = Scale(1000, 10, 12, 12, setup=0.0, full_setup=0.0)
    for factor, expected in ((1.0, "same"), (4.0, "least")):
        plan = Plan.make(0.5, PRESETS["recent_loss"], Pace(step=1.0), scale)
        values, trained = plan.values, scale.trained(plan.method, 0)
        rows = [row(e, (e + 1) * trained, train=trained, eval=factor * 500 - 500) for e in range(4)]
        words = plan.correct(rows)
        if expected == "same":
            assert plan.values == values
        else:
            assert all(scale.trained(plan.method, epoch) == 100 for epoch in range(4, 12))  # a tenth of the samples
            assert words.endswith("; for more, epochs would have too few samples")


def test_a_correction_leaves_enough_samples() -> None:
    """Passes that take longer than was measured: an epoch of one batch would save what was asked, and learn nothing."""
    scale = Scale(50_000, 128, 30, 30, setup=0.0, full_setup=0.0)
    for factor in (1.2, 1.4, 2.0):
        plan = Plan.make(0.6, methods.build("ucb", period=1), Pace(step=1e-3, forward=2.5e-4), scale)
        trained = scale.least_trained(plan.method)
        assert trained >= 0.1 * scale.n
        seconds = {"train": trained * 1e-3, "score": factor * 2.5e-4 * scale.n, "select": 1e-9}
        rows = [row(e, (e + 1) * trained, (e + 1) * scale.n, **seconds) for e in range(10)]
        plan.correct(rows)
        assert 0.1 * scale.n <= scale.least_trained(plan.method) < trained


def test_a_correction_says_that_samples_are_too_few_only_where_they_are() -> None:
    """Epochs of few batches, which save a little less than was asked."""
    for n, batch in ((1000, 100), (2000, 128), (10_000, 512)):
        scale = Scale(n, batch, 12, 12, setup=0.0, full_setup=0.0)
        plan = Plan.make(0.5, PRESETS["recent_loss"], Pace(step=1.0), scale)
        trained = scale.trained(plan.method, 0)
        rows = [row(e, (e + 1) * trained, train=trained, eval=0.05 * trained) for e in range(4)]
        assert "too few samples" not in plan.correct(rows)
        assert plan.method.values["keep"] > 0.4


def test_a_method_whose_epochs_become_shorter_can_be_corrected() -> None:
    """Its last epochs have less than a tenth: those before them make up for it."""
    scale = Scale(50_000, 128, 30, 30, setup=0.0, full_setup=0.0)
    plan = Plan.make(0.6, PRESETS["srd"], Pace(step=1e-3), scale)
    seen, rows = 0, []
    for epoch in range(10):
        seen += scale.trained(plan.method, epoch)
        rows.append(row(epoch, seen, train=1e-3 * scale.trained(plan.method, epoch), select=4.0))
    before = plan.forecast(rows)
    plan.correct(rows)
    assert before < 0.54 and plan.forecast(rows) > before + 0.03
    assert scale.mean_trained(plan.method, 10) >= 0.1 * scale.n


def test_checkpoints_are_written_by_time() -> None:
    """A run of half the seconds writes half as many: it saves half, whatever they take."""
    scale = Scale(1000, 10, 4, 4, setup=0.0, full_setup=0.0)
    plan = Plan.make(0.5, methods.build("random", period=1), Pace(step=1.0), scale)
    for share in (0.0, 0.1, 1.0):
        rows = [row(epoch, 500 * (epoch + 1), train=499.75, save=500 * share) for epoch in range(4)]
        assert plan.forecast(rows) == pytest.approx(0.5, abs=0.001)


def test_the_first_checkpoint_is_of_both_runs() -> None:
    scale = Scale(1000, 10, 4, 4, setup=0.0, full_setup=0.0)
    plan = Plan.make(0.5, methods.build("random", period=1), Pace(step=1.0), scale)
    plan.pace = replace(plan.pace, first_checkpoint=1000.0)
    rows = [row(epoch, 500 * (epoch + 1), train=499.75, save=1000.0 * (epoch == 0)) for epoch in range(4)]
    for epochs in range(1, 5):  # the rest of the run has none
        assert plan.forecast(rows[:epochs]) == pytest.approx(1 - 3000 / 5000, abs=0.001)


def test_where_nothing_can_be_saved_the_line_does_not_say_to_ask_for_less() -> None:
    for batch, setup, remedy in (
        (32, 1.0, "lower train.batch_size"),
        (32, 97.5, "lower train.batch_size"),
        (16, 193.0, "train longer"),
    ):
        with pytest.raises(UserError, match=rf"can save nothing of .* here; {remedy}, or leave prune\.save out"):
            scale = Scale(32, batch, 6, 6, setup=setup, full_setup=1.0)
            Plan.make(0.4, methods.build("random", period=1), Pace(step=1.0), scale)


def test_where_a_milder_form_leaves_a_gap_the_line_names_both_its_ends() -> None:
    preset = methods.build("orderdp", top=0.1, warmup=0.5, warmup_mode="full")
    scale = Scale(1000, 10, 10, 10, setup=0.0, full_setup=0.0)
    with pytest.raises(UserError, match=r"saves 0\.\d+ at most, or 0\.\d+ at least .* here; ask for less or more"):
        Plan.make(0.6, preset, Pace(step=1.0), scale)
    assert Plan.make(0.47, preset, Pace(step=1.0), scale).planned == pytest.approx(0.47, abs=0.01)


def test_a_state_takes_other_parameters_or_is_as_it_was() -> None:
    state = methods.build("random", keep=0.5, period=1).start(100, epochs=3)
    first = state.select(0)
    state.change(keep=0.25)
    second = state.select(1)
    with pytest.raises(UserError, match="keep=2"):
        state.change(keep=2)
    assert first is not None and second is not None and (first.ids.size, second.ids.size) == (50, 25)
    assert state.method == methods.build("random", keep=0.25, period=1)


def test_a_plan_survives_a_checkpoint() -> None:
    scale = Scale(1000, 10, 12, 12, setup=100.0, full_setup=50.0)
    plan = Plan.make(0.87, VARIANTS["ema full"], Pace(step=1.0, forward=0.3), scale)
    assert plan.values.keys() > {"keep"}
    plan.corrected = 4
    file = io.BytesIO()
    torch.save(plan.state_dict(), file)
    file.seek(0)
    assert Plan.of_state(torch.load(file, weights_only=True), plan.preset) == plan


# ---- runs --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory, beton: Beton, test_beton: Beton) -> Path:
    return write_run(tmp_path_factory.mktemp("saving") / "small.yaml", beton, test_beton, epochs=6)


@pytest.fixture
def configure(config_file: Path, tmp_path: Path) -> Configure:
    def make(**prune: Any) -> config.Config:
        options = [f"--prune.{name}={value}" for name, value in prune.items()]
        return config.load(["--config", str(config_file), f"--run.out={tmp_path / 'runs'}", *options])

    return make


# Seconds so long that the real ones beside them, of the set-up, do not count.
FED = Pace(step=1e6, forward=2e5, proxy=1e5, test=1e7)
RUNS: dict[str, dict[str, Any]] = {
    "random": {"keep": 1.0},
    "ucb": {"period": 2},
    "srd": {},
    "evolved": {},
    "proxy_batch": PROXY,
}


def feed(monkeypatch: pytest.MonkeyPatch, of_run: Pace = FED) -> None:
    """Give runs a pace before they begin, and one as if their logs had told it."""

    def spent(rows: list[dict[str, Any]]) -> float:
        seen, cost = rows[-1]["samples_seen"], rows[-1]["cost"]
        passes = cost["forwards"] * of_run.forward + cost["proxy_forwards"] * of_run.proxy
        return seen * of_run.step + passes + len(rows) * of_run.test

    for module, name, fed in (
        (loop, "measure", lambda *_: FED),
        (planning, "of_log", lambda *_: of_run),
        (planning, "spent", spent),
    ):
        monkeypatch.setattr(module, name, fed)


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_follows_its_plan(
    name: str,
    configure: Configure,
    loaders: Loaders,
    beton: Beton,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    unpainted: None,
) -> None:
    feed(monkeypatch)
    folder = train(configure(method=name, save=0.4, **RUNS[name]), loaders).folder
    printed = capsys.readouterr().out
    rows, n = read_log(folder), len(beton)
    values = {key: value for key, value in rows[-1]["saving"].items() if key in methods.PRESETS[name].parameters}
    method = methods.build(name, **RUNS[name]).replace(**values)
    assert method.sized_by in values
    full = 6 * (n // 32 * 32 * FED.step + FED.test)
    seen = 0
    for epoch, own in enumerate(rows):
        seen += method.samples_in(epoch, 6, n) // 32 * 32
        assert own["samples_seen"] == seen
        assert own["saving"]["asked"] == 0.4
    cost = rows[-1]["cost"]
    spent = seen * FED.step + cost["forwards"] * FED.forward + cost["proxy_forwards"] * FED.proxy + 6 * FED.test
    assert 1 - spent / full == pytest.approx(0.4, abs=NEAR + 6 * 32 * FED.step / full / 2)
    assert rows[-1]["saving"]["predicted"] == pytest.approx(1 - spent / full, abs=1e-4)
    assert "plan to save 40.00 % of a full run" in printed
    assert "of a full run's seconds, 40.00 % were asked" in printed
    with (folder / "result.csv").open(newline="") as file:
        (result,) = csv.DictReader(file)
    assert float(result["asked"]) == 0.4 and float(result["saved"]) == pytest.approx(1 - spent / full, abs=1e-4)
    saved = percent(1 - spent / full)
    told = f"small was to save 40.00 % of a full run&#39;s seconds; after 6 of 6 epochs it saves {saved}."
    assert told in (folder / "report.html").read_text()
    run = read_run(folder)
    assert run.saved == float(result["saved"])
    assert savings([replace(run, saved=0.125)])[0].endswith("after 6 of 6 epochs it saves 12.50 %.")  # not the log's
    assert f"prune.{method.sized_by}={values[method.sized_by]}" in result["config"].split()


def test_a_run_that_ends_before_its_method_selects_has_kept_what_it_drew(configure: Configure) -> None:
    own = configure(method="recent_loss", save=0.4)
    rows = [{"phase": "random", "keep": 0.5}, {"phase": "full", "keep": 1.0}]
    assert kept_share(own, rows) == 0.5
    assert kept_share(own, [*rows, {"phase": "method", "keep": 0.25}]) == 0.25
    assert kept_share(own, rows[1:]) == 1.0


def test_what_cannot_be_saved_is_refused_and_nothing_is_written(config_file: Path, tmp_path: Path) -> None:
    options = ["--config", str(config_file), f"--run.out={tmp_path / 'runs'}", "--prune.method=ucb"]
    # The set-up of so small a run takes longer than its training, on any machine.
    done = command("train_imagenet.py", *options, "--prune.save=0.97")
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "prune.save" in line]
    assert re.search(r"method ucb can save (nothing|\d+\.\d{3} at most) of a full run of 6 epochs", line), line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_several_processes_are_refused(configure: Configure, loaders: Loaders) -> None:
    trainer = Trainer(configure(method="random", save=0.4), loaders)
    trainer.world = World(torch.device("cpu"), 0, 2, 0, 2)
    with pytest.raises(UserError, match=r"prune\.save measures and plans one process"):
        trainer.make_plan(0.0)


def test_a_planned_run_is_not_resumed_by_several_processes(
    configure: Configure, loaders: Loaders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would correct the plan by a log that the first alone has."""
    feed(monkeypatch)
    trainer = Trainer(configure(method="random", save=0.1), loaders)
    trainer.make_plan(time.perf_counter())
    state = trainer.state_dict()
    trainer.world = World(torch.device("cpu"), 0, 2, 0, 2)
    with pytest.raises(UserError, match=r"prune\.save measures and plans one process: resume it without torchrun"):
        trainer.load_state_dict(state)


@pytest.mark.parametrize(
    ("method", "asked", "prune"),
    [
        ("random", 0.2, {"keep": 0.001}),
        ("ucb", 0.2, {"keep": 1.0}),
        ("orderdp", 0.6, {"pool": 0.001}),
        ("srd", 0.2, {"gamma": 0.01}),
    ],
)
def test_the_size_of_the_config_is_ignored(
    method: str,
    asked: float,
    prune: dict[str, float],
    configure: Configure,
    loaders: Loaders,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though no run could begin with it, or would prune by it."""
    feed(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = Trainer(configure(method=method, save=asked, **prune), loaders)
        trainer.make_plan(time.perf_counter())
    assert trainer.plan is not None and trainer.plan.planned == pytest.approx(asked, abs=0.1)  # six batches an epoch
    (size,) = prune
    assert trainer.pruner.method.values[size] == trainer.followed.prune.values[size] not in (1.0, prune[size])


def test_compilation_is_of_both_runs(configure: Configure, loaders: Loaders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "measure", lambda *_: replace(FED, compilation=1e8))
    trainer = Trainer(configure(method="random", save=0.2), loaders)
    trainer.make_plan(time.perf_counter())
    assert trainer.plan is not None and trainer.plan.scale.full_setup == pytest.approx(1e8, rel=1e-3)


@pytest.mark.parametrize(
    ("fixed", "batch", "n", "expected"),
    [
        (0.05, 0.02, 100_000, 0.02),
        (0.3, 0.05, 100_000, 0.05),
        (0.0, 1.0, 100_000, 1.0),  # two batches are measured
        (0.05, 0.02, 101, 0.07 * 100 / 101),  # the remainder of a sample tells nothing
        (0.05, 0.02, 60, 0.07 * 100 / 60),
    ],
)
def test_seconds_of_a_sample_leave_out_what_a_pass_costs_beside(
    fixed: float, batch: float, n: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, asked = [0.0], []
    monkeypatch.setattr(pace_of_machine, "now", lambda _: clock[0])

    def work(batches: int) -> int:
        asked.append(batches)
        samples = min(n, 100 * batches)
        clock[0] += fixed + batch * max(1.0, samples // 100)
        return samples

    seconds = pace_of_machine._per_sample(work, torch.device("cpu"))
    assert 100 * seconds == pytest.approx(expected)
    assert asked[:2] == [1, 1] and 2 <= asked[2] <= 32


def test_the_noise_of_one_batch_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for one, expected in ((9.0, 0.1 * 2 / 200), (0.001, 2 / 3200)):
        ticks = iter([0.0, 1.0, 1.0, 1.0 + one, 20.0, 22.0])
        monkeypatch.setattr(pace_of_machine, "now", lambda _, ticks=ticks: next(ticks))
        assert pace_of_machine._per_sample(lambda b: 100 * b, torch.device("cpu")) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("name", ["random", "ucb", "proxy_batch"])
def test_a_measurement_leaves_the_run_as_it_is(name: str, configure: Configure) -> None:
    own = configure(method=name, **RUNS[name])
    with closing(Loaders(own)) as loaders:
        trainer = Trainer(own, loaders)
        before = io.BytesIO()
        torch.save(trainer.state_dict(), before)
        pace = measure(own, trainer.stepper, trainer.pruner, trainer.test_loader)
        after = io.BytesIO()
        torch.save(trainer.state_dict(), after)
        waited = trainer.loader.wait_seconds
        with StopSignals(announce=False) as stop:
            trainer.run(None, stop)
        # What the measurement waited for is not charged to the run.
        assert trainer.clock.seconds["load"] == pytest.approx(trainer.loader.wait_seconds - waited, abs=1e-9)
    assert before.getvalue() == after.getvalue()
    assert pace.step > 0 and pace.test > 0 and pace.epoch > 0
    assert (pace.forward > 0, pace.proxy > 0) == (name == "ucb", name == "proxy_batch")
    assert pace.compilation >= 0


def test_a_signal_ends_the_measurement_at_once(
    configure: Configure, loaders: Loaders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> Pace:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("the measurement went on")

    monkeypatch.setattr(loop, "measure", interrupted)
    own = configure(method="ucb", save=0.4)
    with pytest.raises(Terminated):
        train(own, loaders)
    assert not Path(own.run.out).exists()


def test_a_resumed_run_goes_on_with_its_plan(
    configure: Configure, loaders: Loaders, monkeypatch: pytest.MonkeyPatch, unpainted: None
) -> None:
    other = Pace(step=FED.step, forward=2 * FED.forward, test=FED.test)  # as the log has it: the plan is corrected
    feed(monkeypatch, of_run=other)
    own = configure(method="ucb", save=0.4, period=1)
    whole = train(own, loaders)
    real = loop.evaluate
    for last in (2, 4):  # tests: before and after the correction
        tests = iter(range(1, last))

        def interrupted(*arguments: Any, tests: Iterator[int] = tests) -> Any:
            if next(tests, None) is None:
                raise KeyboardInterrupt
            return real(*arguments)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(loop, "evaluate", interrupted)
            train(configure(method="ucb", save=0.4, period=1), loaders)
        folder = sorted(whole.folder.parent.iterdir())[-1]
        with monkeypatch.context() as patch:
            patch.delattr(loop, "measure")
            resumed, path = config.read_command(["--resume", str(folder)])
            result = train(resumed, loaders, resume=path)
        assert [r["samples_seen"] for r in read_log(folder)] == [r["samples_seen"] for r in read_log(whole.folder)]
        assert [r["saving"]["keep"] for r in read_log(folder)] == pytest.approx(
            [r["saving"]["keep"] for r in read_log(whole.folder)], abs=1e-4
        )
        weights = [torch.load(run.folder / "weights.pt", weights_only=True) for run in (whole, result)]
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    keeps = [r["saving"]["keep"] for r in read_log(whole.folder)]
    assert len(set(keeps)) == 2
