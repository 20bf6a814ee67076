"""Hugging Face's own Trainer, held against a loop without it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffcv_prune import PrunedLoader, Pruner, TorchLoader, tasks
from ffcv_prune.errors import UserError
from tests.betons import Beton
from tests.plain_loop import BATCH, EPOCHS, LENGTHS, LR, UCB, assert_same_weights, run_ranks
from tests.torch_data import Coloured

transformers = pytest.importorskip("transformers", reason="needs transformers")

from ffcv_prune.adapters.transformers import PrunedTrainer  # noqa: E402

TASK = tasks.Classification(output="logits")


def scaled(image: Tensor, label: int, i: int) -> Any:
    return {"pixel_values": image.float() / 255, "labels": label}


def scaled_pair(image: Tensor, label: int, i: int) -> Any:
    return image.float() / 255, label


def make_model() -> nn.Module:
    torch.manual_seed(0)
    # Not a ViT: transformers 5.24 saves one under names that its Trainer does not find again.
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=10
    )
    return transformers.ResNetForImageClassification(config)


def make_pruner(method: str = "ucb", distributed: bool = False, workers: int = 0, **parameters: Any) -> Pruner:
    options: dict[str, Any] = {"num_workers": workers, "distributed": distributed}
    batch = BATCH // (2 if distributed else 1)
    loader = TorchLoader(Coloured(change=scaled), batch, with_ids=True, **options)
    score_loader = TorchLoader(Coloured(change=scaled_pair), 64, shuffle=False, drop_last=False, **options)
    parameters = parameters or (UCB if method == "ucb" else {})
    return Pruner(loader, score_loader, method, epochs=EPOCHS, task=TASK, amp_dtype=None, **parameters)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)


class Noting(PrunedTrainer):
    """Notes the samples of each step, and its learning rate."""

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **options: Any) -> Any:
        self.steps.append(inputs["ids"].tolist())
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        return super().compute_loss(model, inputs, *args, **options)


def cosine(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """A schedule that goes on from the learning rate that it finds."""
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)


def make_trainer(
    pruner: Pruner, folder: Path, schedule: Callable[[torch.optim.Optimizer], Any] = lambda _: None, **options: Any
) -> Noting:
    options = {"num_train_epochs": EPOCHS, "lr_scheduler_type": "constant", "save_strategy": "no"} | options
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), use_cpu=True, max_grad_norm=0, report_to=[], disable_tqdm=True, **options
    )
    model = make_model()
    optimizer = sgd(model)
    trainer = Noting(model, arguments, pruner=pruner, optimizers=(optimizer, schedule(optimizer)))
    trainer.steps, trainer.rates = [], []
    return trainer


def plain_run(
    pruner: Pruner, accumulate: int = 1, rate: Callable[[int], float] = lambda step: LR, warmup: int = 0
) -> tuple[list[list[int]], dict[str, Tensor]]:
    """`rate`: of a step, before the pruner's factor, which counts after `warmup` steps."""
    model = make_model()
    optimizer = sgd(model)
    steps: list[list[int]] = []
    for epoch in range(EPOCHS):
        pruner.begin_epoch(epoch, model)
        model.train()
        for batch in pruner.loader:
            outputs, labels = model(batch["pixel_values"]), batch["labels"]
            losses = F.cross_entropy(outputs.logits, labels, reduction="none")
            (pruner.batch_loss(losses, batch["ids"], outputs, labels) / accumulate).backward()
            for group in optimizer.param_groups:
                group["lr"] = rate(len(steps)) * (pruner.lr_factor if len(steps) >= warmup else 1)
            steps.append(batch["ids"].tolist())
            if len(steps) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
    return steps, model.state_dict()


@pytest.mark.parametrize(("method", "workers"), [("ucb", 0), ("ucb", 1), ("infobatch", 1), ("kakurenbo", 0)])
def test_a_run_is_the_plain_loop_step_by_step(method: str, workers: int, tmp_path: Path) -> None:
    steps, weights = plain_run(make_pruner(method))
    trainer = make_trainer(make_pruner(method, workers=workers), tmp_path)
    trainer.train()
    assert trainer.steps == steps
    assert_same_weights(trainer.model.state_dict(), weights)
    if method == "ucb":
        assert trainer.state.max_steps == trainer.state.global_step == len(steps) == sum(LENGTHS)
    else:
        assert trainer.state.max_steps >= len(steps)  # it sizes its selections itself


