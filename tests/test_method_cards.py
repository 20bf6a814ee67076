"""docs/methods: every method has a card, and the cards name only keys, configs and files that exist."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from ffcv_prune.config import SECTIONS
from ffcv_prune.methods import PRESETS

ROOT = Path(__file__).resolve().parent.parent
CARDS = ROOT / "docs" / "methods"
INDEX = (CARDS / "README.md").read_text(encoding="utf-8")
KEYS = {
    f"{section}.{field.name}"
    for section, kind in SECTIONS.items()
    if section != "prune"
    for field in dataclasses.fields(kind)
}
KEYS |= {
    f"prune.{name}" for method in PRESETS.values() for name in (*method.parameters, "method", "save", "score_source")
}
PARTS = ("# ", "**Rule", "arameters", "**Cost", "**When it hurts.**", "**Source.**")
LINKS = re.compile(r"\]\((\w+\.md)\)")


def cards_of(method: str) -> list[str]:
    """The cards that the index names for a method."""
    (row,) = (line for line in INDEX.splitlines() if re.match(rf"\| [^|]*`{method}`", line))
    return LINKS.findall(row)


def methods_of(card: str) -> list[str]:
    """The methods whose card it is; the guards are those of any method of a fixed size."""
    named = [name for name, method in PRESETS.items() if method.prunes and card in cards_of(name)]
    return ["random"] if card == "guards.md" else named


def text_of(value: Any) -> str:
    """As a card writes a default."""
    if isinstance(value, bool):
        return str(value).lower()
    return "empty" if value in ("", ()) else format(value, "g") if isinstance(value, float) else str(value)


@pytest.mark.parametrize("method", [name for name, method in PRESETS.items() if method.prunes])
def test_every_method_has_its_cards(method: str) -> None:
    cards = cards_of(method)
    assert cards and all((CARDS / name).exists() for name in cards)


@pytest.mark.parametrize("path", sorted(CARDS.glob("*.md")), ids=lambda path: path.stem)
def test_the_keys_and_files_that_are_named_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"`((?:prune|static|run|model|train|data)\.\w+)", text)) <= KEYS
    for name in re.findall(r"`((?:rn_configs|benchmarks)/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name


def test_the_index_and_the_cards_agree() -> None:
    files = {path.name for path in CARDS.glob("*.md")} - {"README.md"}
    assert set(LINKS.findall(INDEX)) == files


@pytest.mark.parametrize("path", sorted(CARDS.glob("*[a-z].md")), ids=lambda path: path.stem)
def test_every_card_is_one_page_with_all_its_parts(path: Path) -> None:
    card = path.read_text(encoding="utf-8")
    positions = [card.find(part) for part in PARTS]
    assert -1 not in positions
    assert len(card.splitlines()) <= 60
    assert set(LINKS.findall(card)) <= {other.name for other in CARDS.glob("*.md")}


@pytest.mark.parametrize("path", sorted(CARDS.glob("*[a-z].md")), ids=lambda path: path.stem)
def test_the_code_of_a_card_exists(path: Path) -> None:
    (code,) = re.findall(r"Code:\s((?:`[\w.]+`[,\s]*)+)", path.read_text(encoding="utf-8"))
    for name in re.findall(r"`([\w.]+)`", code):
        resolve_name(f"ffcv_prune.{name}")


@pytest.mark.parametrize("path", sorted(CARDS.glob("*[a-z].md")), ids=lambda path: path.stem)
def test_the_defaults_in_a_card_are_those_of_its_methods(path: Path) -> None:
    rows = re.findall(r"^\| `prune\.(\w+)` \| ([^|]+?) \|", path.read_text(encoding="utf-8"), re.MULTILINE)
    for name, default in rows:
        values = [PRESETS[method].values for method in methods_of(path.name)]
        found = {text_of(own[name]) for own in values if name in own}
        assert found == {text_of(float(default)) if default[0].isdigit() else default.strip("`")}, name


def test_the_keys_of_static_scores_are_in_the_index() -> None:
    assert {key for key in KEYS if key.startswith("static.")} <= set(re.findall(r"`(static\.\w+)`", INDEX))
