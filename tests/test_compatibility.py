"""docs/compatibility.md: what a cell allows works, by hand and in one state after the other; all else is refused."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from ffcv_prune import Pruner, TorchLoader, methods, tasks
from ffcv_prune.errors import UserError
from ffcv_prune.scoring.proxy import Proxy

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "compatibility.md").read_text(encoding="utf-8")
NAMES = [name for name, method in methods.PRESETS.items() if method.prunes]
N, EPOCHS, BATCH = 60, 12, 16
LABELS = np.arange(N) % 3
GUARDS: dict[str, dict[str, Any]] = {
    "warm-up": {"warmup": 2},
    "final phase": {"final": 2},
    "random share": {"random_share": 0.4},
    "class floor": {"class_floor": 1.0},
    "loss cap": {"loss_cap": 0.2},
    "age": {"max_age": 4},
    "null": {"null": True},
}
SOURCES: dict[str, dict[str, Any]] = {
    "pass": {},
    "training": {"warmup": 1, "warmup_mode": "full"},  # its first selection needs losses
    "both": {},
}


def table_of(page: str) -> dict[str, dict[str, str]]:
    """The cells of the one table of the page, by method and column."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    columns, _, *body = rows
    return {
        name: dict(zip(columns[1:], cells[1:], strict=True))
        for cells in body
        for name in re.findall(r"`(\w+)`", cells[0])
    }


TABLE = table_of(PAGE)


def build(name: str, **parameters: Any) -> methods.Method:
    known = methods.PRESETS[name].parameters
    small = {"keep": 0.4, "period": 2, "window": BATCH, "start": 0.0, "threshold": 0.1, "of_hidden": True}
    if name == "seta":
        small |= {"groups": 4, "window": 0.5}
    return methods.build(name, **{key: value for key, value in small.items() if key in known} | parameters)


def start(method: methods.Method) -> methods.State:
    scores = None
    if "scores" in method.parameters:
        scores = np.random.default_rng(1).random((3, N) if "c" in method.parameters else N)
    return method.start(N, EPOCHS, LABELS, seed=4, scores=scores)


class Run:
    """A method driven by hand, as a training of `ranks` processes would.

    Attributes:
        selections: what each epoch trained on; of a method that chooses in batches, what it chose.
        factors: by epoch, the weight of each sample, and the factor of the learning rate.
        wanted: the samples of each pass, by epoch.
        last: float32[N], by epoch, the losses that each selection was made from.
    """

    def __init__(self, method: methods.Method, ranks: int = 1, renew: bool = False) -> None:
        self.method, self.ranks, self.renew = method, ranks, renew
        self.state = start(method)
        self.selections: list[list[int]] = []
        self.factors: list[Any] = []
        self.wanted: dict[int, list[int]] = {}
        self.last: dict[int, Any] = {}
        for epoch in range(EPOCHS):
            wanted = self.state.wanted(epoch)
            if wanted is not None:
                self.wanted[epoch] = wanted.tolist()
                self.record(wanted, epoch)
            self.last[epoch] = self.state.table.last.copy()
            self.state.select(epoch)
            self.pause()
            selection = self.state.selection
            assert selection is not None
            weights = np.ones(selection.ids.size) if selection.weights is None else selection.weights
            self.factors.append([selection.lr_factor, *weights.tolist()])
            chosen = list(self.train(epoch))
            self.selections.append(np.sort(np.concatenate(chosen)).tolist())

    def losses(self, ids: Any, epoch: int) -> Any:
        """They follow from sample and epoch alone, differ by class, and are straight lines for some."""
        rng = np.random.default_rng(epoch)
        noise = rng.gamma(2, 0.5, N) * (np.arange(N) % 4 > 0)
        return (2 / (1 + epoch) + 0.3 * LABELS + noise + np.arange(N) / 1000).astype(np.float32)[ids]

    def record(self, ids: Any, epoch: int, **more: Any) -> None:
        losses = self.losses(ids, epoch)
        if self.method.needs_certainty:
            more |= {"correct": losses < 1.5, "confidence": np.exp(-losses / 4)}
        self.state.record(ids, losses, epoch=epoch, **more)

    def train(self, epoch: int) -> Iterator[Any]:
        assert self.state.selection is not None
        order = np.random.default_rng([epoch, 1]).permutation(self.state.selection.ids)
        for number, first in enumerate(range(0, order.size, BATCH)):
            for ids in np.array_split(order[first : first + BATCH], self.ranks):
                if self.method.chooses_in_batches:
                    yield ids[self.state.choose(ids, self.losses(ids, epoch), epoch=epoch, batch=number)]
                    continue
                if self.method.records_losses and ids.size:
                    self.record(ids, epoch)
                yield ids
            self.pause()

    def pause(self) -> None:
        """Go on with a new state that was told no more than what the old one stored."""
        if self.renew:
            stored, self.state = copy.deepcopy(self.state.state_dict()), start(self.method)
            self.state.load_state_dict(stored)

    def phases(self) -> list[str]:
        return [self.state.phase(epoch) for epoch in range(EPOCHS)]

    def due(self) -> list[int]:
        """The epochs before which the method itself selected."""
        phases = self.method.phases
        return [e for e in range(EPOCHS) if phases.phase(e, EPOCHS) == "method" and phases.selects(e, EPOCHS)]


