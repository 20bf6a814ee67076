"""A hook of mkdocs: the site has the layout of the repository, so that links between its pages hold in both."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SHOWN = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs",
    "write_datasets/README.md",
    "rn_configs/README.md",
    "benchmarks/results",
)
_folder = TemporaryDirectory(prefix="ffcv_prune_site_")  # of links; gone when mkdocs ends


def on_config(config: Any) -> Any:
    root = Path(config["config_file_path"]).parent
    for name in SHOWN:
        link = Path(_folder.name) / name
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(root / name)
    config["docs_dir"] = _folder.name
    return config
