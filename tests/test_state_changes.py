"""Parameters that change within a run, what a resumed run goes on with, and what the functions of methods refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from ffcv_prune import Pruner, TorchLoader, methods
from ffcv_prune.errors import UserError
from tests.rules import assert_same

NAN = float("nan")
N = 100


def begun(name: str = "random", groups: Any = None, **parameters: Any) -> methods.State:
    """A run of 10 epochs with a selection before each, after the first."""
    state = methods.build(name, period=1, **parameters).start(N, 10, groups)
    state.record(None, np.random.default_rng(0).random(N).astype(np.float32), epoch=0)
    state.select(0)
    return state


def sizes(state: methods.State, *epochs: int) -> list[int]:
    found = []
    for epoch in epochs:
        selection = state.select(epoch)
        assert selection is not None
        found.append(selection.ids.size)
    return found


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("random", {"max_age": 2}, "^max_age=2 cannot be set within a run"),
        ("random", {"keep": 0.3, "loss_cap": 0.1}, r"^loss_cap=0\.1 cannot be set within a run"),
        ("random", {"class_floor": 1.0}, "needs the class of each sample: give start"),
        ("random", {"warmup": 50}, "warmup = 50 and final = 0 do not fit into 10 epochs"),
        ("random", {"keep": 1e-4}, "leaves none: raise keep"),
        ("ema", {"alpha": 0.1}, r"^alpha=0\.1 cannot be set within a run"),
        ("ema", {"score_budget": 0.5}, r"^score_budget=0\.5 cannot be set within a run"),
        ("ema", {"warmup": 1, "source": "training"}, "source=training cannot be set within a run"),
        ("ema", {"random_share": 1.0}, r"^random_share=1\.0 cannot be set within a run"),
    ],
)
def test_what_a_run_cannot_go_on_with_is_refused_and_changes_nothing(
    name: str, parameters: dict[str, Any], message: str
) -> None:
    """Defect: it was taken, and broke the run later or did nothing."""
    state = begun(name)
    before, stored = state.method, state.state_dict()
    with pytest.raises(UserError, match=message) as caught:
        state.change(**parameters)
    assert "\n" not in str(caught.value)
    assert state.method == before
    assert_same(state.state_dict(), stored)


def test_a_batch_rule_cannot_begin_to_fill_batches_within_a_run() -> None:
    state = methods.build("selective_backprop", start=0, end=1).start(N, 4)
    with pytest.raises(UserError, match="form=jiang cannot be set within a run"):
        state.change(form="jiang")


def test_a_run_takes_other_sizes_phases_and_guards_that_need_no_more() -> None:
    state = begun("ema", groups=np.arange(N) % 10, max_age=3)
    state.change(keep=0.2, final=2, final_mode="full", random_share=0.5, class_floor=1.0, max_age=4)
    assert sizes(state, 1, 8) == [20, 100]
    state.change(**state.method.values)  # as the corrections of prune.save do
    assert state.method.values["max_age"] == 4


def test_a_resumed_run_goes_on_with_what_was_changed() -> None:
    """Defect: it went on with the parameters that it was begun with."""
    whole = begun()
    whole.change(keep=0.1)
    stored = whole.state_dict()
    # The scripts that resume it: as it was begun, as it was changed to, and with the change made anew.
    scripts = [begun(), begun(keep=0.1), begun()]
    scripts[2].change(keep=0.1)
    expected = sizes(whole, 1, 2)
    assert expected == [10, 10]
    for state in scripts:
        state.load_state_dict(stored)
        assert sizes(state, 1, 2) == expected
        assert_same(state.state_dict(), whole.state_dict())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"keep": 0.9}, r"the state has keep 0\.3, but this run has keep 0\.9: resume with the data and settings"),
        ({"max_age": 2}, "the state has max_age 0, but this run has max_age 2"),
        ({"warmup": 2}, "the state has warmup 0, but this run has warmup 2"),
        ({"random_share": 0.5}, r"the state has random_share 0\.0, but this run has random_share 0\.5"),
    ],
)
def test_a_state_of_other_parameters_is_refused_by_name(parameters: dict[str, Any], message: str) -> None:
    """Defect: a pruner took it, and went on with its own."""
    data = TensorDataset(torch.zeros(N, 3), torch.arange(N) % 10)
    model = torch.nn.Linear(3, 10)

    def pruner(**own: Any) -> Pruner:
        return Pruner(TorchLoader(data, 10, 0), None, "random", epochs=4, period=1, **own)

    saved = pruner()
    saved.begin_epoch(0, model)
    other = pruner(**parameters)
    with pytest.raises(UserError, match=message):
        other.load_state_dict(saved.state_dict())
    assert other.state.selection is None
    for name, value in parameters.items():
        assert other.method.values[name] == value


def test_a_state_of_another_source_is_refused_by_name() -> None:
    training, both = (begun("ema", score_source=source, warmup=1) for source in ("training", "both"))
    with pytest.raises(UserError, match="the state has score_source training, but this run has score_source both"):
        both.load_state_dict(training.state_dict())


def test_a_load_that_is_taken_back_takes_the_parameters_back() -> None:
    changed, state = begun(), begun()
    changed.change(keep=0.1)
    stored = state.state_dict()
    with pytest.raises(KeyboardInterrupt), state.whole_or_not_at_all():
        state.load_state_dict(changed.state_dict())
        assert state.method.values["keep"] == 0.1
        raise KeyboardInterrupt
    assert state.method.values["keep"] == 0.3
    assert_same(state.state_dict()["parameters"], stored["parameters"])


def test_a_state_written_before_it_held_parameters_is_read_with_those_of_the_run() -> None:
    old = begun().state_dict()
    del old["parameters"]
    state = begun(keep=0.2)
    state.load_state_dict(old)
    assert sizes(state, 1) == [20]


def test_a_resumed_run_without_classes_does_not_take_a_floor_from_the_state() -> None:
    changed, state = begun(groups=np.arange(N) % 10), begun()
    changed.change(class_floor=1.0)
    with pytest.raises(UserError, match="needs the class of each sample"):
        state.load_state_dict(changed.state_dict())


# ---- scores made before training ----------------------------------------------------------------------------


def test_static_scores_are_read_by_the_name_of_their_file(tmp_path: Path) -> None:
    """Defect: Pruner took the name of a file for the scores."""
    scores = np.random.default_rng(0).random((3, N)).astype(np.float32)
    path = tmp_path / "scores.npy"
    np.save(path, scores)
    expected = methods.build("static").start(N, 4, scores=scores).select(0)
    data = TensorDataset(torch.zeros(N, 3), torch.arange(N) % 10)
    states = [methods.build("static", scores=str(path)).start(N, 4), methods.build("static").start(N, 4, scores=path)]
    states += [Pruner(TorchLoader(data, 10, 0), None, "static", epochs=4, scores=str(path)).state]
    assert expected is not None
    for state in states:
        selection = state.select(0)
        assert selection is not None and selection.ids.tolist() == expected.ids.tolist()


FILES: dict[str, Callable[[Path], object]] = {
    "cannot read .*: No such file or directory": lambda path: None,
    "cannot read .*: Is a directory": lambda path: path.mkdir(),
    "is no .npy of numbers .*EOF": lambda path: path.write_bytes(b""),
    "is no .npy of numbers .*magic string": lambda path: path.write_text("hello, scores"),
    "is no .npy of numbers .*Object arrays": lambda path: np.save(path, np.array([{}])),
    "static scores must be numbers": lambda path: np.save(path, np.array(["a", "b"])),
}


@pytest.mark.parametrize("message", FILES)
def test_a_file_that_holds_no_scores_is_refused_in_one_line(message: str, tmp_path: Path) -> None:
    path = tmp_path / "scores.npy"
    FILES[message](path)
    for begin in (
        lambda: methods.build("static", scores=str(path)).start(N, 4),
        lambda: methods.build("static_ucb").start(N, 4, scores=path),
    ):
        with pytest.raises(UserError, match=message) as caught:
            begin()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([[1.0, 2.0], [3.0]], "must be numbers"),
        ([[1.0, None], [3.0, 4.0]], "must be numbers|hold NaN"),
        (torch.rand(2, 2, requires_grad=True), "must be numbers.*detach"),
        ([[1.0, NAN], [3.0, 4.0]], "static scores hold NaN or infinite values"),
        ([[NAN, NAN], [NAN, NAN]], "static scores hold NaN or infinite values"),
        ([[1.0, 1e300], [3.0, 4.0]], "static scores hold NaN or infinite values"),
    ],
)
@pytest.mark.parametrize("name", ["static", "static_ucb", "static_epsilon_greedy"])
def test_scores_that_are_no_finite_numbers_are_refused(name: str, scores: Any, message: str) -> None:
    """Defect: a raw error, or the line that the model diverged."""
    with pytest.raises(UserError, match=message) as caught:
        methods.build(name).start(2, 4, scores=scores)
    assert "\n" not in str(caught.value)


# ---- what is no number --------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[], object]] = {
    "the method is of type NoneType: give its name": lambda: methods.build(None),  # type: ignore[arg-type]
    "the method is of type list: give its name": lambda: methods.build(["ucb"]),  # type: ignore[arg-type]
    "the number of epochs is of type float": lambda: methods.build("random").start(N, 2.5),  # type: ignore[arg-type]
    "the number of samples is of type str": lambda: methods.build("random").start("100", 2),  # type: ignore[arg-type]
    "the seed is of type float": lambda: methods.build("random").start(N, 2, seed=1.5),  # type: ignore[arg-type]
    "the epoch is of type NoneType": lambda: begun("ema").record(None, np.ones(N), epoch=None),  # type: ignore[arg-type]
    "the epoch is of type float": lambda: begun().select(1.5),  # type: ignore[arg-type]
    "batch -1 must be at least 0": lambda: batch_run().choose([0, 1], [1.0, 2.0], epoch=1, batch=-1),
    "the batch is of type float": lambda: batch_run().choose([0, 1], [1.0, 2.0], epoch=1, batch=0.5),  # type: ignore[arg-type]
}


def batch_run() -> methods.State:
    return methods.build("selective_backprop", start=0, end=1, interrupt=0).start(N, 4)


@pytest.mark.parametrize("message", CALLS)
def test_what_is_of_another_kind_is_refused_in_one_line(message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}") as caught:
        CALLS[message]()
    assert "\n" not in str(caught.value)


def test_a_batch_that_is_refused_records_nothing() -> None:
    state = batch_run()
    with pytest.raises(UserError, match="batch -1"):
        state.choose([0, 1], [1.0, 2.0], epoch=1, batch=-1)
    assert state.table.updates == 0
