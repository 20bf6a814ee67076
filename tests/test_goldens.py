"""Methods made of parts select what the policies of commit b30004f did, bit by bit (goldens/record.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ffcv_prune import methods
from tests.goldens.cases import EPOCHS, LABELS, PASS, TRAINING, N, cases, line, losses, static_scores

RECORDED: dict[str, list[str]] = json.loads((Path(__file__).parent / "goldens" / "selections.json").read_text())
CASES = list(cases())


def test_every_recorded_case_is_driven() -> None:
    assert [case for case, *_ in CASES] == list(RECORDED)


@pytest.mark.parametrize(("case", "name", "seed", "keys"), CASES, ids=[case for case, *_ in CASES])
def test_selections_are_as_recorded(case: str, name: str, seed: int, keys: dict[str, Any]) -> None:
    scores = static_scores(name)
    given = {} if scores is None else {"scores": scores}
    state = methods.build(name, **keys).start(N, epochs=EPOCHS, groups=LABELS, seed=seed, **given)
    trains = name == "infobatch" or keys.get("score_source", "pass") != "pass"
    expected = {int(entry.split()[0]): entry for entry in RECORDED[case]}
    ids = np.arange(0)
    for epoch in range(EPOCHS):
        if trains and epoch in expected and ids.size:
            state.record(ids, losses(epoch - 1, TRAINING)[ids], epoch=epoch - 1)
        wanted = state.wanted(epoch)
        if wanted is not None:
            state.record(wanted, losses(epoch, PASS)[wanted], epoch=epoch)
        selection = state.select(epoch)
        assert (selection is not None) == (epoch in expected), epoch
        if selection is not None:
            ids = selection.ids
            assert line(epoch, wanted, ids, selection.weights) == expected[epoch]
