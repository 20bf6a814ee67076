"""One pass of training and one of testing. On CUDA a step waits for the step before the last, see `RunAhead`, and for
nothing else but where the pass ends."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ffcv_prune import collectives
from ffcv_prune.errors import UserError
from ffcv_prune.loading.loader import PrunedLoader
from ffcv_prune.machine import autocast, default_amp_dtype, untuned
from ffcv_prune.protocols import SampleLoader, Step
from ffcv_prune.sections import Train
from ffcv_prune.tasks import Classification, Task
from ffcv_prune.training.lr import LRSchedule
from ffcv_prune.training.moving_mean import MovingMean
from ffcv_prune.training.optimizer import build_optimizer

# Losses float32[B], ids int64[B], the model's outputs, targets -> the scalar to minimise.
BatchLoss = Callable[[Tensor, Tensor, Any, Any], Tensor]
# Inputs, targets, ids of a batch -> those to train on; None: nothing this time.
Choose = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor] | None]

COMPILING_PASSES = 3  # CUDA graphs are recorded in the second


class RunAhead:
    """Keeps this process at most `STEPS` steps ahead of a CUDA device; on the CPU there is nothing to keep.

    What limits it otherwise is the device's queue, or the loader's ring where a step has few kernels (graphs, compiled
    models). It would then wait inside of the loader, and a run held up by its model would look held up by its loader.
    """

    STEPS = 2

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._running: deque[torch.cuda.Event] = deque()

    def step_submitted(self) -> None:
        """Wait until the step before the last is done."""
        if self._device is None:
            return
        event = torch.cuda.Event(blocking=True)  # this thread sleeps, and leaves its core to the decoder
        event.record(torch.cuda.current_stream(self._device))
        self._running.append(event)
        if len(self._running) > self.STEPS:
            self._running.popleft().synchronize()


class Stepper:
    """Model and optimiser: SGD, Nesterov momentum, weight decay (on all parameters: paper, section 4).

    Attributes:
        task: the loss of each sample; None given: a classification with the settings' label smoothing.
        trained: samples of the last whole pass that were trained on, over all ranks.
        observers: each is called in every step, once its losses are known. None may wait for the device.
    """

    def __init__(
        self, model: nn.Module, settings: Train, amp_dtype: torch.dtype | None, task: Task | None = None
    ) -> None:
        self.model = model
        self.compile_mode = settings.compile
        self.forward = self._compiled(model)
        self.averaged = MovingMean(model, settings.ema) if settings.ema else None
        self.lr_schedule, self.warmup_epochs = LRSchedule(settings), settings.warmup_epochs
        self.amp_dtype = amp_dtype
        self.task = Classification(settings.label_smoothing) if task is None else task
        self.observers: list[Callable[[Step], None]] = []
        self.device = next(model.parameters()).device
        self.optimizer = build_optimizer(model, settings)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp_dtype is torch.float16)
        # Over the steps of the running epoch. The sum is on the device, so that no step waits for it.
        self.steps = self.samples = self.trained = 0
        self.run_ahead = RunAhead(self.device)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)

    def distribute(self) -> None:
        """From here on, average the gradients over all ranks."""
        # DDP sorts its buckets anew after the first step of a process, and with the buckets changes the order in which
        # three or more ranks add. It does not where it looks for unused parameters: a resumed run then adds alike.
        # On GPUs, where kernels differ in the last bits anyway, that is not worth its time.
        spread = nn.parallel.DistributedDataParallel(
            self.model, find_unused_parameters=self.device.type == "cpu", gradient_as_bucket_view=True
        )
        # `train_epoch` shares the buffers at its end: in training the statistics of batch norms enter nothing. The
        # argument of this name is deprecated in newer versions, and its successor unknown to older ones.
        spread.broadcast_buffers = False
        self.forward = self._compiled(spread)

    def _compiled(self, model: nn.Module) -> Callable[[Tensor], Any]:
        return model if self.compile_mode == "off" else torch.compile(model, mode=self.compile_mode)

    def compile_now(self, loader: PrunedLoader) -> None:
        """Let torch.compile do its work on the loader's first batch; all else stays as it is. All ranks must call."""
        if self.compile_mode == "off":
            return
        weights = copy.deepcopy(self.model.state_dict())  # a pass changes the statistics of batch norms
        cuda = [self.device] if self.device.type == "cuda" else []
        self.model.train()
        with closing(loader.batches(loader.next_epoch, loader.selection)) as batches, torch.random.fork_rng(cuda):
            batch = next(batches)
            for _ in range(COMPILING_PASSES):
                with autocast(self.device, self.amp_dtype):
                    outputs = self.forward(batch.inputs)
                self.task.losses(outputs, batch.targets).mean().backward()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.load_state_dict(weights)

    @property
    def tested(self) -> nn.Module:
        """The model to test and to write: the moving mean of the weights, if there is one."""
        return self.model if self.averaged is None else self.averaged.module

    def train_epoch(
        self,
        loader: PrunedLoader,
        epoch: int,
        batch_loss: BatchLoss,
        bar: tqdm,
        after_step: Callable[[], None],
        lr_factor: float = 1.0,
        choose: Choose | None = None,
    ) -> float | None:
        """One pass over the loader's selection, or the rest of one: returns the mean loss of the whole pass.

        That mean is unweighted; None if `choose` left nothing to train on. `batch_loss` makes of the losses of a batch
        the scalar to minimise. `lr_factor` multiplies the learning rate, see `lr`, and `choose` says what of a batch is
        trained on. `after_step` is called between two steps, when `state_dict` and the loader's agree. With a
        distributed loader the loss is that of all ranks, and all ranks end with the main rank's batch-norm statistics.
        """
        self.model.train()
        first, steps = loader.first_batch, loader.first_batch + len(loader)
        with closing(iter(loader)) as batches:
            for step, batch in enumerate(batches, first):
                if choose is not None and loader.world_size > 1:
                    # It looks at the statistics of batch norms: ranks that went on from here would have the main one's.
                    collectives.share_buffers(self.model)
                chosen = batch if choose is None else choose(*batch)
                if chosen is not None:
                    inputs, targets, ids = chosen
                    self.step(inputs, targets, ids, batch_loss, self.lr(epoch, step, steps, lr_factor))
                bar.update(len(batch[-1]) * loader.world_size)
                after_step()
        loss_sum, made = self.loss_sum.clone(), self.steps * loader.world_size
        self.trained = self.samples * loader.world_size
        self.steps = self.samples = 0
        self.loss_sum.zero_()
        if loader.world_size > 1:
            loss_sum = collectives.total(loss_sum)
            collectives.share_buffers(self.model)
            if self.averaged is not None:
                collectives.share_buffers(self.averaged.module)
        return loss_sum.item() / made if made else None  # waits for the device: once an epoch

    def lr(self, epoch: int, step: int, steps: int, factor: float) -> float:
        """The scheduled learning rate of a step, times `factor` after the schedule's warm-up (KAKURENBO's authors)."""
        scheduled = self.lr_schedule(epoch, step, steps)
        return scheduled if epoch + (step + 1) / steps <= self.warmup_epochs else factor * scheduled

    def step(self, inputs: Tensor, targets: Tensor, ids: Tensor, batch_loss: BatchLoss, lr: float) -> None:
        """One step of SGD on a batch: inputs uint8[B, 3, H, W], targets as the task has them, ids int64[B]."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with autocast(self.device, self.amp_dtype):
            outputs = self.forward(inputs)
        self.task.check(outputs, targets)
        losses = self.task.losses(outputs, targets)
        for observe in self.observers:
            observe(Step(ids, inputs, targets, outputs, losses))
        self.scaler.scale(batch_loss(losses, ids, outputs, targets)).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.averaged is not None:
            self.averaged.update()
        self.loss_sum += losses.detach().mean()
        self.steps += 1
        self.samples += len(losses)
        self.run_ahead.step_submitted()

    def state_dict(self) -> dict[str, Any]:
        """Model, optimiser and loss scaler: the same on all ranks. The learning rate follows from the position."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        if state["scaler"]:  # empty where the run was saved by a machine that does without
            self.scaler.load_state_dict(state["scaler"])


