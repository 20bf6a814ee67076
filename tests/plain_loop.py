"""The run that each framework's adapter is held against: a loop without a framework, step by step the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import indent
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffcv_prune import Pruner, TorchLoader
from tests.nets import SmallNet
from tests.torch_data import Coloured, N

ROOT = Path(__file__).resolve().parent.parent
EPOCHS, BATCH, LR = 5, 16, 0.05
# Two selections by score, an epoch of a fresh random one, then one of all data: longer than any before.
UCB = {"keep": 0.4, "period": 2, "warmup": 1, "final": 1, "final_mode": "full"}
LENGTHS = [81 // BATCH] * 4 + [N // BATCH]


def make_pruner(method: str = "ucb", workers: int = 0, distributed: bool = False, **parameters: Any) -> Pruner:
    """On 203 small images, with a loader that serves (image, label, id)."""
    options: dict[str, Any] = {"num_workers": workers, "distributed": distributed}
    loader = TorchLoader(Coloured(), BATCH // (2 if distributed else 1), with_ids=True, **options)
    score_loader = TorchLoader(Coloured(), 64, shuffle=False, drop_last=False, **options)
    parameters = parameters or (UCB if method == "ucb" else {})
    return Pruner(loader, score_loader, method, epochs=EPOCHS, amp_dtype=None, **parameters)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)


def losses_of(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def plain_run(
    pruner: Pruner, after_step: Callable[[torch.optim.Optimizer], None] = lambda optimizer: None
) -> tuple[list[list[int]], dict[str, Tensor]]:
    """(ids of each step, the weights in the end)."""
    model = SmallNet()
    optimizer = make_optimizer(model)
    steps = []
    for epoch in range(EPOCHS):
        pruner.begin_epoch(epoch, model)
        model.train()
        for images, labels, ids in pruner.loader:
            pruner.batch_loss(losses_of(model(images), labels), ids).backward()
            optimizer.step()
            optimizer.zero_grad()
            after_step(optimizer)
            steps.append(ids.tolist())
    return steps, model.state_dict()


def assert_same_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


NO_THREADS = """
import gc, os, torch
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
gc.collect()
names = [open(f"/proc/self/task/{thread}/comm").read() for thread in os.listdir("/proc/self/task")]
assert not any("gloo" in name for name in names), names
"""


def run_ranks(script: str, folder: Path) -> list[Any]:
    """Run a script, with the folder as its argument, as two processes; returns what each wrote to RANK.json."""
    # In a function, with which the model ends. One that lives until Python exits keeps torch's threads for the process
    # group, and these may abort the process then: "terminate called without an active exception".
    (folder / "rank.py").write_text(f"def main():\n{indent(script, '    ')}\nmain()\n{NO_THREADS}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(folder / "rank.py"), str(folder)], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