def by_the_accelerator(steps: int) -> dict[str, Any]:
    return {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": steps}}}


@pytest.mark.parametrize(
    ("accumulate", "options"),
    [(2, {"gradient_accumulation_steps": 2}), (3, {"gradient_accumulation_steps": 3}), (2, by_the_accelerator(2))],
)
def test_gradients_are_accumulated_over_the_steps_of_the_plan(
    accumulate: int, options: dict[str, Any], tmp_path: Path
) -> None:
    """Across the ends of epochs; what is left of it in the end makes no step."""
    random = {"method": "random", "keep": 0.4, "period": 2, "final": 1, "final_mode": "full"}
    steps, weights = plain_run(make_pruner(**random), accumulate)
    assert len(steps) == 32
    trainer = make_trainer(make_pruner(**random), tmp_path, **options)
    trainer.train()
    assert trainer.steps == steps[: 32 // accumulate * accumulate]
    assert trainer.state.global_step == trainer.state.max_steps == 32 // accumulate
    for name, parameter in trainer.model.named_parameters():  # batch norm has seen what is left
        assert torch.equal(parameter, weights[name]), name


@pytest.mark.parametrize("method", ["infobatch", "kakurenbo"])
def test_accumulation_is_refused_where_selections_follow_from_training(method: str, tmp_path: Path) -> None:
    """All batches of a step are drawn before one is trained on, and so the next selection may be made."""
    with pytest.raises(UserError, match=f"gradient_accumulation_steps is 2: .* selection of method {method} too early"):
        make_trainer(make_pruner(method), tmp_path, gradient_accumulation_steps=2)
    with pytest.raises(UserError, match="gradient_accumulation_steps is 2"):
        make_trainer(make_pruner(method), tmp_path, **by_the_accelerator(2))


def test_the_factor_of_the_learning_rate_counts_after_the_warm_up(tmp_path: Path) -> None:
    """Of the schedule, to its middle in the second epoch, where samples are hidden already."""
    warmup = LENGTHS[-1] * 3 // 2  # the last epoch has all samples, as the first has here
    _, weights = plain_run(make_pruner("kakurenbo"), rate=lambda step: LR * min(1, step / warmup), warmup=warmup)
    trainer = make_trainer(
        make_pruner("kakurenbo"), tmp_path, lr_scheduler_type="constant_with_warmup", warmup_steps=warmup
    )
    trainer.train()
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, weights[name], msg=lambda found, name=name: f"{name}: {found}")


def test_the_factor_of_the_learning_rate_is_of_the_step_alone(tmp_path: Path) -> None:
    pruner = make_pruner("kakurenbo")
    total = pruner.total_steps()
    _, weights = plain_run(pruner, rate=lambda step: LR * (1 + math.cos(math.pi * step / total)) / 2)
    trainer = make_trainer(make_pruner("kakurenbo"), tmp_path, partial(cosine, steps=total))
    trainer.train()
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, weights[name], msg=lambda found, name=name: f"{name}: {found}")


@pytest.mark.parametrize("method", ["ucb", "infobatch", "kakurenbo"])
def test_a_run_goes_on_from_the_trainers_own_folder(method: str, tmp_path: Path) -> None:
    steps, weights = plain_run(make_pruner(method))
    make_trainer(make_pruner(method), tmp_path, save_strategy="steps", save_steps=7).train()
    for step in (7, 14, 21):
        trainer = make_trainer(make_pruner(method), tmp_path)
        trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert trainer.steps == steps[step:]
        assert_same_weights(trainer.model.state_dict(), weights)


def test_a_run_goes_on_from_any_folder(tmp_path: Path) -> None:
    """In output_dir, there is the state of another run."""
    own, other = tmp_path / "own", tmp_path / "other"
    steps, weights = plain_run(make_pruner())
    for folder, keep in ((own, 0.4), (other, 0.3)):
        pruner = make_pruner(**UCB | {"keep": keep})
        make_trainer(pruner, folder, save_strategy="steps", save_steps=14).train()
    trainer = make_trainer(make_pruner(), other)
    trainer.train(resume_from_checkpoint=str(own / "checkpoint-14"))
    assert trainer.steps == steps[14:]
    assert_same_weights(trainer.model.state_dict(), weights)
    shutil.rmtree(own / "checkpoint-32")  # of the end
    last = make_trainer(make_pruner(), own)
    last.train(resume_from_checkpoint=True)
    assert last.steps == steps[28:]
    with pytest.raises(ValueError, match="No valid checkpoint"):
        make_trainer(make_pruner(), tmp_path).train(resume_from_checkpoint=True)


def test_a_schedule_ends_with_the_plan(tmp_path: Path) -> None:
    trainer = make_trainer(make_pruner(), tmp_path, lr_scheduler_type="linear")
    trainer.train()
    total = sum(LENGTHS)
    assert trainer.rates == pytest.approx([LR * (total - step) / total for step in range(total)])


