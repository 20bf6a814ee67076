"""Static scores on the disk: computed once, used by any number of runs on the same data.

NAME.npy    float32[models, n]: the score of each sample, by dataset position, by each model
NAME.json   what made them; written last: without it the other does not count
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ffcv_prune.config import Config
from ffcv_prune.errors import SCORES, UserError
from ffcv_prune.methods import Method
from ffcv_prune.training.dataset import Dataset
from ffcv_prune.training.run_folder import replace_file

Floats = NDArray[np.float32]
REMEDY = f"compute it again with {SCORES}"


class NoScores(UserError):
    """There are no scores, or not all that was written of them is left: computing them mends that."""


@dataclass(frozen=True)
class ScoreFile:
    """A sound score file and what stands in its description.

    Attributes:
        method, model: which score, by which network.
        recipe: the keys of the configuration that decide the scores, and their values.
        data: fingerprint of the training set.
        seconds: by phase; "total" is their cost.
        digest: of the array's file.
    """

    path: Path
    method: str
    model: str
    recipe: dict[str, Any]
    data: str
    seconds: dict[str, float]
    digest: str

    def scores(self) -> Floats:
        """Return float32[models, n]."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            raise NoScores(f"cannot read {self.path}: it does not exist; {REMEDY}") from None
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}; mend that, or remove it") from error
        if _digest(content) != self.digest:
            raise NoScores(f"{self.path} is damaged, or not what its .json describes; {REMEDY}")
        return np.load(io.BytesIO(content))


def save(path: Path, scores: Floats, description: Mapping[str, Any]) -> None:
    """Write the scores float32[models, n]; `description` holds what `ScoreFile` says and may hold more."""
    array = io.BytesIO()
    np.save(array, scores)
    content = array.getvalue()
    text = json.dumps({**description, "digest": _digest(content)}, indent=2, ensure_ascii=False)
    for suffix, part in ((".npy", content), (".json", (text + "\n").encode())):
        replace_file(path.with_suffix(suffix), part, f"mend that, then {REMEDY}")


def load(path: str | Path, data: str) -> ScoreFile:
    """Read the description of ``path``, a ``.npy``.

    Args:
        data: fingerprint of the training set that the scores are to be used on.

    Raises:
        NoScores: it is missing or damaged.
        UserError: it is no description of scores, or the scores are of another data set.
    """
    path = Path(path)
    description = path.with_suffix(".json")
    try:
        content = json.loads(description.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NoScores(f"{description} does not exist: no static scores there yet; {REMEDY}") from None
    except OSError as error:
        raise UserError(f"cannot read {description}: {error.strerror}") from error
    except (ValueError, RecursionError):
        raise NoScores(f"{description} is damaged, and does not describe static scores; {REMEDY}") from None
    kinds = {"method": str, "model": str, "recipe": dict, "data": str, "seconds": dict, "digest": str}
    try:
        if not all(isinstance(content[name], kind) for name, kind in kinds.items()):
            raise TypeError
        float(content["seconds"]["total"])
    except (ValueError, KeyError, TypeError):  # whole, but not ours: it is not to be overwritten
        raise UserError(
            f"{description} does not describe static scores; name another prune.scores, or remove it"
        ) from None
    if content["data"] != data:
        raise UserError(f"{path} was computed on another data set than data.train; name another prune.scores")
    return ScoreFile(path, **{name: content[name] for name in kinds})


def with_static_scores(config: Config, dataset: Dataset) -> tuple[Method, Floats | None, float]:
    """The method of `config`, named by its static scores; these; and the seconds that they cost.

    The scores are None, and cost nothing, for a method without.

    Raises:
        UserError: see `load`, and files that are damaged.
    """
    method = config.prune
    path = method.values.get("scores")
    if path is None:
        return method, None, 0.0
    file = load(path, dataset.fingerprints["train"])
    made = file.method if file.model == config.model.name else f"{file.method}({file.model})"
    return replace(method, name=made + method.name.removeprefix("static")), file.scores(), file.seconds["total"]


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
