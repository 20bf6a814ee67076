"""InfoBatch: Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning", ICLR 2024.

Each sample of below-mean training loss is dropped with probability r; a kept one of those weighs 1/(1−r). Selections
are made anew in every epoch, until the last ones, on all data. It decides itself how many samples it takes, so that
no guard can ask it for a number of them. It saves at most r of the samples, less where losses are spread evenly.
"""

from ffcv_prune.methods.guards import Null
from ffcv_prune.methods.method import Method
from ffcv_prune.methods.phases import UntilFull
from ffcv_prune.methods.selectors import DropBelowMean
from ffcv_prune.methods.sources import Training
from ffcv_prune.methods.statistics import LastOfTraining
from ffcv_prune.methods.weights import InverseProbability

METHODS = (
    Method(
        name="infobatch",
        source=Training(),
        statistic=LastOfTraining(),
        selector=DropBelowMean(),
        weight=InverseProbability(),
        phases=UntilFull(),
        guards=(Null(),),
    ),
)
