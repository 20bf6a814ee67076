"""The code that a page shows, as it stands there: to run, or to apply to a script as its diff."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def code(page: str, language: str, section: str = "") -> str:
    """All code in a language of a page, or of the section under a heading."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    if section:
        text = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL))


def patched(script: str, diff: str) -> str:
    """Apply a diff. The old lines of each hunk must stand in the script once, in the function that it names."""
    for hunk in diff.strip("\n").split("\n\n"):
        *header, lines = re.split(r"^@@ def (\w+)\n", hunk) if hunk.startswith("@") else [hunk]
        marks = re.findall(r"^([ +-])(.*)$", lines, re.MULTILINE)
        assert len(marks) == len(lines.splitlines()), f"not lines of a diff:\n{lines}"
        old, new = ("".join(f"{line}\n" for mark, line in marks if mark != other) for other in "+-")
        assert old and f"\n{script}".count(f"\n{old}") == 1, f"not in the script once:\n{old}"
        before, after = f"\n{script}".split(f"\n{old}")
        within = re.findall(r"^ *def (\w+)", before, re.MULTILINE)[-1:]
        assert within == header[1:], f"in {within}, not in {header[1:]}:\n{old}"
        script = f"{before}\n{new}{after}"[1:]
    return script
