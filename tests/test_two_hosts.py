"""Two machines, as network namespaces with a cable between them: a run is trained, stopped, cut off and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ffcv_prune import config
from ffcv_prune.training.trainer import train
from ffcv_prune.training.watch import LOST_RANK
from tests.betons import Beton, write_run
from tests.processes import wait_for_epochs

ROOT = Path(__file__).resolve().parent.parent
CABLE, EPOCHS = "cable", 200

pytestmark = [pytest.mark.slow, pytest.mark.requires_root, pytest.mark.timeout(600)]


class Host:
    """A network namespace, whose processes reach each other host by its address only.

    Attributes:
        address: of its end of the cable.
    """

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        ip("netns", "add", name)

    def connect(self) -> None:
        ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", CABLE)
        ip("-n", self.name, "link", "set", CABLE, "up")
        ip("-n", self.name, "link", "set", "lo", "up")

    def torchrun(self, rendezvous: str, arguments: Sequence[str]) -> subprocess.Popen[str]:
        """One process of two."""
        command = [
            *("ip", "netns", "exec", self.name, sys.executable, "-m", "torch.distributed.run", "--nnodes=2"),
            *("--nproc_per_node=1", "--rdzv_backend=c10d", f"--rdzv_endpoint={rendezvous}", "--rdzv_id=two_hosts"),
            # By itself torchrun compares the endpoint with the address of its host name, which is another here.
            f"--rdzv_conf=is_host={int(rendezvous.startswith(self.address))}",
            *(f"--local_addr={self.address}", str(ROOT / "train_imagenet.py"), *arguments),
        ]
        own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": CABLE}
        return subprocess.Popen(
            command, env=os.environ | own, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def processes(self) -> list[int]:
        return [int(pid) for pid in ip("netns", "pids", self.name).split()]

    def vanish(self) -> None:
        """As when its power fails: nothing that it sends arrives any more, not even that a connection is closed."""
        ip("-n", self.name, "link", "set", CABLE, "down")
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)

    def remove(self) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        ip("netns", "del", self.name)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20).stdout


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    names, made = [f"ffcv_prune_{os.getpid()}_{end}" for end in "ab"], []
    try:
        try:
            made += [Host(name, f"10.213.0.{number}") for number, name in enumerate(names, 1)]
            ip("link", "add", CABLE, "netns", names[0], "type", "veth", "peer", "name", CABLE, "netns", names[1])
            for host in made:
                host.connect()
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", "") or str(error)
            pytest.skip(f"needs ip netns and virtual cables: {reason.strip()}")
        yield made[0], made[1]
    finally:
        for host in made:
            host.remove()


def start(hosts: tuple[Host, Host], port: int, arguments: Sequence[str]) -> list[subprocess.Popen[str]]:
    return [host.torchrun(f"{hosts[0].address}:{port}", arguments) for host in hosts]


def read_log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def status_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())


def test_two_hosts_train_stop_lose_one_and_one_goes_on(
    hosts: tuple[Host, Host], beton: Beton, test_beton: Beton, tmp_path: Path
) -> None:
    pruning = "method: epsilon_greedy, keep: 0.5, period: 5"
    more = {"data": "num_workers: 1", "run": f"out: {tmp_path}, save_every: 0"}
    path = write_run(tmp_path / "two.yaml", beton, test_beton, EPOCHS, prune=pruning, **more)
    run = tmp_path / "two"

    # Training, with a selection and saves; then SIGTERM at the host that does not write.
    first, second = start(hosts, 29_411, ["--config", str(path)])
    wait_for_epochs(first, run / "log.jsonl", 2, 120)
    second.send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=90)[1] for process in (first, second)]
    assert status_of(run)["status"] == "interrupted", errors
    assert f"--resume {run}" in errors[0]
    assert "exitcode  : 75" in errors[0]
    stopped = len(read_log(run))
    assert 2 <= stopped < EPOCHS
    selection = np.load(run / "selections" / "epoch_0000.npy")
    assert len(selection) == round(0.5 * len(beton))

    # On two hosts again; then one of them vanishes, and the other one ends by itself.
    first, second = start(hosts, 29_412, ["--resume", str(run)])
    wait_for_epochs(first, run / "log.jsonl", stopped + 2, 120)
    hosts[1].vanish()
    vanished = time.monotonic()
    error = first.communicate(timeout=150)[1]
    assert time.monotonic() - vanished < 120
    assert f"error: {LOST_RANK}" in error
    assert (status_of(run)["status"], status_of(run)["reason"]) == ("failed", LOST_RANK)
    lost = len(read_log(run))
    assert stopped + 2 <= lost < EPOCHS

    # On one host, to the end.
    own, folder = config.read_command(["--resume", str(run)])
    assert train(own, resume=folder).folder == run
    rows = read_log(run)
    assert [row["epoch"] for row in rows] == list(range(EPOCHS))
    assert {row["keep"] for row in rows} == {rows[0]["keep"]}
    np.testing.assert_array_equal(np.load(run / "selections" / "epoch_0000.npy"), selection)
    assert status_of(run)["status"] == "finished"
