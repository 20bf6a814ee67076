"""The frame of the speed benchmarks: their command, and the rows of their CSV.

Two rules for a CSV that exists. A case that has its rows is not measured again, so a benchmark that was stopped, or
asked for more, continues. Rows of other settings or of another machine are refused, since one table would mix them.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.harness import machine
from benchmarks.harness.tables import Row
from ffcv_prune.errors import Arguments, UserError
from ffcv_prune.training.run_folder import append_csv

Case = TypeVar("Case")


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Prints the description as it is written, and every default."""


def benchmark(module: Any, prog: str = "", words: Sequence[str] | None = None) -> None:
    """The command of a benchmark.

    It is a module with TITLE, COLUMNS (of its rows) and SETTINGS (the options that all rows of a CSV share). Its
    functions are `add_arguments(parser)`, `run(args, results)` and `summary(rows)`. `run` adds the rows of the missing
    cases, `summary` is the text of the page. It may have `draw(rows, path)`, a picture, LATER (`shared_settings`), and
    MIXED, in which all rows of a CSV must be of one machine.
    Where SETTINGS has "overrides", all other words of the command line are these.
    """
    name = module.__spec__.name
    parser = Arguments(
        prog=prog or f"python -m {name}",
        description=module.__doc__,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--csv",
        type=Path,
        default=Path("runs/benchmarks") / f"{name.rpartition('.')[2]}.csv",
        help="the rows; a case that has its rows is not measured again",
    )
    parser.add_argument("--redraw", action="store_true", help="measure nothing: only the page again, from the CSV")
    if "repeat" in module.COLUMNS:
        parser.add_argument("--repeats", type=positive, default=5, help="of each case")
    module.add_arguments(parser)
    args, args.overrides = parser.parse_known_args(words)
    if args.overrides and "overrides" not in module.SETTINGS:
        parser.error(f"unrecognized arguments: {' '.join(args.overrides)}")
    settings = shared_settings(args, module.SETTINGS, getattr(module, "LATER", {}))
    results = Results(args.csv.absolute(), module.COLUMNS, settings, getattr(module, "MIXED", machine.MIXED))
    if not args.redraw:
        module.run(args, results)
    rows = results.read()
    picture = module.draw(rows, results.path.with_suffix(".svg")) if hasattr(module, "draw") else None
    results.publish(module.TITLE, module.summary(rows), picture)


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


def shared_settings(args: argparse.Namespace, names: Iterable[str], later: Mapping[str, object] | None = None) -> str:
    """What all rows of a CSV must share: ``repeats=5 threads=2 keep=0.3``, and overrides as they were given.

    `later`: options that older rows do not name, with the value that these were measured at; it is left out.
    """
    given = {name: getattr(args, name) for name in names if name != "overrides"}
    words = [f"{name}={value}" for name, value in given.items() if (later or {}).get(name) != value]
    return " ".join([*words, *args.overrides])


def read_csv(path: Path) -> list[dict[str, str]]:
    """All rows. UserError: the file cannot be read, or a row is cut short."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; measure first") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if any(None in row or None in row.values() for row in rows):
        raise UserError(f"{path} holds a row that is cut short or too long; remove that line")
    return rows


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """All rows, which share their columns, in a new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@dataclass(frozen=True)
class Results:
    """The CSV of a benchmark: one row a measurement, with its settings and the machine it was made on."""

    path: Path
    columns: Collection[str]  # of the benchmark; a row may lack some
    settings: str  # of the rows to come
    shared: Collection[str] = machine.MIXED  # columns in which all rows must be as one of this machine

    def read(self) -> list[dict[str, str]]:
        """All rows. UserError: the file cannot be read, has no rows, or is not of this benchmark."""
        rows = read_csv(self.path)
        if not rows:
            raise UserError(f"{self.path} has no rows; remove it and measure first")
        lacking = [column for column in (*self.columns, "settings", *machine.MACHINE) if column not in rows[0]]
        if lacking:
            raise UserError(f'{self.path} is not of this benchmark: no column "{lacking[0]}"; name another --csv')
        return rows

    def left(self, cases: Iterable[Case], case_of: Callable[[Row], Case]) -> list[Case]:
        """The cases that have no row yet. UserError if rows were measured with other settings, and those of `read`."""
        cases = list(cases)
        if not self.path.exists():
            return cases
        rows = self.read()
        for row in rows:
            if row["settings"] != self.settings:
                raise UserError(
                    f"{self.path} holds rows with `{row['settings']}`, not `{self.settings}`; "
                    "remove it or name another --csv"
                )
        machine.refuse_mixed(self.path, rows, self.shared)
        done = {case_of(row) for row in rows}
        left = [case for case in cases if case not in done]
        print(f"{len(cases) - len(left)} of {len(cases)} cases have their rows in {self.path}: left out", flush=True)
        return left

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows, their numbers to seven digits. KeyError for a column that the benchmark does not have."""
        made = machine.here()
        for row in rows:
            if foreign := row.keys() - set(self.columns):
                raise KeyError(f"columns {foreign}")
            short = {name: float(f"{value:.7g}") if isinstance(value, float) else value for name, value in row.items()}
            append_csv(self.path, dict.fromkeys(self.columns, "") | short | {"settings": self.settings} | made)

    def publish(self, title: str, text: str, picture: Path | None = None) -> None:
        """Print the page, and write it beside the CSV, as .md."""
        parts = [f"# {title}", text, *([f"![]({picture.name})"] if picture else [])]
        page = self.path.with_suffix(".md")
        page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        print("\n" + page.read_text(encoding="utf-8") + f"\n{page}")


def rotated(values: Sequence[Case], places: int) -> list[Case]:
    """The values from another one on in each repeat, so that none always comes first."""
    start = places % len(values)
    return [*values[start:], *values[:start]]