def refusal(name: str, **parameters: Any) -> str:
    """Why it is refused, in one line; empty: it is not."""
    try:
        build(name, **parameters)
    except UserError as error:
        assert "\n" not in str(error) and str(error)
        return str(error)
    return ""


def test_the_table_holds_every_method_once() -> None:
    rows = "".join(line.split("|")[1] for line in PAGE.splitlines() if line.startswith("|"))
    assert sorted(re.findall(r"`(\w+)`", rows)) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("guard", GUARDS)
def test_guards(name: str, guard: str) -> None:
    parameters = GUARDS[guard]
    if TABLE[name][guard] == "no":
        assert f'no parameter "{next(iter(parameters))}"' in refusal(name, **parameters)
        return
    assert TABLE[name][guard] == "yes"
    plain, run = Run(build(name)), Run(build(name, **parameters))
    k = {epoch: run.method.kept(N, epoch, EPOCHS) for epoch in run.due()}
    if run.method.selector.has_fixed_size:
        assert all(len(run.selections[epoch]) == k[epoch] for epoch in k)
    if guard == "warm-up":
        assert run.phases()[:3] == [*2 * [run.method.values["warmup_mode"]], "method"]
    elif guard == "final phase":
        assert run.phases()[-3:] == ["method", *2 * [run.method.values["final_mode"]]]
    elif guard == "random share":
        seen, alone = (set().union(*one.selections) for one in (run, plain))
        assert len(seen) >= len(alone) and run.selections != plain.selections
    elif guard == "class floor":
        for epoch, size in k.items():
            assert (np.abs(np.bincount(LABELS[run.selections[epoch]], minlength=3) - size / 3) < 1).all()
    elif guard == "loss cap":
        for epoch, size in k.items():
            last = np.where(np.isnan(run.last[epoch]), -np.inf, run.last[epoch])
            left_out = np.argsort(last)[N - min(round(0.2 * N), N - size) :]
            assert not np.isin(run.selections[epoch], left_out[np.isfinite(last[left_out])]).any()
    elif guard == "age":
        trained = np.full(N, -1)
        for epoch in range(EPOCHS):
            if epoch in k:
                overdue = np.flatnonzero(epoch - 1 - trained >= 4)
                assert np.isin(overdue, run.selections[epoch]).sum() == min(overdue.size, k[epoch])
            trained[run.selections[epoch]] = epoch
    else:
        looks = run.method.selector.ranks
        assert (run.selections != plain.selections) == looks
        assert run.method.label.startswith(f"{name}+null")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", SOURCES)
