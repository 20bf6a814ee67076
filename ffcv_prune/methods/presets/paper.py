"""The methods of the paper: Raju, Daruwalla, Lipasti, "Accelerating Deep Learning with Dynamic Data Pruning", 2021."""

from ffcv_prune.methods.method import Method
from ffcv_prune.methods.phases import AllData
from ffcv_prune.methods.selectors import EpsilonGreedy, TopK, Uniform
from ffcv_prune.methods.statistics import Last, LastOfTraining, MovingMean, UpperBound

METHODS = (
    Method(name="full", statistic=LastOfTraining(), selector=Uniform(), phases=AllData(), guards=()),
    Method(name="random", statistic=LastOfTraining(), selector=Uniform()),
    Method(name="uncertainty", statistic=Last(), selector=TopK()),
    Method(name="ema", statistic=MovingMean(), selector=TopK()),
    Method(name="epsilon_greedy", statistic=MovingMean(), selector=EpsilonGreedy()),
    Method(name="ucb", statistic=UpperBound(), selector=TopK()),
)
