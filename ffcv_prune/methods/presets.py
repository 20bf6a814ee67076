"""Names for methods."""

from __future__ import annotations

from typing import Any

from ffcv_prune.errors import UserError, nearest
from ffcv_prune.methods.method import Method
from ffcv_prune.methods.phases import AllData, UntilFull
from ffcv_prune.methods.selectors import DropBelowMean, EpsilonGreedy, TopK, Uniform
from ffcv_prune.methods.sources import Training
from ffcv_prune.methods.statistics import FixedRandom, FixedScores, FixedUpperBound, Last, MovingMean, UpperBound
from ffcv_prune.methods.weights import InverseProbability

PRESETS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(name="full", statistic=Last(), selector=Uniform(), phases=AllData(), guards=()),
        Method(name="random", statistic=Last(), selector=Uniform()),
        Method(name="uncertainty", statistic=Last(), selector=TopK()),
        Method(name="ema", statistic=MovingMean(), selector=TopK()),
        Method(name="epsilon_greedy", statistic=MovingMean(), selector=EpsilonGreedy()),
        Method(name="ucb", statistic=UpperBound(), selector=TopK()),
        Method(
            name="infobatch",
            source=Training(),
            statistic=Last(),
            selector=DropBelowMean(),
            weight=InverseProbability(),
            phases=UntilFull(),
            guards=(),
        ),
        Method(name="static_random", statistic=FixedRandom(), selector=TopK()),
        Method(name="static", statistic=FixedScores(), selector=TopK()),
        Method(name="static_epsilon_greedy", statistic=FixedScores(), selector=EpsilonGreedy()),
        Method(name="static_ucb", statistic=FixedUpperBound(), selector=TopK()),
    )
}


def build(name: str, /, **parameters: Any) -> Method:
    """Return the method called `name` with these parameters in its parts, e.g. ``build("ucb", keep=0.3, c=1.0)``.

    `score_source` ("pass", "training" or "both") is the source of its values; it is fixed where the method is made
    for one. Raises `UserError` for an unknown name or parameter, naming the nearest, for a value out of range, and
    for parts that contradict each other.
    """
    if name not in PRESETS:
        raise UserError(f'unknown method "{name}"{nearest(name, PRESETS)}')
    method = PRESETS[name]
    source = parameters.pop("score_source", None)
    if source is not None and not method.source.passes:
        raise UserError(f'method "{name}" takes the losses of training: leave out score_source')
    return method.replace(source, **parameters)
