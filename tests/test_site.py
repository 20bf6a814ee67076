"""The site is built as CI builds it: a dead link ends it, and so does a public name without a docstring."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ffcv_prune

ROOT = Path(__file__).resolve().parent.parent
# What the hook, docs/site.py, shows, in a site of pages without a word.
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/torch.md", "write_datasets/README.md")
PAGES += ("rn_configs/README.md", "benchmarks/results/README.md")


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("mkdocs", reason="needs mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    done = build(ROOT / "mkdocs.yml", tmp_path)
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "docs" / "api" / "index.html").read_text()
    for name in set(ffcv_prune.__all__) - {"methods", "tasks"}:
        assert f'id="ffcv_prune.{name}"' in api, name
    assert 'id="ffcv_prune.PrunedLoader.set_selection"' in api


def test_dead_links_end_it(tmp_path: Path) -> None:
    links = ("no_such_page.md", "torch.md#no-such-heading")
    config = (ROOT / "mkdocs.yml").read_text()
    (tmp_path / "mkdocs.yml").write_text(config[: config.index("\nnav:\n") + 1])
    for page in PAGES:
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / page).write_text("# A page\n")
    shutil.copy(ROOT / "docs" / "site.py", tmp_path / "docs")
    (tmp_path / "docs" / "resume.md").write_text("".join(f"[dead]({link})\n\n" for link in links))
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 1
    for link in links:
        assert re.search(rf"WARNING.*docs/resume.md.*{link.split('#')[-1]}", done.stderr), done.stderr


def public(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A name and all that is public below it; of a class what our classes give it."""
    yield name, value
    if inspect.ismodule(value):
        for below, member in vars(value).items():
            if not below.startswith("_") and getattr(member, "__module__", "").startswith("ffcv_prune"):
                yield from public(f"{name}.{below}", member)
    if inspect.isclass(value):
        ours = [kind for kind in value.__mro__ if kind.__module__.startswith("ffcv_prune")]
        for below in {below for kind in ours for below in vars(kind) if not below.startswith("_")}:
            member = getattr(value, below)
            if callable(member) or isinstance(inspect.getattr_static(value, below), property):
                yield f"{name}.{below}", member


@pytest.mark.parametrize("name", ffcv_prune.__all__)
def test_each_public_name_has_a_docstring(name: str) -> None:
    found = dict(public(name, getattr(ffcv_prune, name)))
    assert [below for below, value in found.items() if not (inspect.getdoc(value) or "").strip()] == []
    if name in ("PrunedLoader", "TorchLoader"):
        assert f"{name}.set_selection" in found and f"{name}.selection" in found


def imported() -> Iterator[str]:
    """The full name of each import of ours in the code that the README and the pages show."""
    docs = ROOT / "docs"
    pages = [ROOT / "README.md", *docs.glob("*.md"), *docs.glob("methods/*.md")]
    code = [block for page in pages for block in re.findall(r"^ *```.*?\n(.*?)```", page.read_text(), re.DOTALL | re.M)]
    for text in (*code, (docs / "walkthrough.py").read_text()):
        for module, names in re.findall(r"^\+? *from (ffcv_prune[\w.]*) import ([^#\n]+)", text, re.M):
            yield from (f"{module}.{name.split()[0]}" for name in names.split(","))


def test_each_public_name_stands_on_the_page_of_the_api() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    shown = set(imported())
    assert {"ffcv_prune.loading.augment.RandomResizedCrop", "ffcv_prune.data.writer.write_dataset"} < shown
    assert {"ffcv_prune.PrunedLoader", "ffcv_prune.adapters.transformers.PrunedTrainer"} < shown
    for name in shown | {f"ffcv_prune.{name}" for name in ffcv_prune.__all__}:
        assert re.search(rf"^::: {name}(\.\w+)?$", page, re.M), name  # of a module, what it holds
    for module in (ffcv_prune.methods, ffcv_prune.tasks):
        for below, value in vars(module).items():
            if inspect.isclass(value) and value.__module__.startswith("ffcv_prune.") and below != "UserError":
                assert f"::: {module.__name__}.{below}\n" in page, below