def mean_loss(losses: Tensor, ids: Tensor, outputs: Any, targets: Any) -> Tensor:
    """The batch loss of training on all data."""
    return losses.mean()


@torch.no_grad()  # not inference mode: a model may keep a tensor, which training then needs
def evaluate(
    model: nn.Module,
    loader: SampleLoader,
    task: Task,
    amp_dtype: torch.dtype | None,
    classes: int = 0,
    flip: bool = False,
) -> tuple[dict[str, float], list[float | None]]:
    """The task's metrics over the whole test set, by name, the headline first, and the accuracy of each of C `classes`.

    That is None for a class without samples; 0 classes: of none, as where the targets are no classes. `flip`: by the
    mean of the outputs for each image and for its mirror image.

    With a distributed loader each rank tests its share, no sample is tested twice, and all ranks return the same.
    """
    model.eval()
    device = next(model.parameters()).device
    sums = torch.zeros(len(task.metrics) + 2 * classes, dtype=torch.float64, device=device)
    metrics, right, samples = sums.split([len(task.metrics), classes, classes])
    with closing(loader.batches(0)) as batches, autocast(device, amp_dtype):
        for batch in batches:
            with untuned(len(batch.ids) < loader.batch_size):
                outputs = model(batch.inputs)
                task.check(outputs, batch.targets)
                if flip:
                    outputs = (task.tensor(outputs) + task.tensor(model(batch.inputs.flip(-1)))) / 2
            metrics += task.counts(outputs, batch.targets)
            if classes:
                samples.scatter_add_(0, batch.targets, torch.ones_like(batch.targets, dtype=sums.dtype))
                hits = task.tensor(outputs).argmax(dim=1) == batch.targets
                right.scatter_add_(0, batch.targets, hits.to(sums.dtype))
    if loader.world_size > 1:
        sums = collectives.total(sums)
    metrics, right, samples = sums.split([len(task.metrics), classes, classes])
    by_class = [None if n == 0 else hits / n for hits, n in zip(right.tolist(), samples.tolist(), strict=True)]
    return task.summarise(metrics, loader.num_samples), by_class


def choose_amp_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The type of train.amp; None computes in float32."""
    if amp == "auto":
        return default_amp_dtype(device)
    if amp == "fp16" and device.type == "cpu":
        raise UserError("train.amp=fp16 needs a CUDA device; use bf16 or off")
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[amp]


def or_amp_off(amp_dtype: torch.dtype | None) -> str:
    """The second remedy against a model that diverged; none where training is in float32 already."""
    return "" if amp_dtype is None else ", or set train.amp=off"