def test_sources(name: str, source: str) -> None:
    allowed = TABLE[name]["source"]
    if allowed == "its own":
        assert "values of its own kind" in refusal(name, score_source=source)
        return
    assert source in allowed.split(", ")
    run = Run(build(name, score_source=source, **SOURCES[source]))
    if not run.method.needs_values:
        assert not run.wanted
    elif source == "pass":
        assert run.wanted == {epoch: list(range(N)) for epoch in run.due()}
    elif source == "training":
        assert not run.wanted and np.isfinite(run.state.table.mean).all()
    else:
        for epoch in run.due():
            trained = set().union(*run.selections[max(0, epoch - 2) : epoch])
            assert run.wanted.get(epoch, []) == sorted(set(range(N)) - trained)


@pytest.mark.parametrize("name", NAMES)
def test_a_budget_of_scores(name: str) -> None:
    if TABLE[name]["budget"] == "no":
        assert re.search('needs no scoring pass|no parameter "score_budget"', refusal(name, score_budget=0.5))
        return
    run = Run(build(name, score_budget=0.5))
    assert [len(ids) for ids in run.wanted.values()] == [N, *[N // 2] * (len(run.due()) - 1)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", ["", *SOURCES])
def test_resuming_at_every_batch(name: str, source: str) -> None:
    """A new state takes over after each selection and each batch."""
    assert TABLE[name]["resume"] == "yes"
    if source and TABLE[name]["source"] == "its own":
        return
    method = build(name, score_source=source, **SOURCES[source]) if source else build(name)
    whole, stopped = Run(method), Run(method, renew=True)
    assert stopped.selections == whole.selections and stopped.wanted == whole.wanted
    assert stopped.factors == whole.factors
    assert len({tuple(ids) for ids in whole.selections}) > 1 or whole.method.statistic.is_fixed


@pytest.mark.parametrize("name", NAMES)
def test_several_processes(name: str) -> None:
    """What each process records of its part of a batch makes the selection of one process, or does not."""
    one, two = (Run(build(name), ranks=ranks) for ranks in (1, 2))
    assert TABLE[name]["processes"] in ("same", "its batches")
    assert (one.selections == two.selections) == (TABLE[name]["processes"] == "same")


TASKS: dict[str, tuple[tasks.Task, torch.Tensor]] = {
    "classification": (tasks.Classification(), torch.from_numpy(LABELS)),
    "multi-label": (tasks.MultiLabel(), (torch.arange(3 * N).reshape(N, 3) % 5 > 2).float()),
    "regression": (tasks.Regression(), torch.linspace(-1, 1, 3 * N).reshape(N, 3)),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", TASKS)
def test_tasks(name: str, kind: str) -> None:
    """Three epochs of a linear net in a loop of one's own."""
    task, targets = TASKS[kind]
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(N, 4), targets)
    method, model = build(name), torch.nn.Linear(4, 3)
    by_proxy = method.source.by_proxy
    loader = TorchLoader(data, BATCH, num_workers=0, with_ids=True)
    other = TorchLoader(data, BATCH, num_workers=0, shuffle=by_proxy, drop_last=False)
    net = torch.nn.Linear(4, 3)
    proxy = Proxy(net, torch.optim.SGD(net.parameters(), lr=0.1), task=task) if by_proxy else None
    scores = start(method).table.fixed if "scores" in method.parameters else None
    if scores is not None and "c" in method.parameters:
        scores = np.random.default_rng(1).random((3, N))
    options: dict[str, Any] = {"epochs": 3, "task": task, "proxy": proxy, "scores": scores}
    if TABLE[name]["tasks"] == "classification" and kind != "classification":
        with pytest.raises(UserError, match=f"tasks.{type(task).__name__} cannot tell"):
            Pruner(loader, other, method, **options)
        return
    pruner = Pruner(loader, other, method, **options)
    for epoch in range(3):
        pruner.begin_epoch(epoch, model)
        for batch in loader:
            chosen = pruner.choose(model, *batch)
            if chosen is None:
                continue
            inputs, labels, ids = chosen
            outputs = model(inputs)
            pruner.batch_loss(task.losses(outputs, labels), ids, outputs, labels).backward()
    assert pruner.state.selection is not None and pruner.state.selection.ids.size
