"""What a model is trained for: one loss a sample, for training and scoring alike, and the metrics of a test."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ffcv_prune.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Compares a model's outputs with the targets of a batch of B samples.

    A task of your own is a subclass with `metrics`, `losses` and `counts`. Each takes from `self.tensor(outputs)` the
    tensor that counts. With `certainty`, methods that need to know whether the model is right work, too.

    Args:
        output: the entry that counts of a model that returns a dict or a tuple: its key or index, as "logits" or 0.

    Attributes:
        metrics: names, the first one the headline; `counts` has a sum for each.
    """

    output: str | int | None = None
    metrics: ClassVar[tuple[str, ...]]

    @abstractmethod
    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return float32[B], the loss of each sample."""

    @abstractmethod
    def counts(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return float64[len(metrics)], on the targets' device: sums over the batch, to be added over batches and
        ranks."""

    def certainty(self, outputs: Any, targets: Any) -> Tensor:
        """Return float32[2, B]: 1 where the model is right and 0 where it is not, and its confidence, 0 to 1.

        UserError for a task that has no such thing.
        """
        raise UserError(
            f"the method needs to know whether the model is right, and tasks.{type(self).__name__} cannot tell: "
            "take another method, or tasks.Classification()"
        )

    def gradient_norms(self, outputs: Any, targets: Any) -> Tensor:
        """Return float32[B]: the norm of the gradient of each sample's loss at its outputs, in inference mode too."""
        with torch.inference_mode(False), torch.enable_grad():
            found = self.tensor(outputs).detach().float().clone().requires_grad_()
            losses = self.losses(self._with(outputs, found), targets.clone())
            (gradients,) = torch.autograd.grad(losses.sum(), found)
        return gradients.reshape(len(gradients), -1).norm(dim=1)  # [B] too; those of images may be channels_last

    def _with(self, outputs: Any, found: Tensor) -> Any:
        """What a model returned, with `found` for the tensor that counts and copies of the others."""
        counts = self.tensor(outputs)

        def replaced(value: Any) -> Any:
            return found if value is counts else value.clone() if isinstance(value, Tensor) else value

        if isinstance(outputs, Mapping):
            made: Any = copy.copy(outputs) if isinstance(outputs, MutableMapping) else dict(outputs)
            for name, value in outputs.items():
                made[name] = replaced(value)
            return made
        if isinstance(outputs, tuple | list):
            values = [replaced(value) for value in outputs]
            return outputs._make(values) if hasattr(outputs, "_make") else type(outputs)(values)
        return found

    def summarise(self, sums: Tensor, n: int) -> dict[str, float]:
        """Return the metrics by name, the headline first, of n samples with the added `counts`. Waits for a device."""
        return dict(zip(self.metrics, (sums.cpu() / n).tolist(), strict=True))

    def check(self, outputs: Any, targets: Any, label_range: tuple[int, int] | None = None) -> None:
        """UserError where shapes and dtypes do not fit. Waits for no device.

        `label_range`: the lowest and the highest label of the data set or of the batch, where the host knows them.
        """
        found = self.tensor(outputs)
        if not isinstance(targets, Tensor):
            raise UserError("the data have no targets: give the loader a pipeline for the field of the targets")
        self._check_targets(targets)
        if found.ndim == 0 or len(found) != len(targets) or not self._fits(found, targets):
            raise UserError(
                f"the model returned {list(found.shape)} for {len(targets)} samples with targets "
                f"{list(targets.shape)}: {self._needs}"
            )

    _needs: ClassVar[str] = "one output is needed for each target"  # what `_fits` asks for, in words

    def _check_targets(self, targets: Tensor) -> None:  # noqa: B027 - those of a user's task are not known
        pass

    def _fits(self, outputs: Tensor, targets: Tensor) -> bool:
        return True

    def tensor(self, outputs: Any) -> Tensor:
        """Return the tensor that counts of what a model returned. A tensor is that itself, whatever `output` says."""
        if isinstance(outputs, Tensor):
            return outputs
        kind, name = type(outputs).__name__, type(self).__name__
        entries = f" (entries {', '.join(map(str, outputs))})" if isinstance(outputs, Mapping) else ""
        if self.output is None:
            if not entries and not isinstance(outputs, tuple | list):
                raise UserError(f"the model returns {kind}: return a tensor, or a dict or tuple that holds one")
            example = '"logits"' if entries else "0"
            raise UserError(
                f"the model returns a {kind}{entries}, not a tensor: name the entry that counts, "
                f"such as tasks.{name}(output={example})"
            )
        try:
            found = outputs[self.output]
        except (KeyError, IndexError, TypeError):
            found = None
        if not isinstance(found, Tensor):
            wanted = f'"{self.output}"' if isinstance(self.output, str) else self.output
            raise UserError(
                f"the model returns a {kind}{entries} with no tensor {wanted}: name another output of tasks.{name}"
            )
        return found


