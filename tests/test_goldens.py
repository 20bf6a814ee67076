"""Methods select, ask for and weigh what the policies before them did, bit by bit (`goldens/record.py`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ffcv_prune import methods
from tests.goldens import cases

RECORDED = json.loads((Path(__file__).parent / "goldens" / "selections.json").read_text())


@pytest.mark.parametrize(("name", "parameters"), list(cases.cases()))
def test_selections_are_those_recorded(name: str, parameters: dict[str, Any]) -> None:
    parameters = dict(parameters)
    method = methods.build(parameters.pop("name"), **{k: v for k, v in parameters.items() if k != "seed"})
    given = None
    if "scores" in method.parameters:
        given = cases.static_scores() if method.statistic.is_per_model else cases.static_scores()[0]
    state = method.start(cases.N, cases.EPOCHS, cases.LABELS, parameters["seed"], given)
    found = []
    for epoch in range(cases.EPOCHS):
        if not state.is_due(epoch):
            continue
        losses = cases.losses_of(epoch)
        if method.records_losses and state.selection is not None:
            state.record(state.selection.ids, losses[state.selection.ids], epoch=epoch)
        asked = state.wanted(epoch)
        if asked is not None:
            state.record(asked, losses[asked], epoch=epoch)
        selection = state.select(epoch)
        assert selection is not None
        found.append(cases.digest(asked, selection.ids, selection.weights))
    assert found == RECORDED[name]


def test_every_case_was_recorded() -> None:
    assert {name for name, _ in cases.cases()} == set(RECORDED)
    assert len({digest for digests in RECORDED.values() for digest in digests}) > 300
    assert np.unique(cases.losses_of(0)).size < cases.N  # there are ties
