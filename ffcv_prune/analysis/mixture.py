"""Always, sometimes and never samples: three truncated normals fitted to how often samples were selected.

Paper, section 4.2 and Fig. 3: "We fit a mixture of three truncated normal distributions (between zero and the total
number of checkpoints)", "we use the Metropolis-Hastings algorithm with 1000 samples and 3 chains (averaged)".
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ffcv_prune.errors import UserError

GROUPS = ("never", "sometimes", "always")
OUTER = 0.1  # of [0, selections], to both sides: where a component's mean makes it "never" or "always"
RHAT_LIMIT = 1.1  # Gelman and Rubin's; above, the chains disagree, and no sample gets a label
MIN_SELECTIONS = 4  # below, three components have as many parameters as there are counts
TUNE = 3000  # steps before the samples, in which the proposals find their scale
DRAWS, CHAINS = 1000, 3  # the paper's
THIN = 5  # steps from one kept sample to the next: neighbours of a random walk say nearly the same

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Mixture:
    """The posterior of the mixture: draws of all chains, components ordered by their means in every draw.

    Three components are fitted whether or not there are three groups, so their order alone names none of them. A
    component is "never" or "always" where its truncated mean lies in the outer tenth of [0, selections]. Any other
    component is "sometimes". A group may be empty or have several components.

    Attributes:
        selections: C, the largest possible count.
        weights: float64[draws, 3], shares of the samples; rows sum to 1.
        means, deviations: float64[draws, 3], of the normals before truncation, in selections.
        rhat: the largest split R-hat of these nine.
    """

    selections: int
    weights: Floats
    means: Floats
    deviations: Floats
    rhat: float

    @property
    def agrees(self) -> bool:
        """Whether the chains agree, so that the fit can be relied on."""
        return self.rhat <= RHAT_LIMIT

    @cached_property
    def component_masses(self) -> Floats:
        """float64[3, C + 1]: the posterior mean share of all samples that are of a component and have a count."""
        joint = np.zeros((3, self.selections + 1))
        for weights, means, deviations in zip(self.weights, self.means, self.deviations, strict=True):
            joint += weights[:, None] * bin_masses(means, deviations, self.selections)
        return joint / len(self.weights)

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """The group of each component, int64[3], an index into `GROUPS`."""
        masses = self.component_masses
        means = masses @ np.arange(self.selections + 1) / masses.sum(axis=1)
        return np.digitize(means, np.array([OUTER, 1 - OUTER]) * self.selections)

    def masses(self) -> Floats:
        """float64[3, C + 1]: the posterior mean share of all samples that are in a group and have a count."""
        return self._members() @ self.component_masses

    def responsibilities(self) -> Floats:
        """float64[C + 1, 3]: the probability of each group for a sample with each count; rows sum to 1."""
        masses = self.masses().T + 1e-300  # a count that no component can make belongs to all alike
        return masses / masses.sum(axis=1, keepdims=True)

    def label(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """The group of each sample, int64[n], an index into `GROUPS`: the most probable one for its count.

        What section 5.2 of the paper leaves open: "a more principled, formal approach to labeling each samples".
        """
        return self.responsibilities().argmax(axis=1)[counts]

    def shares(self, interval: float = 0.95) -> list[tuple[float, float, float]]:
        """For never, sometimes and always: share of the samples, posterior mean and central interval."""
        tail = (1 - interval) / 2
        weights = self.weights @ self._members().T  # [draws, group]
        low, high = np.quantile(weights, [tail, 1 - tail], axis=0)
        return list(zip(weights.mean(axis=0).tolist(), low.tolist(), high.tolist(), strict=True))

    def _members(self) -> Floats:
        """float64[3, 3]: 1 where a component, across, is of a group, down."""
        return (self.groups == np.arange(3)[:, None]).astype(np.float64)


def bin_masses(means: Floats, deviations: Floats, selections: int) -> Floats:
    """float64[3, C + 1]: probability of each count under each truncated normal.

    A count stands for half a selection to both sides, so the truncation is at -1/2 and C + 1/2. Counts are whole
    numbers: a density at the single value 0 would grow without bound with a narrowing component.
    """
    from scipy.special import ndtr  # the report of a run that fits no mixture does without

    edges = np.arange(selections + 2) - 0.5
    z = (edges[None, :] - means[:, None]) / deviations[:, None]  # [3, C + 2]
    below = ndtr(z)
    return np.diff(below) / (below[:, -1:] - below[:, :1])


def fit_mixture(counts: NDArray[np.int64], selections: int, seed: int = 0) -> Mixture:
    """Fit the mixture to the selection counts of all samples by Metropolis-Hastings.

    The prior is flat over the weights and over means between 0 and C, and half normal, with scale C / 3, over the
    standard deviations.

    Args:
        counts: int64[n], each between 0 and `selections`.
        selections: C; of several runs, the sum of theirs, with the counts summed too.
        seed: of the chains; the same counts and seed give the same fit.

    Raises:
        UserError: PyMC is not installed, too few selections, counts outside 0..C.
    """
    if selections < MIN_SELECTIONS:
        raise UserError(f"{selections} selections are too few for a mixture of three; at least {MIN_SELECTIONS}")
    counts = np.asarray(counts)
    if counts.size == 0 or counts.min() < 0 or counts.max() > selections:
        raise UserError(f"selection counts must be between 0 and the {selections} selections, for at least one sample")
    histogram = np.bincount(counts, minlength=selections + 1)
    try:
        import arviz  # comes with PyMC
        import pymc
        import pytensor.tensor as pt
    except ImportError:
        raise UserError("fitting the groups needs PyMC: pip install 'ffcv_prune[analysis]'") from None
    logging.getLogger("pymc").setLevel(logging.WARNING)

    edges = np.arange(selections + 2)[:, None] / (selections + 1)  # counts scaled to bins of [0, 1]
    start = dict(zip(("weights", "means", "deviations"), _normals_by_em(histogram), strict=True))
    with warnings.catch_warnings(), pymc.Model():
        warnings.filterwarnings("ignore", message="PyTensor could not link to a BLAS")  # nothing here needs one
        weights = pymc.Dirichlet("weights", np.ones(3))
        means = pymc.Uniform("means", 0, 1, shape=3)
        deviations = pymc.HalfNormal("deviations", 1 / 3, shape=3)
        below = 0.5 * pt.erfc((means - edges) / (np.sqrt(2) * deviations))  # [C + 2, 3]
        masses = (below[1:] - below[:-1]) / (below[-1] - below[0])
        pymc.Potential("likelihood", (histogram * pt.log(pt.dot(masses, weights) + 1e-300)).sum())
        trace = pymc.sample(
            draws=DRAWS * THIN,
            tune=TUNE,
            chains=CHAINS,
            cores=1,
            step=pymc.Metropolis(),
            initvals=start,
            random_seed=seed,
            progressbar=False,
            compute_convergence_checks=False,  # for gradient samplers; R-hat is computed below
        )
    drawn = {name: trace.posterior[name].to_numpy()[:, ::THIN] for name in start}  # [chain, draw, 3]
    order = np.argsort(drawn["means"], axis=2)  # a component's number means nothing: name them by their means
    drawn = {name: np.take_along_axis(values, order, axis=2) for name, values in drawn.items()}
    rhat = max(float(arviz.rhat(values[:, :, i], method="split")) for values in drawn.values() for i in range(3))
    flat = {name: values.reshape(-1, 3) for name, values in drawn.items()}
    return Mixture(
        selections,
        flat["weights"],
        flat["means"] * (selections + 1) - 0.5,
        flat["deviations"] * (selections + 1),
        rhat,
    )


def _normals_by_em(histogram: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Weights, means and deviations, float64[3] each, of plain normals, on [0, 1]: where the chains start.

    A random walk in nine dimensions would be long on its way. Truncation is left to the chains.
    """
    bins = len(histogram)
    x = (np.arange(bins) + 0.5) / bins
    weights, means, deviations = np.full(3, 1 / 3), np.array([0.05, 0.5, 0.95]), np.array([0.05, 0.2, 0.05])
    for _ in range(300):
        density = weights / deviations * np.exp(-0.5 * ((x[:, None] - means) / deviations) ** 2) + 1e-12  # [C + 1, 3]
        members = histogram[:, None] * density / density.sum(axis=1, keepdims=True)
        sizes = members.sum(axis=0)
        means = (members * x[:, None]).sum(axis=0) / sizes
        deviations = np.sqrt((members * (x[:, None] - means) ** 2).sum(axis=0) / sizes).clip(0.3 / bins)
        weights = sizes / sizes.sum()
    return weights, means, deviations
