"""Under what conditions the rows of a page were made, from their configs and the rows themselves."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness.tables import Row, markdown
from benchmarks.paper.cells import MARKS, UNSTEADY, Cell, distinct

IMAGES = (
    "All CIFAR-10 data, the imbalanced and the downsampled too, are from JPEG files, which are lossy: accuracies are "
    "to be compared with each other, not with those of the original images."
)


def conditions(grouped: Sequence[Cell]) -> str:
    """Net, schedule and precision; what differs between the data; the static scores; how far to trust the seconds."""
    cells = [cell for cell in grouped if cell.rows]
    return "\n\n".join([training(cells), data_table(cells), static_scores(cells), IMAGES, seconds(cells), MARKS])


def training(cells: Sequence[Cell]) -> str:
    """What all runs share."""
    config = cells[0].run.config
    train = config.train
    parts = {name: value for cell in cells for name, value in cell.run.config.prune.values.items()}
    precision = {"auto": "bf16 where the processor has instructions for it, else float32"}.get(train.amp, train.amp)
    return (
        f"All train {config.model.name} by SGD: batches of {train.batch_size}, learning rate {train.lr:g} "
        f"({train.lr_schedule}, after a warm-up of {train.warmup_epochs:g} epoch at full length), momentum "
        f"{train.momentum:g}, weight decay {train.weight_decay:g}; precision `{train.amp}`, {precision}. "
        f"α = {parts['alpha']:g}, c = {parts['c']:g}, ε = {parts['epsilon']:g}. T_p is the epochs between selections; "
        "InfoBatch selects in every epoch."
    )


def data_table(cells: Sequence[Cell]) -> str:
    """One line for each training set: its epochs, pruning period, augmentation and number of seeds."""
    lines: dict[str, list[str]] = {}
    for cell in cells:
        if cell.run.method == "random":
            config = cell.run.config
            lines.setdefault(
                config.data.train,
                [
                    cell.run.part,
                    f"`{config.data.train}`",
                    f"{config.train.epochs}",
                    f"{config.prune.phases.interval}",
                    config.data.augment,
                    f"{len(cell.rows) + cell.missing}",
                ],
            )
    return markdown(["data", "file", "epochs", "T_p", "augmentation", "seeds"], list(lines.values()))


def static_scores(cells: Sequence[Cell]) -> str:
    """What static methods prune by, and what that leaves out of their standard deviations."""
    made, reused = {}, {}
    for run in (cell.run for cell in cells):
        if run.scoring is not None:
            static = run.scoring.static
            models = f"{static.models} model{'s' * (static.models > 1)}"
            made[run.label] = f"{run.label} of {models} × {static.epochs} epochs"
            seed = run.scoring.run.seed
        elif run.source is not None:
            reused[run.label] = f"{run.label}, from a run of {run.source.label} with another seed"
    if not made:
        return "No method here needs static scores."
    return (
        f"Static scores: {'; '.join(made.values())}. They were made once, with seed {seed}, for the runs of all seeds, "
        f"so the standard deviations of these methods leave out how much other scores would have changed. "
        f"Of each seed anew: {'; '.join(reused.values()) or 'none'}."
    )


def seconds(cells: Sequence[Cell]) -> str:
    """How steady the machine was."""
    several = [cell for cell in distinct(cells) if len(cell.rows) > 1]
    most = max((cell.spread_of_seconds for cell in several), default=1.0)
    return (
        "The machine was shared with other work while they ran, so seconds are a rough guide: of runs that differ in "
        f"nothing but the seed, the slowest took up to {most:.2f} times as long as the fastest, and more than "
        f"{UNSTEADY:g} times in {sum(cell.unsteady for cell in several)} of {len(several)} cells (‡). Images trained "
        "on and scored are exact."
    )


def provenance(rows: Sequence[Row]) -> str:
    """Machines, versions, commits and dates of the rows, in one sentence each."""

    def of(column: str) -> str:
        return ", ".join(sorted({row[column] for row in rows if row.get(column)}))

    machines = sorted({f"{row['cpu']}, {row['cores']} core{'s' * (row['cores'] != '1')}" for row in rows})
    dates = sorted(row["date"][:10] for row in rows)
    versions = ", ".join(f"{name} {of(name)}" for name in ("torch", "ffcv", "numba", "numpy"))
    days = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    changed = sum(row["commit"].endswith("+") for row in rows)
    words = f"{len(rows)} runs on {'; '.join(machines)}; {versions}; commits {of('commit')}; {days}."
    return words + f" A + means uncommitted changes: {changed} of the rows." * bool(changed)
