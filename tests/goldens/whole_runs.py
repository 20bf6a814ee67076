"""Compare whole training runs of two checkouts on this machine, bit by bit: selections and final weights.

python tests/goldens/whole_runs.py OLD_CHECKOUT NEW_CHECKOUT

Prints one line a case and exits with 1 if any differs. A checkout with ffcv_prune/pruning takes the old keys.
The methods that prune by static scores read a file that their own checkout has computed.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

KEEP = {"keep": "0.5", "period": "2"}
CASES: dict[str, dict[str, str]] = {
    "full": {},
    "random": KEEP,
    "uncertainty": KEEP,
    "ema": KEEP,
    "epsilon_greedy": KEEP,
    "ucb": KEEP,
    "ucb both": KEEP | {"score_source": "both"},
    "infobatch": {"ratio": "0.5", "delta": "0.5"},
    "ucb class floor": KEEP | {"class_floor": "0.8"},
    "ucb random share": KEEP | {"random_share": "0.3"},
    "ucb loss cap": KEEP | {"loss_cap": "0.1"},
    "static_random": KEEP,
    "static": KEEP,
    "static_epsilon_greedy": KEEP,
    "static_ucb": KEEP,
}
# Methods that came later: compared where both checkouts have them.
LATER: dict[str, dict[str, str]] = {
    **{name: {"keep": "0.5"} for name in ("glws", "p_sgd", "c_sgd", "rs2", "evolved")},
    **{name: {} for name in ("bls", "srd", "ies", "kakurenbo", "orderdp", "repb", "seta")},
    "recent_loss": {"keep": "0.5", "warmup": "1"},
    "selective_backprop": {"start": "0", "end": "1"},
    "proxy_batch": {"window": "64", "proxy_model": "basic_cnn", "stride": "2"},
}
PRESETS = "from ffcv_prune import methods; print(*methods.PRESETS)"
SCORED_BEFORE = ("static", "static_epsilon_greedy", "static_ucb")
BROKEN_OFF = ("ucb", "ucb both", "infobatch", "selective_backprop", "proxy_batch")
WRITE = """
import sys
from pathlib import Path
from tests.betons import write_beton
for name, n, seed in (("train", 400, 0), ("test", 80, 1)):
    write_beton(Path(sys.argv[1]) / f"{name}.beton", n=n, size=32, classes=4, seed=seed)
"""


def start(checkout: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Python in the checkout and with its code, on one thread, on which sums depend."""
    env = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *arguments], cwd=checkout, env=env, stdout=subprocess.DEVNULL)


def train(checkout: Path, data: Path, out: Path, case: str, how: str) -> Path:
    """Train, broken off and resumed or by two processes if `how` says so; return the run's folder."""
    old = (checkout / "ffcv_prune" / "pruning").exists()
    name = case.split()[0]
    keys = (CASES | LATER)[case]
    if old:
        name = "none" if name == "full" else name
        if name == "infobatch":
            keys = keys | {"period": "1", "score_source": "training"}
    section = {"policy" if old else "method": name} | keys
    if name in SCORED_BEFORE:
        section |= {"scores": str(out / "scores.npy")}
    run = out / f"{case} {how}".replace(" ", "_")
    config = out / f"{run.name}.yaml"
    config.write_text(
        f"run: {{name: {run.name}, out: {out}, save_every: 0}}\n"
        f"data: {{train: {data}/train.beton, test: {data}/test.beton, augment: pad_crop_flip, num_workers: 1}}\n"
        "model: {name: basic_cnn, classes: 4}\n"
        'train: {epochs: 6, batch_size: 32, lr: 0.02, device: cpu, amp: "off"}\n'
        f"prune: {{{', '.join(f'{key}: {value}' for key, value in section.items())}}}\n"
        "static: {method: el2n, models: 2, epochs: 1}\n"
    )
    if name in SCORED_BEFORE and start(checkout, "-m", "ffcv_prune.static_scores", "--config", str(config)).wait():
        sys.exit(f"{checkout}: the static scores could not be computed")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if how == "two processes" else []
    process = start(checkout, *launcher, "train_imagenet.py", "--config", str(config))
    if how == "resumed":
        log = run / "log.jsonl"
        while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= 2):
            time.sleep(0.001)
        time.sleep(0.02)  # into the epoch
        process.send_signal(signal.SIGTERM)
        if process.wait() != 75:
            sys.exit(f"{checkout}: {case} ended before it could be broken off")
        process = start(checkout, "train_imagenet.py", "--resume", str(run))
    if process.wait():
        sys.exit(f"{checkout}: {case} {how} failed with {process.returncode}")
    return run


def presets(checkout: Path) -> set[str]:
    """The names of its methods; none where it has no such table."""
    env = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run([sys.executable, "-c", PRESETS], cwd=checkout, env=env, capture_output=True, text=True)
    return set(done.stdout.split())


def outcome(run: Path) -> dict[str, str]:
    """Digests of the selection of every epoch that made one, of static scores if there are any, and of the weights."""
    arrays = {file.stem: file for file in (run / "selections").iterdir()}
    by_model = [run.parent / name for name in ("scores.trials.npy", "scores.npy")]  # then, and now
    if by_model[1].exists():
        arrays["scores"] = by_model[0] if by_model[0].exists() else by_model[1]
    found = {name: hashlib.blake2b(np.load(file).tobytes()).hexdigest() for name, file in arrays.items()}
    weights = hashlib.blake2b()
    for name, tensor in sorted(torch.load(run / "weights.pt", weights_only=True).items()):
        weights.update(name.encode() + tensor.numpy().tobytes())
    return found | {"weights": weights.hexdigest()}


def main(old: Path, new: Path) -> int:
    different = 0
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        if start(old, "-c", WRITE, folder).wait():
            sys.exit("the data could not be written")
        cases = [*CASES, *sorted(LATER.keys() & presets(old) & presets(new))]
        runs = [(case, "whole") for case in cases] + [(case, "resumed") for case in BROKEN_OFF if case in cases]
        for case, how in [*runs, ("ucb", "two processes")]:
            results = []
            for side, checkout in (("old", old), ("new", new)):
                (data / side).mkdir(exist_ok=True)
                results.append(outcome(train(checkout, data, data / side, case, how)))
            where = sorted(k for k in results[0].keys() | results[1].keys() if results[0].get(k) != results[1].get(k))
            different += bool(where)
            print(f"{case} {how}: {'DIFFERENT in ' + ', '.join(where) if where else 'equal'}", flush=True)
    return bool(different)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()))
