"""What is compared with what: losses of each sample, metrics, and one line where they do not fit."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ffcv_prune import tasks
from ffcv_prune.errors import UserError

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5], [0.3, 0.2, 0.1], [-1.0, 0.0, 4.0]])
LABELS = torch.tensor([0, 2, 1, 2])


def metrics(task: tasks.Task, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Over two batches, and a rank that had none."""
    sums = torch.zeros(len(task.metrics), dtype=torch.float64)
    for part in (slice(0, 3), slice(3, None)):
        sums += task.counts(outputs[part], targets[part])
    return task.summarise(sums, len(targets))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classification_has_the_cross_entropy_of_each_sample(smoothing: float) -> None:
    losses = tasks.Classification(smoothing).losses(LOGITS.bfloat16(), LABELS)
    assert losses.dtype == torch.float32
    expected = F.cross_entropy(LOGITS.bfloat16().float(), LABELS, reduction="none", label_smoothing=smoothing)
    assert torch.equal(losses, expected)


def test_classification_counts_the_first_guess_and_the_first_five() -> None:
    assert metrics(tasks.Classification(), LOGITS, LABELS) == {"accuracy": 0.5}
    logits = torch.arange(16.0).reshape(2, 8).repeat(2, 1)  # class 7 first, 3 fifth, 2 sixth
    assert metrics(tasks.Classification(), logits, torch.tensor([7, 3, 2, 0])) == {"accuracy": 0.25, "top5": 0.5}


def test_multi_label_has_the_binary_cross_entropy_over_the_labels() -> None:
    targets = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]], dtype=torch.uint8)
    losses = tasks.MultiLabel().losses(LOGITS, targets)
    by_hand = -(targets * LOGITS.sigmoid().log() + (1 - targets) * (1 - LOGITS.sigmoid()).log()).mean(1)
    torch.testing.assert_close(losses, by_hand)
    # Wrong: none, none, two, one of three.
    assert metrics(tasks.MultiLabel(), LOGITS, targets) == {"accuracy": pytest.approx(9 / 12), "exact_match": 0.5}


@pytest.mark.parametrize("targets", [torch.tensor([1.0, 2.0, 4.0]), torch.tensor([[1.0], [2.0], [4.0]]).double()])
def test_regression_has_the_squared_error(targets: Tensor) -> None:
    outputs = torch.tensor([[1.0], [4.0], [3.0]])  # against [3], a broadcast would give [3, 3]
    losses = tasks.Regression().losses(outputs, targets)
    assert losses.dtype == torch.float32
    assert losses.tolist() == [0.0, 4.0, 1.0]
    expected = {"rmse": pytest.approx(math.sqrt(5 / 3)), "mae": pytest.approx(1.0)}
    assert metrics(tasks.Regression(), outputs, targets) == expected
    assert list(expected) == list(tasks.Regression.metrics)


def test_regression_takes_the_mean_over_several_outputs() -> None:
    outputs, targets = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 4.0], [3.0, 3.0]])
    assert tasks.Regression().losses(outputs, targets).tolist() == [2.0, 9.0]


