"""Dynamic data pruning (paper, Algorithm 1): at each selection score, select, and swap the loader's order."""

from __future__ import annotations

import hashlib
import time
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ffcv_prune import collectives, machine, methods
from ffcv_prune.errors import UserError, whole_number, wrong_kind
from ffcv_prune.extras import check_accelerate
from ffcv_prune.loop_checks import LoopChecks
from ffcv_prune.machine import AmpDtype
from ffcv_prune.methods.phases import Phase
from ffcv_prune.protocols import SampleLoader
from ffcv_prune.schedule_end import check_schedule
from ffcv_prune.scoring.batch_forward import Chosen
from ffcv_prune.scoring.forward import check_loader, device_of, known_labels
from ffcv_prune.scoring.proxy import Proxy
from ffcv_prune.scoring.values import Values, check_arguments, check_ids
from ffcv_prune.starved import StarvedClasses
from ffcv_prune.tasks import Classification, Task


@dataclass(frozen=True)
class Swap:
    """What happened at a selection.

    Attributes:
        epoch: the epoch that it precedes.
        phase: "full", "random" or "method".
        ids: int64[k], sorted, read-only: the selection.
        nonfinite: losses that were not finite and did not enter the table.
        score_seconds, select_seconds, swap_seconds: wall-clock time of its parts.
    """

    epoch: int
    phase: Phase
    ids: NDArray[np.int64]
    nonfinite: int
    score_seconds: float
    select_seconds: float
    swap_seconds: float


