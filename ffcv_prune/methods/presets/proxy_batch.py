"""Selection by a proxy, as airbench96_faster has it (Keller Jordan, github.com/KellerJordan/cifar10-airbench).

A small net, the proxy, goes through all samples in the order and with the augmentation of the epoch to come, window by
window. The highest losses of each window are selected. The proxy takes a step on them at every `stride`-th window. The
proxy never uses the main net. All its epochs can run first, or one before each epoch of the main net: the selections
are identical. Windows end with the epoch; the authors' run on from one epoch to the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ffcv_prune.errors import UserError
from ffcv_prune.methods.guards import Null
from ffcv_prune.methods.method import Method
from ffcv_prune.methods.phases import EveryEpoch
from ffcv_prune.methods.rule import Draw, Ids, Samples
from ffcv_prune.methods.selectors import Selector
from ffcv_prune.methods.sources import Source
from ffcv_prune.methods.statistics import Statistic
from ffcv_prune.methods.table import Column, ScoreTable
from ffcv_prune.settings import key


@dataclass(frozen=True, kw_only=True)
class ProxyNet(Source):
    """A pass of the proxy over all samples, in the order of the epoch, in which it trains."""

    by_proxy: ClassVar[bool] = True
    stride: int = key(4, "proxy_batch: the proxy takes a step at every so many windows", within="[1, inf)")
    proxy_model: str = key("", "proxy_batch: name of the proxy net, as model.name", needed=", the name of a small net")
    proxy_lr: float = key(0.1, "proxy_batch: peak learning rate of the proxy, scheduled as train.lr", within="(0, inf)")
    proxy_size: int = key(0, "proxy_batch: side in pixels of the proxy's images; 0: as they are", within="[0, inf)")

    def due(self, fresh: np.ndarray, selection: Ids | None) -> Ids:
        return np.arange(fresh.size)


@dataclass(frozen=True, kw_only=True)
class InOrder(Statistic):
    """The latest loss, and when it came: the n-th of all losses that were recorded."""

    columns = (Column("arrival", np.int64, -1), Column("arrivals", np.int64, 0, length=1))
    reads: ClassVar[str] = "last"

    def arrive(self, table: ScoreTable, ids: Ids) -> None:
        arrivals = table.columns["arrivals"]
        table.columns["arrival"][ids] = arrivals[0] + np.arange(ids.size)
        arrivals += ids.size


@dataclass(frozen=True, kw_only=True)
class TopOfWindows(Selector):
    """Of each `window` samples, as their losses came, the round(keep·window) highest; ties go to the lower id.

    The last window may hold fewer samples. A sample without a loss is selected.
    """

    has_fixed_size: ClassVar[bool] = False
    sized_by: ClassVar[str | None] = "keep"
    keep: float = key(0.5, "proxy_batch: share of each window that is selected", within="(0, 1]")
    window: int = key(1024, "proxy_batch: samples among which the highest losses are sought", within="[1, inf)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if round(self.keep * self.window) < 1:
            raise UserError(f"keep={self.keep} of window={self.window} selects no sample: set a larger window")

    def size(self, n: int) -> int:
        if self.window > n:
            raise UserError(f"window={self.window} is larger than the data set of {n} samples: set window={n} or less")
        windows, rest = divmod(n, self.window)
        return max(1, windows * round(self.keep * self.window) + round(self.keep * rest))

    def most(self, k: int, n: int) -> int:
        return k

    def draw(self, samples: Samples, k: int, rng: np.random.Generator, among: Ids | None) -> Draw:
        candidates = samples.candidates(among)
        arrival = samples.table.columns["arrival"][candidates]
        scores, chosen = samples.scores(candidates), arrival < 0
        order = np.argsort(arrival)[np.count_nonzero(chosen) :]
        whole = order.size - order.size % self.window
        for windows in (order[:whole].reshape(-1, self.window), order[None, whole:]):
            places = np.sort(windows)  # so that of equal losses the lower id comes first
            best = np.argsort(-np.nan_to_num(scores[places], nan=np.inf), kind="stable")
            best = best[:, : round(self.keep * windows.shape[1])]
            chosen[np.take_along_axis(places, best, axis=1)] = True
        return Draw(candidates[chosen])


METHODS = (
    Method(
        name="proxy_batch",
        source=ProxyNet(),
        statistic=InOrder(),
        selector=TopOfWindows(),
        phases=EveryEpoch(),
        guards=(Null(),),
    ),
)
