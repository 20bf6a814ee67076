"""What the parts found, line by line: printed, and in a JSON file and a page after each line.

So whatever cuts a run off, what it had found is there. All commands of one --out share the file: a part that runs again
replaces its own lines.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.machine import MIXED
from benchmarks.harness.tables import number, table
from ffcv_prune.errors import UserError, first_line
from ffcv_prune.training.run_folder import replace_file

PASS, FAIL, SKIP = "PASS", "FAIL", "SKIP"
LEAST = 0.7  # of what was expected, or of its inverse: estimates of cards that nobody had run it on
SAME = (*MIXED, "device", "decoder", "card", "small")  # what the lines of one page must share


@dataclass(frozen=True)
class Line:
    """A finding of a part: whether it is as it must be, or a figure, or both."""

    part: str
    verdict: str
    name: str
    value: float | None = None
    unit: str = ""
    expected: float | None = None
    note: str = ""
    lower: bool = False  # is better

    @property
    def found(self) -> str:
        return "" if self.value is None else f"{number(self.value)} {self.unit}".strip()

    @property
    def awaited(self) -> str:
        if self.expected is None:
            return ""
        return ("at most " if self.lower else "") + number(self.expected)

    def __str__(self) -> str:
        words = [f"{self.verdict:4} {self.part:8} {self.name}", f": {self.found}" if self.found else ""]
        if self.awaited:
            words.append(f" (expected {self.awaited})")
        return "".join(words) + (f" - {self.note}" if self.note else "")


class Report:
    """Collects the lines.

    Args:
        folder: gets gpu.json and the page gpu.md.
        about: the card, the machine, versions and settings.

    Attributes:
        lines: so far, those of earlier commands among them.
        part: that lines are added to.

    Raises:
        UserError: the folder has lines of another machine or size, or cannot be written.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.path, self.about = folder / "gpu.json", dict(about)
        self.lines: list[Line] = []
        self.part = ""
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            content = json.loads(self.path.read_text(encoding="utf-8"))
            other = [name for name in SAME if content["about"].get(name) != self.about.get(name)]
            if other:
                raise UserError(f"{self.path} is of another {other[0]}; name another --out")
            self.lines = [Line(**line) for line in content["lines"]]

    def check(self, name: str, passed: bool, note: str = "") -> None:
        """Something that must hold."""
        self._add(Line(self.part, PASS if passed else FAIL, name, note=note))

    def figure(
        self,
        name: str,
        value: float,
        unit: str,
        expected: float | None = None,
        note: str = "",
        judge: bool = True,
        lower: bool = False,
    ) -> None:
        """A number, of which more is better, or less where `lower`.

        FAIL where it is far worse than what was `expected`, unless it is not to be judged.
        """
        verdict = ""
        if expected is not None and judge:
            good = value <= expected / LEAST if lower else value >= LEAST * expected
            verdict = PASS if good else FAIL
        self._add(Line(self.part, verdict, name, value, unit, expected, note, lower))

    def skip(self, name: str, why: str) -> None:
        """What was left out."""
        self._add(Line(self.part, SKIP, name, note=why))

    def begin(self, part: str) -> None:
        """The lines to come are of this part, in place of those it had."""
        self.part = part
        self.lines = [line for line in self.lines if line.part != part]

    @contextmanager
    def going_on(self, what: str) -> Iterator[None]:
        """An exception in this block is a line: what comes after it runs all the same."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.check(f"{what}: ran to its end", False, f"{type(error).__name__}: {first_line(error)}")

    @property
    def failed(self) -> list[Line]:
        return [line for line in self.lines if line.verdict == FAIL]

    def _add(self, line: Line) -> None:
        self.lines.append(line)
        print(line, flush=True)
        content = {"about": self.about, "lines": [asdict(line) for line in self.lines]}
        replace_file(self.path, (json.dumps(content, indent=1) + "\n").encode(), "name another --out")
        replace_file(self.path.with_suffix(".md"), self.page().encode(), "name another --out")

    def page(self) -> str:
        """The page, in Markdown."""
        rows = [
            {
                "": line.verdict,
                "part": line.part,
                "what": line.name,
                "found": line.found,
                "expected": line.awaited,
                "note": line.note.replace("|", "/"),
            }
            for line in self.lines
        ]
        about = "\n".join(f"- {name}: {value}" for name, value in self.about.items() if value not in ("", [], None))
        note = (
            "*expected* is an estimate, made before any of this was run on a GPU. PASS: at least "
            f"{LEAST:g} of it, where less is better at most {1 / LEAST:.1f} times it, or what must hold does. "
            "Without a verdict: nothing was expected, or it is not judged."
        )
        title = self.about.get("card") or self.about.get("cpu", "")
        return f"# A run on {title}\n\n{about}\n\n{note}\n\n{table(rows)}\n"