class Pruner:
    """Keeps a training loader on the samples that a method selects.

        pruner = Pruner(loader, score_loader, "ucb", keep=0.3, period=10, epochs=200)
        for epoch in range(200):
            pruner.begin_epoch(epoch, model)
            for images, labels in loader: ...  # your loop

    Two things need the loss of each sample of a batch, and hence `batch_loss` in the loop: weights (InfoBatch)
    and scores that are training losses. The loader must then be one `with_ids=True`:

        pruner = Pruner(loader, None, "infobatch", epochs=200)
        for epoch in range(200):
            pruner.begin_epoch(epoch, model)
            for images, labels, ids in loader:
                losses = F.cross_entropy(model(images).float(), labels, reduction="none")
                loss = pruner.batch_loss(losses, ids)  # a weighted mean; remembers the losses as scores
                loss.backward() ...

    Args:
        loader: the training loader; its selection is exchanged in place.
        score_loader: serves the same data set in order through a deterministic pipeline (`score_dataset`); may be
            None where no scoring pass is made.
        method: a `Method`, or the name of one, of which `parameters` are then the parameters (`methods.build`).
        epochs: epochs of the whole run.
        seed: of the random selections; those of an epoch are drawn from (seed, epoch) alone.
        task: the loss of each sample in a scoring pass: that of training.
        amp_dtype: precision of the scoring pass, see `score_dataset`.
        scores: made before training, for the static methods, see `Method.start`.
        proxy: the proxy net of a method that selects by one; its `score_loader` shuffles and augments as `loader` does,
            in batches of the method's window.
        class_names: of the classes 0, 1, …, for the warning that some are starved; None: their numbers.
        group: of torch.distributed, over which the ranks compare what they selected; one over gloo spares a GPU the
            wait. None: the default one.

    Attributes:
        state: the run of the method: its table of statistics and its last selection.
        values: where its values come from, and what they have cost.
        mean_weight: of the losses of the current selection; 1.0 for a method without weights.
        lr_factor: by which the method wants the learning rate multiplied now; 1.0 for nearly all of them.
    """

    def __init__(
        self,
        loader: SampleLoader,
        score_loader: SampleLoader | None,
        method: methods.Method | str,
        *,
        epochs: int,
        seed: int = 0,
        task: Task | None = None,
        amp_dtype: AmpDtype = "auto",
        scores: ArrayLike | None = None,
        class_names: Sequence[str] | None = None,
        proxy: Proxy | None = None,
        group: Any = None,
        **parameters: Any,
    ) -> None:
        if isinstance(method, str):
            method = methods.build(method, **parameters)
        elif not isinstance(method, methods.Method):
            raise wrong_kind("method", method, 'its name, such as "ucb", or a methods.Method')
        elif parameters:
            raise UserError(f"{', '.join(parameters)}: parameters go with the name of a method; use method.replace(…)")
        if task is not None and not isinstance(task, Task):
            raise wrong_kind("task", task, "a task, such as tasks.Classification()")
        epochs, seed = whole_number("number of epochs", epochs), whole_number("seed", seed)
        check_accelerate()
        check_loader("training loader", loader)
        for what, one in {"training loader": loader, "scoring loader": score_loader}.items():
            if one is not None and not getattr(one, "serves_all", True):
                raise UserError(
                    f"the {what} leaves samples out by its indices, and a pruner selects from the whole data set: "
                    "leave out indices, and compile a file of the samples to select from"
                )
        if not loader.shuffle:
            warnings.warn(
                "the training loader does not shuffle: pass order=OrderOption.RANDOM, or shuffle=True", stacklevel=2
            )
        self.loader = loader
        self.task = Classification() if task is None else task
        groups = loader.labels if method.needs_groups else None
        self.state = method.start(loader.num_samples, epochs, groups, seed, scores)
        self.values = Values(self.state, loader, score_loader, self.task, amp_dtype, proxy, group)
        self._group = group
        self._checks = LoopChecks(loader, self.values.chooser, epochs if method.prunes else 0)
        loader.on_epoch = weakref.WeakMethod(self._checks.epoch_begins)
        self._weights: Tensor | None = None  # float32[n], by dataset position; None: all 1
        self.mean_weight = 1.0
        labels = known_labels(loader)
        self._starved = None if labels is None else StarvedClasses(labels, class_names, _remedy(method))

    @property
    def method(self) -> methods.Method:
        """What selects: its parameters may change during a run, see `State.change`."""
        return self.state.method

    def begin_epoch(self, epoch: int, model: nn.Module) -> Swap | None:
        """Call before each epoch, in order. Scores, selects and swaps where it is due; otherwise does nothing.

        Warns when selections begin to hold next to nothing of some classes: they may be forgotten. Warns, too, when the
        loader has begun no epoch since the call for an earlier one: the loop is then over another loader.

        Returns:
            What was done, or None between selections.

        Raises:
            UserError: see `score_dataset`, `State.record` and the loader's `set_selection`, or ranks that selected
                other samples. Also where the epoch before was trained on without `choose`, and its batches were to be
                chosen from. All is then as before, and the next call tries again.
        """
        epoch = whole_number("epoch", epoch)
        due = self.state.is_due(epoch)
        if not due and self.state.selection is None and self.method.prunes:
            raise UserError(
                f"epoch {epoch} is the first, and no selection was made before it: call begin_epoch before every epoch "
                "from 0 on, or resume with load_state_dict"
            )
        self._checks.end_last(epoch)
        if self.loader.next_epoch != epoch:
            self.loader.set_epoch(epoch)
        self._checks.begin(epoch)
        if not due:
            return None
        with self.state.whole_or_not_at_all(), self.values.whole_or_not_at_all():
            start = machine.now(device_of(model))  # after its work is done: the parts are charged rightly
            nonfinite = self.values.collect(epoch, model)
            scored = machine.now(device_of(model))
            selection = self.state.select(epoch)
            assert selection is not None
            if self.loader.world_size > 1:
                collectives.check_same(
                    hashlib.blake2b(selection.ids.tobytes()).hexdigest(),
                    f"at the selection of epoch {epoch}, rank {{}} selected other samples than rank 0: "
                    "give all ranks the same data, method and seed",
                    self._group,
                )
            if not selection.ids.size:
                raise UserError(f"method {self.method.name} leaves no sample for epoch {epoch}: let it drop fewer")
            selected = time.perf_counter()
            self.loader.set_selection(None if selection.ids.size == self.state.n else selection.ids)
            self.loader.set_epoch(epoch, self.loader.first_batch)  # no state is to lead back into an earlier one
        self.values.clear()
        self._set_weights()
        swapped = time.perf_counter()
        warning = None if self._starved is None or self.loader.rank else self._starved.look_at(selection.ids)
        if warning:
            warnings.warn(f"epoch {epoch}: {warning}", stacklevel=2)
        return Swap(
            epoch=epoch,
            phase=selection.phase,
            ids=self.loader.selection,
            nonfinite=nonfinite,
            score_seconds=scored - start,
            select_seconds=selected - scored,
            swap_seconds=swapped - selected,
        )

    def choose(self, model: nn.Module, inputs: Tensor, targets: Tensor, ids: Tensor) -> Chosen | None:
        """Return the samples of a batch to train on, for a method that chooses in batches; of any other, all of them.

        Call it once for each batch of the loader, in order. It makes a forward pass of the batch, with batch norms as
        in evaluation, and waits for its losses.

        Returns:
            (inputs, targets, ids) to train on; None: nothing now, go on with the next batch.
        """
        if self.values.chooser is None:
            self._checks.batch_came()
            return inputs, targets, ids
        self._check_begun()
        check_ids(ids, self.state.n)
        number = self._checks.next_batch()
        return self.values.chooser.choose(model, (inputs, targets, ids), self._checks.epoch, number)

    def batch_loss(self, losses: Tensor, ids: Tensor, outputs: Any = None, targets: Tensor | None = None) -> Tensor:
        """Return the weighted mean of a batch's losses, a float32 scalar to call `backward` on.

        Remembers the losses where the source is (also) training. Does not wait for a CUDA device.

        Args:
            losses: [B], of each sample (``reduction="none"``).
            ids: int64[B], its dataset positions: the last output of a loader with `with_ids`, on the CPU, in pinned
                memory where the loader delivers to a CUDA device.
            outputs: what the model returned for the batch; for a method that needs to know whether it was right
                (kakurenbo).
            targets: of the batch, for the same.
        """
        check_arguments(losses, ids, self.state.n)
        self._check_begun()
        self._checks.batch_came()
        losses = losses.float()
        self.values.remember(losses.detach(), ids, outputs, targets)
        if self._weights is None:
            return losses.mean()
        self._weights = self._weights.to(losses.device)  # moves once a selection
        return (losses * self._weights[ids.to(losses.device, non_blocking=True)]).mean()

    def _check_begun(self) -> None:
        if self.state.selection is None and self.method.prunes:
            raise UserError("call begin_epoch before the first batch: nothing is selected yet")

    def total_steps(self) -> int:
        """Batches of a rank over the whole run, for schedulers that count steps.

        Exact for a method of fixed size. One that sizes its selections itself (InfoBatch) may take fewer: this is the
        most there can be, and a warning says so.
        """
        epochs, n = self.state.epochs, self.state.n
        if not self.method.selector.has_fixed_size:
            warnings.warn(
                f"method {self.method.name} sizes its selections itself: total_steps() is the most there can be, and a "
                "schedule over it may end early; step a schedule by epochs instead",
                stacklevel=2,
            )
        return sum(self.loader.num_batches(self.method.samples_in(epoch, epochs, n)) for epoch in range(epochs))

    def check_schedule(self, schedule: Any, steps: int | None = None) -> None:
        """Compare a learning-rate schedule of torch with the length of the run.

        Warns if the schedule ends later. The end of a `LambdaLR` cannot be read. A `LinearLR` that ends above 0 is
        taken for a warm-up. Nothing is checked for a method that sizes its selections itself.

        Args:
            schedule: it is stepped after each step of the optimizer.
            steps: of the optimizer over the whole run; None: `total_steps()`.

        Raises:
            UserError: it ends before the run.
        """
        if self.method.selector.has_fixed_size:
            check_schedule(schedule, self.total_steps() if steps is None else steps)

    @property
    def lr_factor(self) -> float:
        """By which the method wants the learning rate multiplied now, after its warm-up; 1.0 for nearly all of them."""
        return 1.0 if self.state.selection is None else self.state.selection.lr_factor

    def _set_weights(self) -> None:
        """Put the weights of the last selection where `batch_loss` finds them."""
        self._weights, self.mean_weight = None, 1.0
        selection = self.state.selection
        if selection is not None and selection.weights is not None:
            self._weights = torch.ones(self.state.n)
            self._weights[torch.from_numpy(selection.ids)] = torch.from_numpy(selection.weights)
            self.mean_weight = float(selection.weights.mean(dtype=np.float64))

    def state_dict(self) -> dict[str, Any]:
        """The method's state, the losses since the last selection, and the loader's selection and position.

        Tensors and plain containers. With training losses and a distributed loader, all ranks must call.
        """
        return {
            "name": self.method.name,
            "method": _tensors(self.state.state_dict()),
            "values": self.values.state_dict(),
            "loader": self.loader.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; the loader's selection and position are restored with it.

        Raises UserError for a state of another run; then nothing has changed, in the loader neither.
        """
        if not {"name", "method", "values", "loader"} <= set(state):
            raise UserError(f"not the state of a pruner: it holds {', '.join(map(str, state)) or 'nothing'}")
        if state["name"] != self.method.name:
            raise UserError(
                f"the pruner's state is of method {state['name']}, not {self.method.name}: "
                "go on with the method that it was made with"
            )
        self.values.check_state(state["values"])
        with self.state.whole_or_not_at_all():
            self.state.load_state_dict(_arrays(state["method"]))
            self.loader.load_state_dict(state["loader"])
        self.values.load_state_dict(state["values"])
        self._checks.resume()
        self._set_weights()


def _remedy(method: methods.Method) -> str:
    """Against classes that a selection starves."""
    guarded = "random_share" in method.parameters
    return "set random_share=0.5 or class_floor=1" if guarded else "no guard goes around this method: take a milder one"


def _tensors(state: Any) -> Any:
    """The state with tensors for its arrays: `torch.load` takes them weights_only."""
    if isinstance(state, Mapping):
        return {name: _tensors(value) for name, value in state.items()}
    return torch.from_numpy(state) if isinstance(state, np.ndarray) else state


def _arrays(state: Any) -> Any:
    """The inverse of `_tensors`."""
    if isinstance(state, Mapping):
        return {name: _arrays(value) for name, value in state.items()}
    return state.numpy(force=True) if isinstance(state, Tensor) else state