@dataclass(frozen=True)
class Classification(Task):
    """One of C classes: cross entropy (nats; paper, Eq. 1) of outputs [B, C] with labels int64[B].

    Metrics, 0 to 1, higher is better: "accuracy", and "top5" of more than 5 classes.
    """

    label_smoothing: float = 0.0
    metrics = ("accuracy", "top5")
    _needs = "classification needs logits [B, classes]"

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing is {self.label_smoothing}: it must be at least 0 and below 1")

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        logits = self.tensor(outputs).float()
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=self.label_smoothing)

    def certainty(self, outputs: Any, targets: Any) -> Tensor:
        confidence, found = self.tensor(outputs).detach().float().softmax(dim=1).max(dim=1)
        return torch.stack([(found == targets).float(), confidence])

    def counts(self, outputs: Any, targets: Tensor) -> Tensor:
        logits = self.tensor(outputs)
        right = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]  # [B, 5]
        sums = torch.stack([right[:, 0].sum(), right.sum()]).double()
        if logits.shape[1] <= 5:
            sums[1] = torch.nan  # everything is among the first five; a rank without samples cannot tell, and adds 0
        return sums

    def summarise(self, sums: Tensor, n: int) -> dict[str, float]:
        return {name: value for name, value in super().summarise(sums, n).items() if value == value}

    def check(self, outputs: Any, targets: Any, label_range: tuple[int, int] | None = None) -> None:
        super().check(outputs, targets)
        classes = self.tensor(outputs).shape[1]
        if label_range is not None and not 0 <= label_range[0] <= label_range[1] < classes:
            low, high = label_range
            remedy = "number the classes from 0"
            if low >= 0:
                remedy = f"give it at least {high + 1} outputs, in a config by model.classes"
            raise UserError(f"the labels run from {low} to {high}, but the model has {classes} classes: {remedy}")

    def _check_targets(self, targets: Tensor) -> None:
        if targets.ndim == 1 and targets.dtype == torch.int64:
            return
        if targets.ndim > 1 and targets.shape[1:].numel() > 1:
            remedy = "for several labels a sample use tasks.MultiLabel()"
        elif targets.is_floating_point():
            remedy = "for numbers use tasks.Regression(), for classes targets.long()"
        elif targets.ndim != 1:
            remedy = "end the pipeline of the labels with Squeeze(1)"
        else:
            remedy = "use targets.long()"
        raise UserError(f"the targets are {_described(targets)}, classification needs int64 [B]: {remedy}")

    def _fits(self, outputs: Tensor, targets: Tensor) -> bool:
        return outputs.ndim == 2


@dataclass(frozen=True)
class MultiLabel(Task):
    """Each of C labels holds or does not. The loss is the binary cross entropy (nats), the mean over the labels.
    Logits are [B, C], targets [B, C] in 0 to 1, of any dtype.

    Metrics, 0 to 1, higher is better: "accuracy", the share of labels that are right, and "exact_match", the share of
    samples of which all are.
    """

    metrics = ("accuracy", "exact_match")
    _needs = "multi-label needs one logit for each label, [B, C]"

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        logits = self.tensor(outputs).float()
        return F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none").mean(dim=1)

    def counts(self, outputs: Any, targets: Tensor) -> Tensor:
        right = (self.tensor(outputs) > 0) == (targets > 0.5)
        return torch.stack([right.double().mean(dim=1).sum(), right.all(dim=1).sum()])

    def _check_targets(self, targets: Tensor) -> None:
        if targets.ndim != 2:
            raise UserError(
                f"the targets are {_described(targets)}, multi-label needs [B, C]: "
                "for one class a sample use tasks.Classification()"
            )

    def _fits(self, outputs: Tensor, targets: Tensor) -> bool:
        return outputs.shape == targets.shape


@dataclass(frozen=True)
class Regression(Task):
    """D numbers: the squared error, the mean over the numbers, of outputs [B, D] with float targets [B, D].

    For D = 1 both may be [B], too. Metrics in the targets' unit, lower is better: "rmse" and "mae", the root of the
    mean squared error and the mean absolute error.
    """

    metrics = ("rmse", "mae")
    _needs = "regression needs as many outputs as targets"

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        return self._errors(outputs, targets).square().mean(dim=1)

    def counts(self, outputs: Any, targets: Tensor) -> Tensor:
        errors = self._errors(outputs, targets).double()
        return torch.stack([errors.square().mean(dim=1).sum(), errors.abs().mean(dim=1).sum()])

    def summarise(self, sums: Tensor, n: int) -> dict[str, float]:
        mean_square, mae = (sums.cpu() / n).tolist()
        return {"rmse": mean_square**0.5, "mae": mae}

    def _errors(self, outputs: Any, targets: Tensor) -> Tensor:
        shape = len(targets), targets.shape[1:].numel()  # [B] against [B, 1] would broadcast
        return self.tensor(outputs).float().reshape(shape) - targets.float().reshape(shape)

    def _check_targets(self, targets: Tensor) -> None:
        if not targets.is_floating_point():
            raise UserError(
                f"the targets are {_described(targets)}, regression needs floats: "
                "for classes use tasks.Classification(), for numbers targets.float()"
            )

    def _fits(self, outputs: Tensor, targets: Tensor) -> bool:
        return outputs.shape[1:].numel() == targets.shape[1:].numel()


def _described(targets: Tensor) -> str:
    return f"{str(targets.dtype).removeprefix('torch.')} {list(targets.shape)}"