def test_a_diverged_regression_has_its_metrics_all_the_same() -> None:
    found = metrics(tasks.Regression(), torch.full((4, 1), torch.nan), torch.zeros(4))
    assert list(found) == ["rmse", "mae"]
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize(
    ("outputs", "output"), [({"logits": LOGITS, "loss": None}, "logits"), ((LOGITS, None), 0), (LOGITS, "logits")]
)
def test_an_entry_of_a_model_s_outputs_is_taken_where_it_is_named(outputs: Any, output: str | int) -> None:
    """A tensor passes too: torchvision's Inception returns a tuple in training and a tensor in testing."""
    task = tasks.Classification(output=output)
    task.check(outputs, LABELS)
    assert torch.equal(task.losses(outputs, LABELS), tasks.Classification().losses(LOGITS, LABELS))
    assert torch.equal(task.counts(outputs, LABELS)[:1], torch.tensor([2.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("outputs", "output", "message"),
    [
        ({"logits": LOGITS}, None, r'returns a dict.*entries logits\).*Classification\(output="logits"\)'),
        ((LOGITS, LOGITS), None, r"returns a tuple.*Classification\(output=0\)"),
        ({"logits": LOGITS}, "out", r'entries logits\).*no tensor "out"'),
        ((LOGITS,), 1, r"no tensor 1"),
        ((None, LOGITS), 0, r"no tensor 0"),
        (None, None, "returns NoneType"),
    ],
)
def test_outputs_that_are_no_tensor_are_refused_in_one_line(
    outputs: Any, output: str | int | None, message: str
) -> None:
    for call in (tasks.Classification(output=output).check, tasks.Classification(output=output).losses):
        with pytest.raises(UserError, match=message):
            call(outputs, LABELS)


@pytest.mark.parametrize(
    ("task", "outputs", "targets", "message"),
    [
        (tasks.Classification(), LOGITS[None], LABELS, r"returned \[1, 4, 3\] for 4 samples"),
        (tasks.Classification(), LOGITS[:3], LABELS, r"returned \[3, 3\] for 4 samples"),
        (tasks.Classification(), LOGITS, LABELS.float(), r"float32 \[4\].*tasks\.Regression\(\)"),
        (tasks.Classification(), LOGITS, LOGITS, r"float32 \[4, 3\].*tasks\.MultiLabel\(\)"),
        (tasks.Classification(), LOGITS, LOGITS.long(), r"int64 \[4, 3\].*tasks\.MultiLabel\(\)"),
        (tasks.Classification(), LOGITS, LABELS[:, None], r"int64 \[4, 1\].*Squeeze\(1\)"),
        (tasks.Classification(), LOGITS, LABELS.int(), r"int32 \[4\].*\.long\(\)"),
        (tasks.Classification(), LOGITS, None, "no targets"),
        (tasks.MultiLabel(), LOGITS, LABELS, r"int64 \[4\].*tasks\.Classification\(\)"),
        (tasks.MultiLabel(), LOGITS[:, :2], LOGITS, r"returned \[4, 2\] for 4 samples.*\[4, 3\]"),
        (tasks.Regression(), LOGITS, LABELS.float(), r"returned \[4, 3\] for 4 samples.*\[4\]"),
        (tasks.Regression(), LOGITS[:, 0], LABELS, r"int64 \[4\].*tasks\.Classification\(\)"),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_the_remedy(
    task: tasks.Task, outputs: Tensor, targets: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        task.check(outputs, targets)


def test_labels_beyond_the_outputs_are_refused_by_what_the_host_knows() -> None:
    tasks.Classification().check(LOGITS, LABELS, label_range=(0, 2))
    with pytest.raises(UserError, match=r"labels run from 0 to 3, but the model has 3 classes.*model\.classes"):
        tasks.Classification().check(LOGITS, LABELS, label_range=(0, 3))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_label_smoothing_out_of_range(smoothing: float) -> None:
    with pytest.raises(UserError, match="label_smoothing"):
        tasks.Classification(smoothing)


class Focal(tasks.Task):
    """A task of a user's: no more than the three parts that its docstring asks for."""

    metrics = ("accuracy",)

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        losses = F.cross_entropy(self.tensor(outputs).float(), targets, reduction="none")
        return (1 - (-losses).exp()) ** 2 * losses

    def counts(self, outputs: Any, targets: Tensor) -> Tensor:
        return (self.tensor(outputs).argmax(1) == targets).double().sum()[None]


class Outputs(NamedTuple):
    logits: Tensor
    scale: Tensor
    name: str = "x"


class Attributes(OrderedDict[str, Any]):
    """As a ModelOutput: its entries are attributes, too, and 0 is the first."""

    def __init__(self, **entries: Any) -> None:
        super().__init__(entries)

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def __getitem__(self, name: Any) -> Any:
        return list(self.values())[name] if isinstance(name, int) else super().__getitem__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        assert isinstance(name, str)
        super().__setitem__(name, value)


class Scaled(tasks.Classification):
    """A user's loss, which takes another output than the one that counts."""

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        if isinstance(outputs, Outputs | Attributes):
            return super().losses(outputs.logits * outputs.scale, targets)
        names = ("logits", "scale") if isinstance(outputs, Mapping) else (0, 1)
        return super().losses(outputs[names[0]] * outputs[names[1]], targets)


@pytest.mark.parametrize("output", ["logits", 0])
@pytest.mark.parametrize("kind", [dict, MappingProxyType, Attributes, Outputs, tuple, list])
def test_gradients_are_those_of_a_loss_of_several_outputs(kind: Any, output: str | int) -> None:
    with torch.inference_mode():
        logits, scale = LOGITS * 1, torch.full((4, 1), 2.0)
        if kind in (tuple, list):
            outputs = kind((logits, scale))
        elif kind in (Outputs, Attributes):
            outputs = kind(logits=logits, scale=scale)
        else:
            outputs = kind({"logits": logits, "scale": scale})
        named = kind in (dict, MappingProxyType, Attributes)
        if named == isinstance(output, str) or kind is Attributes:
            norms = Scaled(output=output).gradient_norms(outputs, LABELS)
            assert torch.allclose(norms, 2 * tasks.Classification().gradient_norms(2 * LOGITS, LABELS))
        else:
            with pytest.raises(UserError, match="name another output"):
                Scaled(output=output).gradient_norms(outputs, LABELS)


def test_a_task_of_ones_own_needs_three_parts() -> None:
    task = Focal(output="logits")
    task.check({"logits": LOGITS}, LABELS)
    assert metrics(task, LOGITS, LABELS) == {"accuracy": 0.5}
    assert task.gradient_norms(LOGITS, LABELS).shape == (4,)
    with pytest.raises(UserError, match=r"\[4, 3\] for 3 samples .* \[3\]: one output is needed for each target"):
        task.check(LOGITS, LABELS[:3])
