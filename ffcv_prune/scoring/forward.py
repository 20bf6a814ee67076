"""The scoring pass: the loss of every sample under the current model (paper, Eq. 1)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ffcv_prune import collectives
from ffcv_prune.errors import UserError, wrong_kind
from ffcv_prune.machine import AmpDtype, autocast, untuned
from ffcv_prune.protocols import SampleLoader
from ffcv_prune.scoring.folding import agrees, fold_batch_norm
from ffcv_prune.tasks import Classification, Task

Criterion = Callable[[Any, Tensor], Tensor]  # float32 outputs, targets -> float32[B]

IGNORED = -100  # the label that torch's cross entropy leaves out


def score_dataset(
    model: nn.Module,
    score_loader: SampleLoader,
    device: torch.device | str | None = None,
    amp_dtype: AmpDtype = "auto",
    criterion: Criterion | None = None,
    task: Task | None = None,
    ids: NDArray[np.int64] | None = None,
    certainty: bool = False,
    gradients: bool = False,
    fold: bool | None = None,
) -> NDArray[np.float32]:
    """Return float32[n]: each sample's loss by the `task`, or another `criterion`, by dataset position.

    The model is in evaluation mode during the pass, and in its earlier mode after it. The pass uses no gradients,
    channels_last, mixed precision, and batch norms folded into convolutions where possible (`fold_batch_norm`). Losses
    gather in one buffer on the device, without synchronisation after the first batch, and are copied back once. With a
    `distributed` loader each rank scores its share and every rank returns all losses.

    Args:
        model: maps the loader's images [B, 3, H, W] to what the task compares with the targets: logits [B, C].
        score_loader: a loader with `shuffle=False, drop_last=False` that serves inputs and
            targets, from a deterministic pipeline.
        device: where to compute; None for the model's device.
        amp_dtype: torch.float16, torch.bfloat16, None for float32, or "auto" for what the device does natively.
        criterion: from the model's outputs, in float32 where they are one tensor, and the targets to float32[B].
        task: what the model is trained for, None for `Classification()`; its loss is the score, unless there is a
            criterion.
        ids: int64[k]: score these samples only; None for the loader's selection. The others score NaN.
        certainty: return float32[3, n], with the task's `certainty` of each sample below its loss.
        gradients: return one row more, the last one, with the task's `gradient_norms`.
        fold: whether to fold batch norms into convolutions; None: on the CPU only. cuDNN adds the bias that comes of it
            in a pass of its own over memory, which is what the batch norm costs there.

    Raises:
        UserError: a loader that shuffles or drops, outputs or targets that do not fit the task, a criterion that does
            not return one score a sample, or memory that does not suffice for a single sample.
    """
    check_loader("scoring loader", score_loader)
    if score_loader.shuffle or score_loader.drop_last:
        raise UserError(
            "the scoring loader must serve every sample in order: build it with shuffle=False, drop_last=False"
        )
    device = torch.device(device) if device is not None else device_of(model)
    plain, folds = unwrap(model), device.type == "cpu" if fold is None else fold
    stated = score_loader.label_range
    scorer: _Scorer | None = None
    position = 0
    scored = score_loader.selection if ids is None else np.sort(ids)
    share = len(scored[score_loader.rank :: score_loader.world_size])  # of this rank
    rows = 1 + 2 * certainty + gradients
    values = torch.empty(rows, share, dtype=torch.float32, device=device)
    order = torch.empty(share, dtype=torch.int64)  # of the loader's `indices`, which need not be sorted
    with (
        evaluating(model),
        torch.no_grad(),  # not inference mode, as fast on a CPU: a model may keep a tensor, which training then needs
        # Before the loader's thread runs, which may hold modules.
        nullcontext(fold_batch_norm(plain) if folds else None) as folded,
        closing(score_loader.batches(0, scored)) as batches,
        autocast(device, amp_dtype),
    ):
        for batch in batches:
            # A loader that delivers elsewhere than to `device` does not know when these copies end, and would
            # overwrite its ring under a non-blocking one. On the same device nothing is copied here.
            images = on_device(device, batch.inputs)
            if len(images) != len(batch.ids):
                raise UserError(
                    f"the inputs of a batch of {len(batch.ids)} samples have {len(images)} rows: in a scoring pass the "
                    "samples must come first; give the scoring loader a collate_fn that does so"
                )
            targets = None if batch.targets is None else batch.targets.to(device)
            if scorer is None:
                chosen = folded if folded is not None and agrees(folded, plain, images) else plain
                scorer = _Scorer(chosen, task or Classification(), criterion, score_loader.batch_size, gradients)
            scorer.label_range = stated or _label_range(batch.targets)
            scorer.score(images, targets, values[:, position : position + len(images)])
            order[position : position + len(images)] = batch.ids
            position += len(images)

    def of_all_ranks(own: Tensor) -> NDArray[Any]:
        return (collectives.interleaved(own, len(scored)) if score_loader.world_size > 1 else own).cpu().numpy()

    result = np.full((len(values), score_loader.num_samples), np.nan, dtype=np.float32)
    served = of_all_ranks(order)
    for row, own in zip(result, values, strict=True):
        row[served] = of_all_ranks(own)
    return result if len(result) > 1 else result[0]


def check_loader(what: str, loader: Any) -> None:
    """UserError for a loader whose batches do not know their samples, such as FFCV's own."""
    if isinstance(loader, type) or not hasattr(loader, "batches"):
        raise wrong_kind(what, loader, "a PrunedLoader(…) or a TorchLoader(…)")


