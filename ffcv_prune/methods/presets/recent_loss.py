"""The highest training losses as they were seen last, and a random share: our own rule.

Selections are made anew before every epoch, so that no loss is far out of date. A third of each is random, so that no
sample is out of reach. The first fifth of the run is random: losses of an untrained model say little. Scores cost
nothing, for training has paid for them.
"""

from ffcv_prune.methods.guards import ClassFloor, LossCap, MaxAge, Null, RandomShare
from ffcv_prune.methods.method import Method
from ffcv_prune.methods.phases import Periodic
from ffcv_prune.methods.selectors import TopK
from ffcv_prune.methods.sources import Training
from ffcv_prune.methods.statistics import LastOfTraining

METHODS = (
    Method(
        name="recent_loss",
        source=Training(),
        statistic=LastOfTraining(),
        selector=TopK(),
        phases=Periodic(keep=0.5, period=1, warmup=0.2),
        guards=(Null(), RandomShare(random_share=0.3), MaxAge(), LossCap(), ClassFloor()),
    ),
)
