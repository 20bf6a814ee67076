"""The values that a method selects by, from wherever its source says: training, a pass, a proxy, each batch itself."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ffcv_prune.errors import UserError, wrong_kind
from ffcv_prune.machine import AmpDtype
from ffcv_prune.methods import Method, State
from ffcv_prune.methods.table import CERTAINTY, NonFiniteLossError
from ffcv_prune.protocols import SampleLoader
from ffcv_prune.scoring.batch_forward import BatchChooser
from ffcv_prune.scoring.forward import check_loader, known_labels, score_dataset
from ffcv_prune.scoring.headroom import Headroom, headroom_of
from ffcv_prune.scoring.proxy import Proxy, check_proxy_loader
from ffcv_prune.scoring.training_losses import TrainingLosses
from ffcv_prune.tasks import Task


class Values:
    """Brings the state of a method the values that it wants.

    Attributes:
        chooser: of a method that chooses in batches; else None.
    """

    def __init__(
        self,
        state: State,
        loader: SampleLoader,
        score_loader: SampleLoader | None,
        task: Task,
        amp_dtype: AmpDtype,
        proxy: Proxy | None,
        group: Any,
    ) -> None:
        self.state, self.task, self.amp_dtype = state, task, amp_dtype
        self.score_loader, self.proxy = score_loader, proxy
        self._check(loader)
        ranks, facts = loader.world_size, len(self.method.facts)
        self._rank = loader.rank, ranks, group
        self.chooser = BatchChooser(state, task, amp_dtype, ranks) if self.method.chooses_in_batches else None
        self._recorded = TrainingLosses(state.n, ranks > 1, facts) if self.method.records_losses else None
        self._passes = self._scored = 0
        self._headroom: tuple[int, Headroom] | None = None

    @property
    def method(self) -> Method:
        """That of the state."""
        return self.state.method

    def _check(self, loader: SampleLoader) -> None:
        """UserError for loaders or a proxy that do not fit the method."""
        method, n = self.method, self.state.n
        if (method.records_losses or method.chooses_in_batches) and not loader.with_ids:
            raise UserError("losses of training go by sample: build the training loader with with_ids=True")
        if method.needs_certainty and type(self.task).certainty is Task.certainty:
            self.task.certainty(None, None)  # refuses
        if self.proxy is not None and not isinstance(self.proxy, Proxy):
            raise wrong_kind("proxy", self.proxy, "a Proxy(model, optimizer)")
        if self.proxy is None and method.source.by_proxy:
            raise UserError(f"method {method.name} selects by a proxy net: give proxy=Proxy(model, optimizer)")
        if self.proxy is not None and not method.source.by_proxy:
            raise UserError(f"method {method.name} has no proxy net: leave it out")
        if not method.makes_passes:
            return
        if method.selector.has_fixed_size and method.samples_seen(self.state.epochs, n) == n * self.state.epochs:
            warnings.warn(
                f"method {method.label} keeps all {n} samples: it scores them and prunes nothing; "
                "lower keep, or use the method full",
                stacklevel=4,
            )
        if self.score_loader is None:
            raise UserError(f"method {method.name} scores the samples in a pass: give a score_loader")
        check_loader("scoring loader", self.score_loader)
        if self.proxy is not None:
            check_proxy_loader(self.score_loader, loader, method.values["window"])
        found, labels, own = self.score_loader.num_samples, known_labels(self.score_loader), known_labels(loader)
        if found != n or (labels is not None and own is not None and not np.array_equal(labels, own)):
            reason = f"{found} samples, not {n}" if found != n else "other labels"
            raise UserError(
                f"against the training loader, the scoring loader has {reason}: read the same data set in both"
            )

    @property
    def costs(self) -> dict[str, int]:
        """What the method has cost so far, beside the training of its selections.

        "passes": scoring passes. "forwards": samples that went through the model without being trained on. "decoded":
        images made for that. "proxy_forwards" and "proxy_steps": samples through a proxy net, and its steps.
        """
        chooser, proxy = self.chooser, self.proxy
        proxy_forwards, proxy_steps = (proxy.forwards, proxy.steps) if proxy else (0, 0)
        return {
            "passes": self._passes,
            "forwards": self._scored + (chooser.forwards if chooser else 0),
            "decoded": self._scored + proxy_forwards,
            "proxy_forwards": proxy_forwards,
            "proxy_steps": proxy_steps,
        }

    def headroom_at(self, epoch: int) -> Headroom | None:
        """What the scoring pass before the epoch told of the gradient; None where there was no such pass."""
        made_for, found = self._headroom or (None, None)
        return found if made_for == epoch else None

    def collect(self, epoch: int, model: nn.Module) -> int:
        """Record what is wanted before the selection of `epoch`; returns how many losses were not finite."""
        return self._record_training(epoch) + self._record_pass(epoch, model)

    def _record_training(self, epoch: int) -> int:
        if self._recorded is None or self.state.selection is None:
            return 0
        ids, values = self._recorded.latest()
        if not ids.size:
            raise UserError("no training losses came back since the last selection: use batch_loss in your loop")
        facts: dict[str, Any] = dict(zip(self.method.facts, values[1:], strict=True))
        return self.state.record(ids, values[0], epoch=epoch, **facts)

    def _record_pass(self, epoch: int, model: nn.Module) -> int:
        ids = self.state.wanted(epoch)
        if ids is None:
            return 0
        assert self.score_loader is not None
        self._passes += 1
        if self.proxy is not None:
            keep, window, stride = (self.method.values[name] for name in ("keep", "window", "stride"))
            order, losses = self.proxy.run(self.score_loader, epoch, keep, window, stride, *self._rank)
            try:
                return self.state.record(order, losses, epoch=epoch)
            except NonFiniteLossError as error:
                raise UserError("the proxy diverged: lower its learning rate, which is prune.proxy_lr") from error
        self._scored += ids.size
        certainty = self.method.needs_certainty
        values = score_dataset(
            model,
            self.score_loader,
            amp_dtype=self.amp_dtype,
            task=self.task,
            ids=ids,
            certainty=certainty,
            gradients=True,
        )[:, ids]
        found = headroom_of(values[-1], self.state.n, self._trained_by(epoch))
        self._headroom = None if found is None else (epoch, found)
        names = [column.name for column in CERTAINTY if certainty]
        facts: dict[str, Any] = dict(zip(names, values[1:-1], strict=True))
        return self.state.record(ids, values[0], epoch=epoch, **facts)

    def _trained_by(self, epoch: int) -> int:
        """Samples that are trained on by the scores of a pass, as often as they are; at most."""
        epochs, n, phases = self.state.epochs, self.state.n, self.method.phases
        own = range(epoch, min(epochs, epoch + phases.interval))
        return sum(self.method.samples_in(e, epochs, n) for e in own if phases.phase(e, epochs) == "method")

    def remember(self, losses: Tensor, ids: Tensor, outputs: Any, targets: Tensor | None) -> None:
        """Keep the losses of a batch, float32[B], without gradient, where the method takes those of training."""
        if self._recorded is None:
            return
        rows = [losses[None]]
        if self.method.statistic.needs_batches:
            finite = losses.isfinite()  # one infinite loss says nothing about the others; no wait for the device
            mean = losses.where(finite, 0).sum() / finite.sum()
            rows.append(mean.expand(1, len(losses)))
        if self.method.needs_certainty:
            if outputs is None or targets is None:
                raise UserError(
                    f"method {self.method.name} needs to know whether the model was right: "
                    "call batch_loss(losses, ids, outputs, targets)"
                )
            rows.append(self.task.certainty(outputs, targets))
        self._recorded.record(torch.cat(rows) if len(rows) > 1 else rows[0], ids)

    def clear(self) -> None:
        """Forget the losses of training: a selection was made of them."""
        if self._recorded is not None:
            self._recorded.clear()

    @contextmanager
    def whole_or_not_at_all(self) -> Iterator[None]:
        """Take back what a proxy learned and what was counted inside if an exception leaves it."""
        counts = self._passes, self._scored, self._headroom
        try:
            with nullcontext() if self.proxy is None else self.proxy.whole_or_not_at_all():
                yield
        except BaseException:
            self._passes, self._scored, self._headroom = counts
            raise

    @property
    def _parts(self) -> Mapping[str, TrainingLosses | BatchChooser | Proxy | None]:
        return {"recorded": self._recorded, "chooser": self.chooser, "proxy": self.proxy}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain containers. With training losses and a distributed loader, all ranks must call."""
        own = {name: None if part is None else part.state_dict() for name, part in self._parts.items()}
        headroom = self._headroom and [self._headroom[0], asdict(self._headroom[1])]
        return own | {"counts": [self._passes, self._scored], "headroom": headroom}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """UserError unless `state` is of a run with the same source, and the same proxy net."""
        if any((state[name] is None) != (part is None) for name, part in self._parts.items()):
            raise UserError("the pruner's state is of a run with another score source: set score_source as it was")
        if self.proxy is not None:
            self.proxy.check_state(state["proxy"])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, part in self._parts.items():
            if part is not None:
                part.load_state_dict(state[name])
        self._passes, self._scored = state["counts"]
        saved = state["headroom"]
        self._headroom = saved and (saved[0], Headroom(**saved[1]))


