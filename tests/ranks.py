"""What one rank of `test_distributed` runs: ranks.py checks BETON | train | slow disk | die | stuck [options]."""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from tqdm import tqdm

from ffcv_prune import PrunedLoader, Pruner, collectives, config, methods, score_dataset
from ffcv_prune.data.beton import check_beton
from ffcv_prune.errors import UserError, run_command, uninterrupted
from ffcv_prune.loading.pipelines import score_pipelines
from ffcv_prune.models import build_model
from ffcv_prune.models.normalize import Normalize
from ffcv_prune.scoring.proxy import Proxy
from ffcv_prune.scoring.training_losses import TrainingLosses
from ffcv_prune.tasks import Classification
from ffcv_prune.training import trainer, watch
from ffcv_prune.training import world as world_module
from ffcv_prune.training.epoch import Stepper, evaluate, mean_loss
from ffcv_prune.training.run_folder import RunFolder
from ffcv_prune.training.stop import StopSignals
from ffcv_prune.training.world import World, join
from tests.nets import SmallNet, in_a_step

BATCH = 24  # over all ranks
DEVICE = torch.device("cpu")


def small_net(seed: int = 0) -> SmallNet:
    return SmallNet(seed=seed).to(DEVICE)


def rtol() -> float:
    """How far a loss may move with the size of its batch."""
    return 1e-5 if DEVICE.type == "cpu" else 1e-4


def tiny_resnet() -> nn.Sequential:
    return build_model("resnet_tiny", 10, [0.5] * 3, [0.25] * 3).to(DEVICE)


def share_one_gpu() -> None:
    """Let all ranks work on the first GPU, over gloo: NCCL refuses two of them on one device."""
    global DEVICE
    DEVICE = torch.device("cuda", 0)
    begin = torch.distributed.init_process_group
    torch.distributed.init_process_group = lambda *_, timeout, **__: begin("gloo", timeout=timeout)
    world_module.choose_device = lambda *_: DEVICE
    torch.backends.cudnn.allow_tf32 = False
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    world_module.prepare = torch.cuda.set_device  # without cuDNN's search, which may choose differently each time


def check_everything(path: str) -> None:
    with join(DEVICE.type) as world:
        shared, whole = loaders(path, distributed=True), loaders(path, distributed=False)
        check_order(world, shared[0], whole[0])
        check_scores(world, shared[1], whole[1])
        check_budget(world, shared, whole)
        check_training(shared, whole)
        if DEVICE.type == "cpu":  # on GPUs the last bits are not promised
            check_resuming(shared[0])
        check_buffers(shared[0])
        check_choosing(shared[0])
        check_training_losses(world, shared[0])
        check_methods(world, path, shared, whole)
        check_work_of_main(world)
        check_agreement(world, shared[0])
        check_patience(world)
        if world.is_main:
            print("all checks passed")


