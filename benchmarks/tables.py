"""The frame of the speed benchmarks: their options, the rows of their CSV, and what is printed of them.

One rule for a CSV that exists: a case that has its rows is not measured again, so that a benchmark that was stopped, or
asked for more, goes on where it was; and rows of other settings or of another machine are refused, for one table would
mix them.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ffcv_prune.errors import UserError
from ffcv_prune.training.run_folder import append_csv, provenance

MIXED = ("cpu", "cores", "gpus", "torch", "ffcv", "numba", "numpy")  # of MACHINE: what ratios of one table must share
Row = Mapping[str, str]
Case = TypeVar("Case")
MACHINE = ("cpu", "cores", "memory_gb", "gpus", "python", "torch", "ffcv", "numba", "numpy", "commit", "date")


def command(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The parser of ``python -m benchmarks.NAME``, with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    default = Path("runs/benchmarks") / f"{name.replace(' ', '_')}.csv"
    parser.add_argument(
        "--csv",
        type=Path,
        default=default,
        help="the rows; a case that has its rows is not measured again; default: %(default)s",
    )
    parser.add_argument("--redraw", action="store_true", help="measure nothing: only the page again, from the CSV")
    return parser


def add_repeats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=positive, default=5, help="default: %(default)s")


def positive(text: str) -> int:
    """What an option is that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return int(text)


def positives(text: str) -> str:
    """What an option is that lists such numbers: ``128,512``."""
    for part in text.split(","):
        positive(part)
    return text


def settings(args: argparse.Namespace, *names: str, **fixed: object) -> str:
    """What all rows of a CSV must share, options and what the benchmark fixes: ``repeats=5 threads=2 keep=0.3``."""
    return " ".join(
        f"{name}={value}" for name, value in ({name: getattr(args, name) for name in names} | fixed).items()
    )


@dataclass(frozen=True)
class Results:
    """The CSV of a benchmark: one row a measurement, with its settings and the machine it was made on."""

    path: Path
    columns: Collection[str]  # of the benchmark; a row may lack some
    settings: str  # of the rows to come

    def read(self) -> list[dict[str, str]]:
        """All rows.

        Raises:
            UserError: the file cannot be read, has no rows, or is not of this benchmark.
        """
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}; measure first") from None
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"cannot read {self.path}: {error}") from None
        if not rows:
            raise UserError(f"{self.path} has no rows; remove it and measure first")
        lacking = [column for column in (*self.columns, "settings", *MACHINE) if column not in rows[0]]
        if lacking:
            raise UserError(f'{self.path} is not of this benchmark: no column "{lacking[0]}"; name another --csv')
        if any(None in row or None in row.values() for row in rows):
            raise UserError(f"{self.path} holds a row that is cut short or too long; remove that line")
        return rows

    def left(self, cases: Iterable[Case], case_of: Callable[[Row], Case]) -> list[Case]:
        """The cases that have no row yet. UserError if rows were measured with other settings, and those of `read`."""
        cases = list(cases)
        if not self.path.exists():
            return cases
        rows, here = self.read(), _machine()
        for row in rows:
            if row["settings"] != self.settings:
                raise UserError(
                    f"{self.path} holds rows with `{row['settings']}`, not `{self.settings}`; "
                    "remove it or name another --csv"
                )
            other = [f"{name} {row[name]}" for name in MIXED if row[name] != here[name]]
            if other:
                raise UserError(f"{self.path} holds rows of another machine ({', '.join(other)}); name another --csv")
        done = {case_of(row) for row in rows}
        left = [case for case in cases if case not in done]
        print(f"{len(cases) - len(left)} of {len(cases)} cases have their rows in {self.path}: left out", flush=True)
        return left

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows. KeyError for a column that the benchmark does not have."""
        made = _machine()
        for row in rows:
            if foreign := row.keys() - set(self.columns):
                raise KeyError(f"columns {foreign}")
            append_csv(self.path, dict.fromkeys(self.columns, "") | row | {"settings": self.settings} | made)

    def publish(self, title: str, text: str, picture: Path | None = None) -> None:
        """Print the page, and write it beside the CSV, as .md."""
        parts = [f"# {title}", text, *([f"![]({picture.name})"] if picture else [])]
        page = self.path.with_suffix(".md")
        page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        print("\n" + page.read_text(encoding="utf-8") + f"\n{page}")


def _machine() -> dict[str, str]:
    """What `provenance` says, as a CSV holds it."""
    return {name: ", ".join(v) if isinstance(v, list) else str(v) for name, v in provenance().items()}


def groups(rows: Iterable[Row], *columns: str) -> dict[tuple[str, ...], list[Row]]:
    """The rows by their values in these columns, in the order in which they come first."""
    made: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        made.setdefault(tuple(row[column] for column in columns), []).append(row)
    return made


def rotated(values: Sequence[Case], places: int) -> list[Case]:
    """The values from another one on in each repeat, so that none always comes first."""
    start = places % len(values)
    return [*values[start:], *values[:start]]


def ratios(above: Iterable[Row], below: Iterable[Row], value: Callable[[Row], float]) -> list[float]:
    """One ratio for each repeat that both have, in the order of `below`."""
    of_above = {row["repeat"]: value(row) for row in above}
    return [of_above[row["repeat"]] / value(row) for row in below if row["repeat"] in of_above]


def number(value: float) -> str:
    """Three digits; from 100 upwards a whole number: ``0.0123``, ``1.52``, ``1,234``."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """``1.52 (1.48–1.6)``: median, lowest and highest; of one value, the value; of none, nothing."""
    if not values:
        return ""
    middle, low, high = (number(value) for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low}–{high})" if len(values) > 1 else middle


def error_bars(points: Sequence[Sequence[float]]) -> tuple[list[float], list[list[float]]]:
    """What `Axes.errorbar` takes as y and yerr: median, and what lies below and above it to lowest and highest."""
    middle = [statistics.median(values) for values in points]
    below = [m - min(values) for m, values in zip(middle, points, strict=True)]
    above = [max(values) - m for m, values in zip(middle, points, strict=True)]
    return middle, [below, above]


def measured_with(rows: Sequence[Row]) -> str:
    """How often, with what settings and on what the rows were measured."""
    repeats = len({row["repeat"] for row in rows})
    return f"Median (lowest–highest) of {repeats} interleaved repeats; ratios within a repeat. {measured_on(rows)}"


def measured_on(rows: Sequence[Row]) -> str:
    """Settings, machine, versions, days and commits of the rows."""
    machines = dict.fromkeys(
        ", ".join(
            [
                row["cpu"],
                f"{row['cores']} cores",
                f"{row['memory_gb']} GB",
                *([row["gpus"]] if row["gpus"] else []),
                f"Python {row['python']}",
                *(f"{package} {row[package]}" for package in ("torch", "ffcv", "numba", "numpy")),
            ]
        )
        for row in rows
    )
    days = " and ".join(sorted({row["date"][:10] for row in rows}))
    commits = " and ".join(dict.fromkeys(row["commit"] for row in rows if row["commit"]))
    made = f"Measured on {'; '.join(machines)}; {days}{f', commit {commits}' if commits else ''}."
    return f"Settings: `{rows[0]['settings']}`. {made}"
