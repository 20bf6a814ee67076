"""Rankings made before training, alone and in the paper's rules (appendix B)."""

from ffcv_prune.methods.method import Method
from ffcv_prune.methods.selectors import EpsilonGreedy, TopK
from ffcv_prune.methods.statistics import FixedRandom, FixedScores, FixedUpperBound

METHODS = (
    Method(name="static_random", statistic=FixedRandom(), selector=TopK()),
    Method(name="static", statistic=FixedScores(), selector=TopK()),
    Method(name="static_epsilon_greedy", statistic=FixedScores(), selector=EpsilonGreedy()),
    Method(name="static_ucb", statistic=FixedUpperBound(), selector=TopK()),
)