def loaders(path: str, distributed: bool) -> tuple[PrunedLoader, PrunedLoader]:
    """One that shuffles, and one that serves each sample once, in order."""
    ranks = torch.distributed.get_world_size() if distributed else 1

    def make(batch: int, whole: bool) -> PrunedLoader:
        pipelines = score_pipelines(check_beton(path), device=DEVICE)
        options = {"shuffle": not whole, "drop_last": not whole, "distributed": distributed, "with_ids": not whole}
        return PrunedLoader(path, batch, 1, pipelines=pipelines, **options)

    return make(BATCH // ranks, False), make(50, True)


def check_order(world: World, shared: PrunedLoader, whole: PrunedLoader) -> None:
    """Step by step, the ranks together serve the batch that one process would; nothing twice."""
    for ids in (None, np.arange(0, 203, 2)):
        shared.set_selection(ids)
        whole.set_selection(ids)
        assert len(shared) == len(whole)
        served = [batch[-1].numpy().copy() for batch in shared]
        expected = [batch[-1].numpy().copy() for batch in whole]
        for parts, batch in zip(zip(*world.gather(served), strict=True), expected, strict=True):
            assert sorted(np.concatenate(parts)) == sorted(batch)
        everything = np.concatenate([np.concatenate(part) for part in world.gather(served)])
        assert len(set(everything)) == len(everything)
        assert set(everything) <= set(shared.selection)
        assert len(shared.selection) - len(everything) < BATCH
    shared.set_selection(None)
    whole.set_selection(None)


def check_scores(world: World, shared: PrunedLoader, whole: PrunedLoader) -> None:
    """Each rank has all losses, bit by bit the same; so the selections are."""
    losses, expected = score_dataset(small_net(), shared), score_dataset(small_net(), whole)
    np.testing.assert_allclose(losses, expected, rtol=rtol())
    assert all((other == losses).all() for other in world.gather(losses))
    counts = world.gather(sum(len(labels) for _, labels in shared))
    assert sum(counts) == 203
    assert max(counts) - min(counts) <= 1
    task = Classification()
    assert evaluate(small_net(), shared, task, None) == evaluate(small_net(), whole, task, None)
    state = methods.build("epsilon_greedy", epsilon=0.2, keep=60 / 203).start(203, epochs=1)
    state.record(None, losses, epoch=0)
    selection = state.select(0)
    assert selection is not None
    ids = selection.ids
    assert all((other == ids).all() for other in world.gather(ids))


def check_budget(world: World, shared: tuple[PrunedLoader, ...], whole: tuple[PrunedLoader, ...]) -> None:
    """Ranks that share a budgeted pass score what one process would, and select alike."""
    tables = []
    for pair in (shared, whole):
        pruner = Pruner(*pair, "ucb", keep=0.5, period=1, epochs=3, amp_dtype=None, score_budget=0.4, score_revisit=4)
        for epoch in range(3):
            pruner.begin_epoch(epoch, small_net(epoch))
        tables.append(pruner.state.table)
        pair[0].set_selection(None)
    own, expected = tables
    assert np.count_nonzero(own.last_scored == 2) == 82
    np.testing.assert_array_equal(own.last_scored, expected.last_scored)
    np.testing.assert_allclose(own.mean, expected.mean, rtol=rtol())
    assert all((other == own.mean).all() for other in world.gather(own.mean))


def check_training(shared: tuple[PrunedLoader, ...], whole: tuple[PrunedLoader, ...]) -> None:
    """An epoch on all ranks moves the weights as one on a single process does."""
    results = []
    for loader in (shared[0], whole[0]):
        loader.set_epoch(0)
        torch.manual_seed(0)
        model = nn.Sequential(Normalize([0.5] * 3, [0.25] * 3), nn.Flatten(), nn.Linear(768, 10)).to(DEVICE)
        stepper = Stepper(model, config.Train(epochs=1, lr=0.01), None)
        if loader.world_size > 1:
            stepper.distribute()
        with tqdm(disable=True) as bar:
            loss = stepper.train_epoch(loader, 0, mean_loss, bar, lambda: None)
        results.append((loss, model[2].weight.detach()))
    (loss, weight), (expected_loss, expected_weight) = results
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    torch.testing.assert_close(weight, expected_weight, rtol=1e-4, atol=1e-5)


def check_resuming(loader: PrunedLoader) -> None:
    """A process that goes on in the middle of an epoch adds the gradients in the order of one that never stopped."""

    def make() -> Stepper:
        torch.manual_seed(0)
        model = tiny_resnet()
        stepper = Stepper(model, config.Train(epochs=1, lr=0.01), None)
        stepper.distribute()
        return stepper

    def train(stepper: Stepper, after_step: Callable[[], None]) -> dict[str, torch.Tensor]:
        with tqdm(disable=True) as bar:
            stepper.train_epoch(loader, 0, mean_loss, bar, after_step)
        return stepper.model.state_dict()

    loader.set_epoch(0)
    whole, states = make(), []
    expected = train(whole, lambda: states.append(copy.deepcopy(whole.state_dict())))
    stepper = make()
    stepper.load_state_dict(states[2])
    loader.set_epoch(0, 3)
    for name, tensor in train(stepper, lambda: None).items():
        assert torch.equal(tensor, expected[name]), name


def check_buffers(loader: PrunedLoader) -> None:
    """No step shares the buffers: the main rank's are as if each did, and at the end of the epoch everybody's."""
    states = []
    for shares in (False, True):
        torch.manual_seed(0)
        stepper = Stepper(tiny_resnet(), config.Train(epochs=1, lr=0.01), None)
        stepper.distribute()
        spread = stepper.forward
        assert isinstance(spread, nn.parallel.DistributedDataParallel)
        assert not spread.broadcast_buffers and spread.gradient_as_bucket_view
        spread.broadcast_buffers = shares
        loader.set_epoch(0)
        with tqdm(disable=True) as bar:
            stepper.train_epoch(loader, 0, mean_loss, bar, lambda: None)
        states.append(stepper.model.state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
        first = tensor.clone()
        torch.distributed.broadcast(first, src=0)
        assert torch.equal(first, tensor), name


def check_choosing(loader: PrunedLoader) -> None:
    """What a rank chooses by its model after a resume is what it would have chosen without."""

    def make() -> tuple[Stepper, Pruner]:
        torch.manual_seed(0)
        model = tiny_resnet()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # the statistics are those of the rank's last batch: they differ as far as can be
        stepper = Stepper(model, config.Train(epochs=2, lr=0.05), None)
        stepper.distribute()
        pruner = Pruner(loader, None, "selective_backprop", epochs=2, amp_dtype=None, start=0, end=1, interrupt=0)
        for epoch in range(2):  # the first trains on all of each batch
            pruner.begin_epoch(epoch, stepper.model)
        return stepper, pruner

    def train(stepper: Stepper, pruner: Pruner, first: int, after_step: Callable[[], None]) -> list[list[int]]:
        chosen: list[list[int]] = []

        def choose(*batch: torch.Tensor) -> Any:
            made = pruner.choose(stepper.model, *batch)
            assert made is not None
            chosen.append(made[2].tolist())
            return made

        loader.set_epoch(1, first)
        with tqdm(disable=True) as bar:
            stepper.train_epoch(loader, 1, mean_loss, bar, after_step, choose=choose)
        return chosen

    states: list[dict[str, Any]] = []
    whole, pruner = make()
    expected = train(whole, pruner, 0, lambda: states.append(copy.deepcopy(whole.state_dict())))
    shared = [states[2]]
    torch.distributed.broadcast_object_list(shared, src=0)  # the main rank alone saves
    stepper, again = make()
    stepper.load_state_dict(shared[0])
    again._checks.batch = 3
    assert train(stepper, again, 3, lambda: None) == expected[3:]
    assert all(len(chosen) < BATCH // loader.world_size for chosen in expected)


def check_training_losses(world: World, loader: PrunedLoader) -> None:
    """Each sample's latest loss, whichever rank had it, before or after a resume; the same on all ranks."""
    recorded, own = TrainingLosses(203, distributed=True, facts=1), {}
    for epoch, selection in enumerate((np.arange(150), None, np.arange(40, 203))):
        loader.set_selection(selection)
        loader.set_epoch(epoch)
        if epoch == 1:
            state = recorded.state_dict()
            recorded = TrainingLosses(203, distributed=True, facts=1)
            recorded.load_state_dict(state)
        for _, _, ids in loader:
            losses = (ids + 1000 * epoch).float() / 3
            recorded.record(torch.stack([losses, -losses]), ids)
            own |= dict(zip(ids.tolist(), losses.tolist(), strict=True))
    latest = {i: max(part.get(i, 0.0) for part in world.gather(own)) for i in range(203)}  # they rise by epoch
    ids, (losses, facts) = recorded.latest()
    assert ids.tolist() == [i for i in range(203) if latest[i]]
    assert losses.tolist() == [latest[i] for i in ids.tolist()]
    assert (facts == -losses).all()
    assert all((other == losses).all() for other in world.gather(losses))
    recorded.clear()
    assert not recorded.latest()[0].size
    loader.set_selection(None)


# Whether the ranks select what one process would: a rule that compares a sample with its batch sees a rank's own.
FIELD: list[tuple[str, dict[str, Any], bool]] = [
    ("infobatch", {"null": True}, True),
    ("orderdp", {"max_age": 2}, True),
    ("kakurenbo", {"confidence": 0.0}, True),
    ("proxy_batch", {"window": 64}, True),
    ("repb", {"ratio": 0.4}, False),
    ("bls", {}, False),
]


def check_methods(world: World, path: str, shared: tuple[PrunedLoader, ...], whole: tuple[PrunedLoader, ...]) -> None:
    """Ranks select alike; of the batch that selective backprop shares out, each chooses from its own part."""
    for name, parameters, same in FIELD:
        own, alone = (selections(name, parameters, path, pair, world.group) for pair in (shared, whole))
        assert all(other == own for other in world.gather(own))
        assert (own == alone) == same, name
    pruner = Pruner(shared[0], None, "selective_backprop", epochs=2, amp_dtype=None, start=0, end=1, interrupt=0)
    for epoch in range(2):
        pruner.begin_epoch(epoch, small_net())
        for images, labels, ids in shared[0]:
            chosen = pruner.choose(small_net(), images, labels, ids)
            assert chosen is not None and np.isin(chosen[2], ids).all()
            assert len(chosen[2]) == (len(ids) // 2 if epoch else len(ids))
    assert pruner.values.costs["forwards"] == 203 // BATCH * BATCH  # of all ranks, in the second epoch


def asked_groups(patch: pytest.MonkeyPatch) -> list[Any]:
    """The group of every question that is not about tensors of a device, from here on."""
    asked: list[Any] = []
    for name in ("gather", "work_of_main"):
        ask = getattr(collectives, name)
        patch.setattr(collectives, name, lambda what, group=None, ask=ask: (asked.append(group), ask(what, group))[1])
    return asked


def selections(
    name: str, parameters: dict[str, Any], path: str, pair: tuple[PrunedLoader, ...], group: Any
) -> list[list[int]]:
    """Those of five epochs, of losses that follow from sample and epoch."""
    loader, score_loader = pair
    method, proxy = methods.build(name, **parameters), None
    if method.source.by_proxy:
        net = small_net(1)
        proxy = Proxy(net, torch.optim.SGD(net.parameters(), lr=0.05), amp_dtype=None)
        pipelines = score_pipelines(check_beton(path), device=DEVICE)
        score_loader = PrunedLoader(path, 64, 1, pipelines=pipelines, shuffle=True, drop_last=False)
    pruner = Pruner(loader, score_loader, method, epochs=5, amp_dtype=None, proxy=proxy, group=group)
    found = []
    for epoch in range(5):
        with pytest.MonkeyPatch.context() as patch:
            asked = asked_groups(patch)
            swap = pruner.begin_epoch(epoch, small_net())
        assert loader.world_size == 1 or (asked and set(asked) == {group})
        assert swap is not None
        found.append(swap.ids.tolist())
        losses = torch.from_numpy(np.random.default_rng(epoch).gamma(1, 1, 203)).to(DEVICE)
        for _, labels, ids in loader:
            pruner.batch_loss(losses[ids], ids, nn.functional.one_hot(labels, 10).float(), labels)
    loader.set_selection(None)
    return found


def check_agreement(world: World, loader: PrunedLoader) -> None:
    """What differs between ranks is an error on all of them that names the rank."""
    last = world.size - 1
    pruner = Pruner(loader, None, "random", epochs=200, seed=world.rank // last, group=world.group)
    for _ in range(2):
        with pytest.raises(UserError, match=rf"epoch 0, rank {last} selected other samples than rank 0"):
            pruner.begin_epoch(0, small_net())
        assert pruner.state.selection is None and len(loader.selection) == 203
    with pytest.raises(UserError, match=rf"rank {last} has another seed than rank 0"):
        world.check_same("seed", world.rank // last)
    message = "no such file" if world.rank == last else f"rank {last}: no such file"
    with pytest.raises(UserError, match=f"^{message}$"), world.together():
        if world.rank == last:
            raise UserError("no such file")
    assert world.agree(world.rank) == last
    assert world.share(world.rank) == 0


def check_patience(world: World) -> None:
    """Where one rank works, the others wait for it longer than they would in a question."""
    hasty = replace(world, group=torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=3)))
    with hasty.together():
        time.sleep(4 if world.rank == 1 else 0)
    assert hasty.agree(world.rank) == world.size - 1


def check_work_of_main(world: World) -> None:
    """The others wait for the main rank longer than the group's timeout, as long as it tells that it works."""
    hasty = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collectives, "BEAT", 0.5)
        with collectives.work_of_main("a long pass", hasty) as still_working:
            for _ in range(20 if world.is_main else 0):
                time.sleep(0.2)
                still_working()
        message = "^own$" if world.is_main else "^rank 0 failed in a long pass: see its output$"
        with pytest.raises(UserError, match=message), collectives.work_of_main("a long pass", hasty):
            if world.is_main:
                raise UserError("own")
    assert world.agree(world.rank) == world.size - 1


class SavingTrainer(trainer.Trainer):
    """Leaves every rank's final weights for the test to compare."""

    def run(self, folder: RunFolder | None, stop: StopSignals) -> None:
        with pytest.MonkeyPatch.context() as patch:
            asked = asked_groups(patch)
            super().run(folder, stop)
        assert None not in asked, "a question over the group of the gradients"
        torch.save(self.stepper.model.state_dict(), Path(self.config.run.out) / f"rank_{self.world.rank}.pt")


class SlowDiskTrainer(SavingTrainer):
    """Writes what belongs to an epoch for longer than a rank may be silent in a question."""

    def run(self, folder: RunFolder | None, stop: StopSignals) -> None:
        hasty = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=5))
        self.world = replace(self.world, group=hasty)
        with pytest.MonkeyPatch.context() as patch:
            for name in ("save_selection", "log"):
                write = getattr(RunFolder, name)
                patch.setattr(RunFolder, name, lambda *own, write=write: (time.sleep(7), write(*own))[1])
            super().run(folder, stop)


def die_in_an_epoch(module: nn.Module, _: object) -> None:
    if in_a_step(module) and "normalize" in dict(module.named_children()) and os.environ["RANK"] == "1":
        os._exit(3)


def wait_for_ever(module: nn.Module, _: object) -> None:
    """As for a device whose kernels wait for those of a rank that is gone; there Ctrl-C and exceptions do not come."""
    if in_a_step(module) and "normalize" in dict(module.named_children()):
        if os.environ["RANK"] == "1":
            os._exit(3)
        with uninterrupted():
            time.sleep(1000)


def main() -> None:
    torch.set_num_threads(1)
    mode, *arguments = sys.argv[1:]
    if mode == "checks on one gpu":
        share_one_gpu()
    if mode.startswith("checks"):
        check_everything(*arguments)
        return
    if mode == "die":
        nn.modules.module.register_module_forward_pre_hook(die_in_an_epoch)
    if mode == "stuck":
        watch.GRACE = 2.0
        nn.modules.module.register_module_forward_pre_hook(wait_for_ever)
    trainer.Trainer = SlowDiskTrainer if mode == "slow disk" else SavingTrainer
    own, resume = config.read_command(arguments)
    trainer.train(own, resume=resume)


if __name__ == "__main__":
    run_command(main)