def test_without_ids_the_loss_is_the_models_own(tmp_path: Path) -> None:
    loader = TorchLoader(Coloured(change=scaled), BATCH, num_workers=0)
    score_loader = TorchLoader(Coloured(change=scaled_pair), 64, num_workers=0, shuffle=False, drop_last=False)
    pruner = Pruner(loader, score_loader, "ucb", epochs=EPOCHS, task=TASK, amp_dtype=None, **UCB)
    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=EPOCHS, use_cpu=True, max_grad_norm=0, report_to=[], disable_tqdm=True,
        lr_scheduler_type="constant", save_strategy="no",
    )  # fmt: skip
    model = make_model()
    PrunedTrainer(model, arguments, pruner=pruner, optimizers=(sgd(model), None)).train()
    assert_same_weights(model.state_dict(), plain_run(make_pruner())[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train_epochs": 3}, "num_train_epochs is 3 and the pruner plans 5"),
        ({"max_steps": 7}, "max_steps is 7: leave it out"),
        (
            {"label_smoothing_factor": 0.1},
            r'label_smoothing_factor is 0.1.* task=tasks.Classification\(label_smoothing=0.1, output="logits"\)',
        ),
    ],
)
def test_arguments_that_contradict_the_pruners_are_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        make_trainer(make_pruner(), tmp_path, **options)


def test_a_method_that_selects_within_batches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="selective_backprop selects within each batch"):
        make_trainer(make_pruner("selective_backprop"), tmp_path)


def test_a_loss_function_of_ones_own_is_refused_beside_the_pruners(tmp_path: Path) -> None:
    arguments = transformers.TrainingArguments(str(tmp_path), num_train_epochs=EPOCHS, use_cpu=True, report_to=[])
    with pytest.raises(UserError, match=r"compute_loss_func .* a task of your own"):
        PrunedTrainer(make_model(), arguments, pruner=make_pruner(), compute_loss_func=F.cross_entropy)


def test_a_loader_that_serves_no_mappings_is_refused(beton: Beton, tmp_path: Path) -> None:
    loader = PrunedLoader(beton.path, BATCH, shuffle=True)
    pruner = Pruner(loader, None, "random", keep=0.4, epochs=EPOCHS, task=TASK)
    with pytest.raises(UserError, match="the loader of the pruner is of type PrunedLoader: give a TorchLoader"):
        make_trainer(pruner, tmp_path)


def test_a_schedule_that_would_run_out_of_steps_is_refused(tmp_path: Path) -> None:
    model, pruner = make_model(), make_pruner()
    arguments = transformers.TrainingArguments(str(tmp_path), num_train_epochs=EPOCHS, use_cpu=True, report_to=[])
    optimizer = sgd(model)
    short = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=31)
    with pytest.raises(
        UserError, match="CosineAnnealingLR ends after 31 steps, and the run has 32: build it with T_max=32"
    ):
        PrunedTrainer(model, arguments, pruner=pruner, optimizers=(optimizer, short))
    long = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=60)
    with pytest.warns(UserWarning, match="LinearLR ends after 60 steps, and the run has 32: build it"):
        PrunedTrainer(model, arguments, pruner=pruner, optimizers=(optimizer, long))


def test_batches_that_are_no_mappings_are_refused(tmp_path: Path) -> None:
    pruner = make_pruner()
    pruner.loader = TorchLoader(Coloured(), BATCH, num_workers=0)
    with pytest.raises(UserError, match="the Trainer takes mappings"):
        make_trainer(pruner, tmp_path).train()


def test_a_folder_without_the_pruners_state_is_refused(tmp_path: Path) -> None:
    make_trainer(make_pruner(), tmp_path, save_strategy="steps", save_steps=7).train()
    (tmp_path / "checkpoint-7" / "pruner.pt").unlink()
    with pytest.raises(UserError, match=r"checkpoint-7/pruner.pt is missing"):
        make_trainer(make_pruner(), tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))


RANK = """
import json, sys
from pathlib import Path
from tests.test_adapter_transformers import make_pruner, make_trainer, transformers

folder = Path(sys.argv[1])
transformers.TrainingArguments(output_dir=str(folder), use_cpu=True).world_size  # joins the processes
trainer = make_trainer(make_pruner("random", distributed=True, keep=0.4), folder)
trainer.train()
(folder / f"{trainer.args.process_index}.json").write_text(json.dumps(trainer.steps))
"""


@pytest.mark.slow
def test_two_processes_share_each_step(tmp_path: Path) -> None:
    shares = run_ranks(RANK, tmp_path)
    expected, _ = plain_run(make_pruner("random", keep=0.4))
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == [sorted(step) for step in expected]
