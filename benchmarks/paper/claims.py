"""The findings of the paper that benchmarks/findings.py judges, each as comparisons between cells of findings.yaml."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """A finding as comparisons: each of `methods` `relation` each of `rivals`, in each of `parts`, at each of `rates`.

    `relation` is "above", "below" or "level with", of test accuracy or, if `measure` says so, "seconds". `quote` are
    the words of `source`; without them the claim is ours. `elsewhere` is a part where the same comparisons should not
    hold, if the finding is about its own part.
    """

    title: str
    quote: str
    parts: tuple[str, ...]
    methods: str
    relation: str
    rivals: str
    rates: tuple[float, ...] = (0.7,)
    source: str = "The paper"
    measure: str = "accuracy"
    elsewhere: str = ""


PROPOSED = "ema epsilon_greedy ucb"
GUARDED = "ema_guarded ucb_guarded"
STATIC = "static_random forget el2n"
CIFAR10, CIFAR10_STATIC, EACH_GUARD = "CIFAR-10", "CIFAR-10, static", "CIFAR-10, each guard"
IMBALANCED, DOWNSAMPLED, FASHION = "imbalanced", "downsampled", "Fashion-MNIST"
OTHERS = (IMBALANCED, DOWNSAMPLED, FASHION)
RATES = (0.5, 0.7, 0.8)
UPPER_BOUND = "the full baseline acts as an experimental upper-bound over all the other methods (section 4.3)"
STATIC_TIME = (
    "Since the static methods perform pruning prior to training with an overhead equivalent to training on the full "
    "data, their wall-clock time is nearly double the full baseline (section 4.1, Fig. 2b)"
)
TABLE_1 = (
    "Statically choosing the sometimes samples results nearly a 4% performance drop. Dynamically sampling from the "
    "remaining samples only results in a 1% performance degradation (section 4.2, Tab. 1)"
)
CLAIMS = (
    Claim(
        "EMA, ε-greedy and UCB beat static pruning",
        "At more aggressive rates, the static baselines drop dramatically in performance. Our proposed methods "
        "continue to maintain reasonable performance even when 80% of the dataset is pruned (section 4.1)",
        (CIFAR10_STATIC,),
        PROPOSED,
        "above",
        STATIC,
    ),
    Claim("Guarded, they beat static pruning", "", (CIFAR10_STATIC,), GUARDED, "above", STATIC),
    Claim(
        "Random dynamic pruning beats static pruning",
        "the approach is able to outperform the static baselines (section 4.2)",
        (CIFAR10_STATIC,),
        "random",
        "above",
        STATIC,
    ),
    Claim(
        "Sometimes samples drawn anew beat sometimes samples chosen once",
        TABLE_1,
        (CIFAR10_STATIC,),
        "always_ema",
        "above",
        "last_ema",
    ),
    Claim(
        "Sometimes samples drawn anew come close to EMA itself",
        TABLE_1,
        (CIFAR10_STATIC,),
        "always_ema",
        "level with",
        "ema",
    ),
    Claim("Sometimes samples chosen once fall below EMA", TABLE_1, (CIFAR10_STATIC,), "last_ema", "below", "ema"),
    Claim(
        "EMA, ε-greedy and UCB beat random on CIFAR-10",
        "all the active/reinforcement learning methods are able to outperform the random dynamic method (appendix C)",
        (CIFAR10,),
        PROPOSED,
        "above",
        "random",
        RATES,
    ),
    Claim("Guarded, they beat random on CIFAR-10", "", (CIFAR10,), GUARDED, "above", "random", RATES),
    Claim("The guards help on a short schedule", "", (CIFAR10,), "ucb_guarded", "above", "ucb", RATES),
    Claim("The guards help EMA on a short schedule", "", (CIFAR10,), "ema_guarded", "above", "ema", RATES),
    Claim(
        "Each guard alone helps UCB",
        "",
        (EACH_GUARD,),
        "ucb_phases ucb_half_random ucb_class_floor",
        "above",
        "ucb",
    ),
    Claim(
        "Each guard alone makes UCB as good as random",
        "",
        (EACH_GUARD,),
        "ucb_phases ucb_half_random ucb_class_floor",
        "level with",
        "random",
    ),
    Claim(
        "ε-greedy and UCB improve over EMA",
        "the ϵ-greedy and UCB improve the performance slightly over the uncertainty with the EMA (section 4.1)",
        (CIFAR10,),
        "epsilon_greedy ucb",
        "above",
        "ema",
        RATES,
    ),
    Claim(
        "Full data bounds all dynamic methods that see as many samples, on CIFAR-10",
        UPPER_BOUND,
        (CIFAR10,),
        f"random {PROPOSED} {GUARDED}",
        "below",
        "full_equal",
        RATES,
    ),
    Claim(
        "Full data bounds all dynamic methods that see as many samples, on other data",
        UPPER_BOUND,
        OTHERS,
        f"random {PROPOSED} {GUARDED}",
        "below",
        "full_equal",
    ),
    Claim(
        "Full data bounds static pruning that sees as many samples",
        "the static baselines that follow this allocation under-perform (section 4.3)",
        (CIFAR10_STATIC,),
        STATIC,
        "below",
        "full_equal",
    ),
    Claim(
        "All dynamic methods save time against full data",
        "all the dynamic methods reduce the wall-clock time even at modest pruning rates (section 4.1, Fig. 2b)",
        (CIFAR10,),
        f"random {PROPOSED}",
        "below",
        "full",
        RATES,
        measure="seconds",
    ),
    Claim(
        "Static pruning with its scores takes longer than full data",
        STATIC_TIME,
        (CIFAR10_STATIC,),
        "forget el2n",
        "above",
        "full",
        measure="seconds",
    ),
    Claim(
        "InfoBatch is as good as full data",
        "Lossless Training Speed Up by Unbiased Dynamic Data Pruning (the title; at r = 0.5)",
        (CIFAR10,),
        "infobatch",
        "level with",
        "full",
        (0.5,),
        source="Qin et al. (ICLR 2024)",
    ),
    Claim(
        "InfoBatch with a higher r is as good as full data",
        "",
        (CIFAR10,),
        "infobatch",
        "level with",
        "full",
        (0.7, 0.8),
    ),
    Claim(
        "On imbalanced data the methods beat random",
        "Our methods outperform the random dynamic method at aggressive pruning rates (section 4.5)",
        (IMBALANCED,),
        PROPOSED,
        "above",
        "random",
    ),
    Claim("Guarded, they beat random on imbalanced data", "", (IMBALANCED,), GUARDED, "above", "random"),
    Claim(
        "On downsampled data EMA and ε-greedy are worse than random",
        "the uncertainty with EMA and ϵ-greedy methods are worse than the random dynamic method (section 4.6)",
        (DOWNSAMPLED,),
        "ema epsilon_greedy",
        "below",
        "random",
        elsewhere=CIFAR10,
    ),
    Claim(
        "Guarded, EMA is worse than random on downsampled data",
        "",
        (DOWNSAMPLED,),
        "ema_guarded",
        "below",
        "random",
        elsewhere=CIFAR10,
    ),
    Claim(
        "On downsampled data UCB matches random",
        "Only the UCB method matches the random dynamic method in performance (section 4.6)",
        (DOWNSAMPLED,),
        "ucb",
        "level with",
        "random",
    ),
    Claim("Guarded, UCB matches random on downsampled data", "", (DOWNSAMPLED,), "ucb_guarded", "level with", "random"),
    Claim("On Fashion-MNIST the methods beat random", "", (FASHION,), PROPOSED, "above", "random"),
    Claim("Guarded, they beat random on Fashion-MNIST", "", (FASHION,), GUARDED, "above", "random"),
)