def known_labels(loader: SampleLoader) -> NDArray[np.int64] | None:
    """int64[n], the labels of a loader, where they cost no pass over the data."""
    return None if loader.label_range is None else loader.labels


def device_of(model: Any) -> torch.device:
    """Where the model is; the CPU for one without parameters. UserError for what is no `nn.Module`."""
    if not isinstance(model, nn.Module):
        raise wrong_kind("model", model, "a torch.nn.Module")
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


class _Scorer:
    """Scores batches, in smaller pieces once a batch did not fit into the device's memory."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        criterion: Criterion | None,
        batch_size: int,
        gradients: bool,
    ) -> None:
        self.model = model
        self.task, self.criterion, self.gradients = task, criterion, gradients
        self.label_range: tuple[int, int] | None = None  # of the data set or the batch, where it is known
        self.ran = False
        self.piece = batch_size  # samples a forward pass

    def score(self, images: Tensor, targets: Any, out: Tensor) -> None:
        """Write the scores of images [B, 3, H, W] with targets [B, ...], if there are any, to out[0], float32[…, B].

        The rows below hold the certainty and the gradient norms of the task, where they are asked for.
        """
        while True:
            piece = min(self.piece, len(images))
            try:
                for i in range(0, len(images), piece):
                    part = slice(i, i + piece)
                    own = None if targets is None else targets[part]
                    outputs = self._outputs(images[part])
                    out[0, part] = self._scores(outputs, own, len(images[part]))
                    if len(out) > 2:
                        out[1:3, part] = self.task.certainty(outputs, own)
                    if self.gradients:
                        out[-1, part] = self.task.gradient_norms(outputs, own)
                return
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                if piece == 1:
                    raise UserError(
                        "scoring runs out of memory with a single sample: use smaller images or free the device"
                    ) from None
                self.piece = piece // 2
            torch.cuda.empty_cache()  # here the error, whose traceback holds the activations, is gone

    def _outputs(self, images: Tensor) -> Any:
        try:
            with untuned(len(images) < self.piece):
                outputs = self.model(images)
        except Exception as error:
            if not self.ran and not _is_out_of_memory(error):
                # The error itself is the model's, and keeps its traceback.
                warnings.warn(
                    f"the model fails on the first batch to score, {images.dtype} {list(images.shape)}: the scoring "
                    "loader must serve inputs as the training loader does, of a size that the model takes",
                    stacklevel=2,
                )
            raise
        self.ran = True
        return outputs

    def _scores(self, outputs: Any, targets: Any, samples: int) -> Tensor:
        if self.criterion is None:
            self.task.check(outputs, targets, self.label_range)
            return self.task.losses(outputs, targets)
        scores = self.criterion(outputs.float() if isinstance(outputs, Tensor) else outputs, targets)
        if scores.shape != (samples,):
            raise UserError(
                f"the criterion returned {list(scores.shape)} for {samples} samples: "
                'return one score a sample (reduction="none")'
            )
        return scores


def _label_range(targets: Any) -> tuple[int, int] | None:
    """The lowest and the highest label of a batch; None unless they are integers on the CPU.

    To look at labels on a GPU would be to wait for it, in each batch.
    """
    if not isinstance(targets, Tensor) or targets.dtype != torch.int64 or targets.device.type != "cpu":
        return None
    labels = targets[targets != IGNORED]
    return (int(labels.min()), int(labels.max())) if len(labels) else None


def on_device(device: torch.device, inputs: Any) -> Tensor:
    if not isinstance(inputs, Tensor):
        raise UserError(
            f"the scoring loader's inputs are a {type(inputs).__name__}, not a tensor: let its batches begin with the "
            "tensor that the model takes, then the targets"
        )
    # Only images [B, C, H, W] have channels to put last.
    return inputs.to(device, memory_format=torch.channels_last) if inputs.ndim == 4 else inputs.to(device)


def _is_out_of_memory(error: Exception) -> bool:
    # The CPU's allocator has no exception of its own, nor have the workspaces of cuBLAS and cuDNN.
    words = ("can't allocate memory", "_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


def unwrap(model: nn.Module) -> nn.Module:
    # DistributedDataParallel's forward may synchronise buffers, and ranks may score different numbers of batches.
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, then each module's own mode again (a frozen batch norm stays frozen)."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(before[0][1])  # calls what a module does at the change of its mode, as the merged layers of LoRA
        for module, training in before:
            module.training = training