def check_arguments(losses: Tensor, ids: Tensor, n: int) -> None:
    """UserError unless there is one loss for each of the batch's int64 ids, on the CPU, of n samples."""
    check_ids(ids, n)
    if not isinstance(losses, Tensor):
        raise wrong_kind("argument losses", losses, 'a tensor, one loss a sample (reduction="none")')
    if losses.ndim != 1 or losses.shape != ids.shape:
        raise UserError(
            f"losses {list(losses.shape)} with ids {list(ids.shape)}, {ids.dtype}: hand over one loss a sample "
            '(reduction="none") and the ids of the batch as the loader gave them'
        )


def check_ids(ids: Tensor, n: int) -> None:
    """UserError unless these are positions among n samples, int64[B] on the CPU, as the loader gives them."""
    if not isinstance(ids, Tensor):
        raise wrong_kind("argument ids", ids, "the tensor that the loader gave, its last output")
    remedy = "hand over the ids of the batch as the loader gave them"
    if ids.dtype != torch.int64 or ids.ndim != 1:
        raise UserError(f"the ids are {ids.dtype} {list(ids.shape)}, not torch.int64 [B]: {remedy}")
    if ids.device.type != "cpu":
        raise UserError(f"the ids are on {ids.device}: leave them on the CPU, where the loader gave them")
    if len(ids) and not (ids.min() >= 0 and ids.max() < n):
        raise UserError(f"ids from {ids.min()} to {ids.max()}, of a data set of {n} samples: {remedy}")
