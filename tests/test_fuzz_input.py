"""Any selection, statistics, state or configuration either works or is a UserError of one line.

The same for recipes is in test_recipes.py, for .beton files in test_fuzz_beton.py.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ffcv_prune import PrunedLoader, methods
from ffcv_prune.config import SECTIONS, load
from ffcv_prune.errors import UserError
from ffcv_prune.loading.order import validate_ids
from ffcv_prune.methods.table import ScoreTable
from tests.betons import Beton

MODERATE = settings(max_examples=200, deadline=None)


@contextmanager
def refusal_is_one_line() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        assert str(error)
        assert "\n" not in str(error)


# ---- selections --------------------------------------------------------------------------------------------

N = 50
NUMBERS = st.integers(-2, N + 2) | st.integers(-(2**63), 2**63 - 1)
ANY_IDS = (
    hnp.arrays(np.int64, hnp.array_shapes(max_dims=2, min_side=0, max_side=60), elements=NUMBERS)
    | hnp.arrays(np.int64, st.integers(1, N), elements=st.integers(0, N - 1), unique=True)
    | hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, min_side=0))
    | st.lists(NUMBERS | st.floats() | st.none() | st.text(max_size=3), max_size=5)
    | st.lists(st.lists(NUMBERS, max_size=3), max_size=3)
    | NUMBERS
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.dictionaries(st.integers(), st.integers(), max_size=2)
)


@MODERATE
@given(ANY_IDS)
def test_any_ids_are_a_selection_or_refused(ids: object) -> None:
    with refusal_is_one_line():
        checked = validate_ids(ids, N)  # type: ignore[arg-type]
        assert checked.dtype == np.int64
        assert checked.ndim == 1
        assert checked.flags.c_contiguous and checked.flags.writeable
        assert set(checked.tolist()) == set(np.asarray(ids).tolist())
        assert (np.diff(checked) > 0).all()
        assert 0 <= checked[0] <= checked[-1] < N


@pytest.fixture(scope="module")
def loader(beton: Beton) -> PrunedLoader:
    return PrunedLoader(beton.path, 4, shuffle=False, drop_last=True, with_ids=True)


@MODERATE
@given(ids=ANY_IDS)
def test_a_loader_serves_any_selection_that_it_does_not_refuse(loader: PrunedLoader, ids: object) -> None:
    before = loader.selection.copy()
    try:
        loader.set_selection(ids)  # type: ignore[arg-type]
    except UserError as error:
        assert "\n" not in str(error)
        np.testing.assert_array_equal(loader.selection, before)
        return
    batches = [ids.clone() for *_, ids in loader]
    assert len(batches) == len(loader.selection) // 4
    served = np.concatenate(batches)
    np.testing.assert_array_equal(served, loader.selection[: len(served)])


class Evil:
    """What can neither be printed in a line nor be asked whether it is true."""

    def __repr__(self) -> str:
        return "a\nb"

    def __bool__(self) -> bool:
        raise ValueError("neither\nnor")


HOSTILE: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2.5, float("nan"), 10**30, "x", "x\ny", b"x", [], (), {}, {1}, [[1], [1, 2]], int),
    *(np.zeros(3), np.array(3), np.array(["a"]), torch.zeros(2), Evil(), [Evil()], {"image": Evil()}, {Evil(): []}),
    *({"image": [Evil()]}, {"image": [int]}, {"image": [None]}, {"image": 5}, {"label": torch.nn.Flatten()}),
)  # fmt: skip


@pytest.mark.parametrize("name", list(inspect.signature(PrunedLoader).parameters))
def test_any_argument_is_taken_or_refused(beton: Beton, name: str) -> None:
    for value in HOSTILE:
        options = {"fname": beton.path, "batch_size": 4, "num_workers": 1, "pipelines": {"image": None}, name: value}
        with refusal_is_one_line():
            PrunedLoader(**options)


# ---- statistics --------------------------------------------------------------------------------------------

LOSSES = (
    hnp.arrays(np.float32, st.integers(0, 12), elements=st.floats(width=32))
    | hnp.arrays(np.float64, st.integers(0, 12))
    | hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, min_side=0, max_side=8))
    | st.lists(st.floats() | st.none() | st.text(max_size=2), max_size=8)
    | st.none()
)
TABLE_IDS = st.none() | hnp.arrays(np.int64, st.integers(0, 12), elements=st.integers(-1, 9)) | ANY_IDS


@MODERATE
@pytest.mark.filterwarnings("ignore:.*losses are NaN or infinite:RuntimeWarning")
@given(st.lists(st.tuples(LOSSES, TABLE_IDS), min_size=1, max_size=4), st.floats())
def test_any_update_is_taken_in_or_refused_and_any_statistic_can_select_then(
    updates: list[tuple[object, object]], alpha: float
) -> None:
    with refusal_is_one_line():
        table = ScoreTable(8, alpha)
        for losses, ids in updates:
            before = table.state_dict()
            try:
                table.update(losses, ids)  # type: ignore[arg-type]
            except UserError as error:
                assert "\n" not in str(error)
                for name, value in table.state_dict().items():
                    np.testing.assert_array_equal(value, before[name])
        assert np.isfinite(table.last[table.last_scored >= 0]).all()
        for name in ("uncertainty", "ema", "ucb"):
            assert len(set(methods.PRESETS[name].statistic.top(table, 5, None).tolist())) == 5


STATE_VALUES = st.integers() | st.floats() | st.text(max_size=3) | st.none() | hnp.arrays(np.float32, st.integers(0, 9))


@MODERATE
@given(
    st.dictionaries(
        st.sampled_from(["n", "alpha", "updates", "mean", "var", "last", "last_scored", "other"]), STATE_VALUES
    ),
    st.booleans(),
)
def test_any_state_is_taken_up_or_refused(changes: dict[str, object], complete: bool) -> None:
    table = ScoreTable(8)
    before = table.state_dict()
    try:
        table.load_state_dict({**before, **changes} if complete else changes)
    except UserError as error:
        assert "\n" not in str(error)
        for name, value in table.state_dict().items():
            np.testing.assert_array_equal(value, before[name])


# ---- configurations ----------------------------------------------------------------------------------------

KEYS = [f"{name}.{f.name}" for name, kind in SECTIONS.items() if name != "prune" for f in dataclasses.fields(kind)]
KEYS += [
    f"prune.{name}" for name in sorted({name for method in methods.PRESETS.values() for name in method.parameters})
]
KEYS += ["prune.method", "prune.save", "prune.score_source"]
VALUES = (
    st.text(max_size=8)
    | st.integers().map(str)
    | st.floats().map(str)
    | st.sampled_from(
        ["true", "off", "0", "-1", "0.5", "0.3,0.6", "ucb", "random", "1e400", "\u0661", "1_0", " 3 ", "nan"]
    )
)
REQUIRED = "data: {train: a.beton, test: b.beton}\nmodel: {name: basic_cnn}\ntrain: {epochs: 20}\n"


@MODERATE
@given(overrides=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), VALUES, max_size=4))
@example(overrides={"\n": ""})
@example(overrides={"run.name": "a\x85b"})
def test_any_command_line_is_taken_or_refused(
    tmp_path_factory: pytest.TempPathFactory, overrides: dict[str, str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(REQUIRED)
    with refusal_is_one_line():
        config = load(["--config", str(path), *(f"--{name}={value}" for name, value in overrides.items())])
        again = path.with_name("again.yaml")
        again.write_text(config.to_yaml(), encoding="utf-8")
        assert load(["--config", str(again)]) == config


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*KEYS, *SECTIONS, "base", "lr", "epochs"]) | st.text(), inner, max_size=3)
    ),
    max_leaves=8,
)


@MODERATE
@given(content=TREES | st.binary(max_size=60) | st.text(max_size=60))
def test_any_config_file_is_taken_or_refused(tmp_path_factory: pytest.TempPathFactory, content: object) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with refusal_is_one_line():
        load(["--config", str(path), "--data.train=a", "--data.test=b", "--model.name=c", "--train.epochs=3"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[" * 10_000, "nested too deeply"),
        ("train: &x\n  lr: *x\n", "an alias"),
        (f"base: {'a' * 300}\n", "does not exist"),
        ('base: "\\0"\n', "does not exist"),
    ],
)
def test_hostile_config_files(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=expected):
        load(["--config", str(path)])


def test_a_config_that_is_a_link_to_itself(tmp_path: Path) -> None:
    path = tmp_path / "loop.yaml"
    path.symlink_to(path)
    with pytest.raises(UserError, match="cannot read"):
        load(["--config", str(path)])


@MODERATE
@given(arguments=st.lists(st.sampled_from(["--config", "--", "--train.lr", "--x="]) | st.text(max_size=8)))
def test_any_arguments_are_taken_or_refused(arguments: list[str]) -> None:
    if not {"-h", "--help"} & set(arguments):
        with refusal_is_one_line():
            load(arguments)
