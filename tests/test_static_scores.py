"""Static scores: what is computed, the files, and the runs that prune by them."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ffcv_prune import config
from ffcv_prune.errors import UserError
from ffcv_prune.methods import build
from ffcv_prune.models import build_model
from ffcv_prune.training.loaders import Loaders
from ffcv_prune.training.static_scores import compute
from ffcv_prune.training.trainer import train
from tests.betons import Beton, write_beton, write_run
from tests.nets import in_a_step
from tests.test_static_formulas import as_tensor, naive_forget_scores, naive_grand

pytestmark = pytest.mark.usefixtures("unpainted")

BATCH, KEEP = 32, 0.5

Settings = Callable[..., config.Config]


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory, beton: Beton) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    prune = f"keep: {KEEP}, period: 1, method: static, scores: {path.with_suffix('.npy')}"
    return write_run(path, beton, epochs=3, prune=prune, static="method: el2n, models: 2, epochs: 1")


@pytest.fixture
def settings(config_file: Path, tmp_path: Path) -> Settings:
    """The small config, with changes written as section__key=value, in a folder of the test's own."""

    def make(**changes: Any) -> config.Config:
        own = changes.get("prune__method", "static") != "static_random"
        scores = {"prune__scores": tmp_path / "scores" / "small.npy"} if own else {}
        changes = {"run__out": tmp_path / "runs"} | scores | changes
        options = [f"--{name.replace('__', '.')}={value}" for name, value in changes.items()]
        return config.load(["--config", str(config_file), *options])

    return make


@pytest.fixture(scope="module")
def el2n_file(config_file: Path, loaders: Loaders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores by two models, trained for one epoch; not to be changed."""
    path = tmp_path_factory.mktemp("scores") / "el2n.npy"
    compute(config.load(["--config", str(config_file), f"--prune.scores={path}"]), loaders)
    return path


def copy(file: Path, to: Path) -> Path:
    for suffix in (".npy", ".json"):
        shutil.copy(file.with_suffix(suffix), to / f"copy{suffix}")
    return to / "copy.npy"


# What is computed


def test_el2n_is_the_mean_over_models_by_dataset_position(settings: Settings, loaders: Loaders, beton: Beton) -> None:
    made = compute(settings(static__epochs=0), loaders)
    expected = []
    for seed in json.loads(made.path.with_suffix(".json").read_text())["seeds"]:
        torch.manual_seed(seed)
        model = build_model("basic_cnn", 10, loaders.dataset.mean, loaders.dataset.std).eval()
        with torch.inference_mode():
            probability = model(as_tensor(beton)).double().softmax(1).numpy()
        expected.append(np.linalg.norm(probability - np.eye(10)[beton.labels], axis=1))
    assert made.scores().dtype == np.float32
    np.testing.assert_allclose(made.scores(), expected, rtol=1e-4)
    assert (expected[0] != expected[1]).any()
    state = build("static", scores=str(made.path)).start(len(beton))
    np.testing.assert_allclose(state.table.fixed, np.mean(expected, axis=0), rtol=1e-4)


def test_grand_is_computed_at_initialisation(settings: Settings, loaders: Loaders, beton: Beton) -> None:
    made = compute(settings(static__method="grand", static__epochs=0, static__models=1), loaders)
    description = json.loads(made.path.with_suffix(".json").read_text())
    torch.manual_seed(description["seeds"][0])
    model = build_model("basic_cnn", 10, loaders.dataset.mean, loaders.dataset.std).eval()
    np.testing.assert_allclose(made.scores(), [naive_grand(model, as_tensor(beton), beton.labels)], rtol=1e-4)
    assert made.seconds["train"] == 0
    assert 0 < made.seconds["score"] <= made.seconds["total"]


def test_forgetting_is_counted_on_the_training_steps(settings: Settings, loaders: Loaders, beton: Beton) -> None:
    """Counted anew from what the network saw and said: without augmentation, pixels identify a sample."""
    id_of = {image.tobytes(): i for i, image in enumerate(as_tensor(beton).numpy())}
    presentations: list[tuple[int, bool]] = []

    def watch(module: nn.Module, inputs: tuple[Any, ...], logits: torch.Tensor) -> None:
        if in_a_step(module) and isinstance(module, nn.Sequential) and hasattr(module, "normalize"):
            ids = [id_of[image.contiguous().numpy().tobytes()] for image in inputs[0]]
            right = logits.argmax(1).numpy() == beton.labels[ids]
            presentations.extend(zip(ids, right.tolist(), strict=True))

    hook = nn.modules.module.register_module_forward_hook(watch)
    try:
        made = compute(settings(static__method="forget", static__models=1, static__epochs=3), loaders)
    finally:
        hook.remove()
    assert len(presentations) == 3 * (len(beton) // BATCH) * BATCH
    assert made.scores().tolist() == [naive_forget_scores(len(beton), presentations, 3)]
    assert len(set(made.scores()[0].tolist())) > 1


def test_the_same_seed_repeats_the_scores_bit_by_bit(settings: Settings, loaders: Loaders, el2n_file: Path) -> None:
    first = np.load(el2n_file)
    np.testing.assert_array_equal(compute(settings(), loaders).scores(), first)
    other = compute(settings(run__seed=1, prune__scores=el2n_file.with_name("other.npy")), loaders)
    assert (other.scores() != first).any()


def test_the_schedule_is_cut_off_not_shortened(
    settings: Settings, loaders: Loaders, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self, *a, **k: (rates.append(self.param_groups[0]["lr"]), step(self, *a, **k))
    )
    compute(settings(static__models=1, train__epochs=4, train__lr_milestones=0.5), loaders)
    assert rates == [0.02] * 6


def test_the_models_that_score_train_at_the_sides_of_the_ramp(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ramp = {"data__augment": "random_resized_crop", "data__size": 64, "data__size_ramp": "32,64,0.25,0.5"}
    made = settings(**ramp, static__epochs=3)
    asked = []
    with closing(Loaders(made)) as loaders:
        resize = loaders.resize

        def watched(epoch: int, epochs: int) -> bool:
            asked.append((epoch, epochs))
            return resize(epoch, epochs)

        monkeypatch.setattr(loaders, "resize", watched)
        compute(made, loaders)
    assert asked == [(epoch, 3) for _ in range(2) for epoch in range(3)]


def test_a_proxy_scores_in_place_of_the_model(settings: Settings, loaders: Loaders) -> None:
    own = settings(model__name="resnet_tiny", static__model="basic_cnn", static__epochs=0, prune__method="static")
    made = compute(own, loaders)
    assert made.model == "basic_cnn"
    result = train(own, loaders)
    assert result.method == "el2n(basic_cnn)"


# The files


def test_scores_are_computed_once(settings: Settings, loaders: Loaders, el2n_file: Path, beton: Beton) -> None:
    before = el2n_file.stat().st_mtime_ns
    found = compute(settings(prune__scores=el2n_file, prune__keep=0.9, train__eval_every=2), loaders)
    assert el2n_file.stat().st_mtime_ns == before
    assert found.seconds["total"] > 0
    np.testing.assert_array_equal(np.load(el2n_file), found.scores())
    with pytest.raises(UserError, match=r"static\.models=2, not 3"):
        compute(settings(prune__scores=el2n_file, static__models=3), loaders)
    with pytest.raises(UserError, match=r"train\.lr=0\.02, not 0\.03"):
        compute(settings(prune__scores=el2n_file, train__lr=0.03), loaders)


def test_an_interrupted_computation_leaves_nothing_that_counts(
    settings: Settings, loaders: Loaders, el2n_file: Path, tmp_path: Path
) -> None:
    path = copy(el2n_file, tmp_path)
    path.with_suffix(".json").unlink()  # written last
    with pytest.raises(UserError, match="no static scores there yet"):
        train(settings(prune__method="static", prune__scores=path), loaders)
    compute(settings(prune__scores=path), loaders)
    assert path.read_bytes() == el2n_file.read_bytes()


def test_scores_of_other_data_are_refused_before_anything_is_written(
    settings: Settings, el2n_file: Path, tmp_path: Path
) -> None:
    other = write_beton(tmp_path / "other.beton", seed=5)
    own = settings(prune__method="static", prune__scores=el2n_file, data__train=other.path)
    with pytest.raises(UserError, match=r"another data set than data\.train; name another prune\.scores"):
        train(own)
    with pytest.raises(UserError, match="another data set"):
        compute(own)
    assert not Path(own.run.out).exists()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), "damaged"),
        (lambda path: path.unlink(), "cannot read"),
        (lambda path: path.with_suffix(".json").write_text("{"), "does not describe"),
        (lambda path: path.with_suffix(".json").write_text("[]"), "does not describe"),
        (lambda path: path.with_suffix(".json").write_text('{"method": "el2n"}'), "does not describe"),
    ],
)
def test_damaged_scores_are_refused(
    damage: Callable[[Path], object], says: str, settings: Settings, loaders: Loaders, el2n_file: Path, tmp_path: Path
) -> None:
    path = copy(el2n_file, tmp_path)
    damage(path)
    own = settings(prune__method="static", prune__scores=path)
    with pytest.raises(UserError, match=says):
        train(own, loaders)
    assert not Path(own.run.out).exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-4]),
        lambda path: path.with_suffix(".json").write_bytes(path.with_suffix(".json").read_bytes()[:100]),
        lambda path: path.with_suffix(".json").write_bytes(b""),
    ],
)
def test_damaged_scores_are_computed_anew(
    damage: Callable[[Path], object], settings: Settings, loaders: Loaders, el2n_file: Path, tmp_path: Path
) -> None:
    """Defect: the error named, as the remedy, the command that had just been given."""
    path = copy(el2n_file, tmp_path)
    damage(path)
    made = compute(settings(prune__scores=path), loaders)
    assert path.read_bytes() == el2n_file.read_bytes()
    assert made == compute(settings(prune__scores=path), loaders)
    np.testing.assert_array_equal(made.scores(), np.load(el2n_file))


def test_scores_of_another_recipe_are_not_replaced_even_if_they_are_damaged(
    settings: Settings, loaders: Loaders, el2n_file: Path, tmp_path: Path
) -> None:
    path = copy(el2n_file, tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"train\.lr=0\.02, not 0\.03"):
        compute(settings(prune__scores=path, train__lr=0.03), loaders)
    assert path.with_suffix(".json").read_bytes() == el2n_file.with_suffix(".json").read_bytes()


def test_a_json_file_of_another_kind_is_not_replaced(settings: Settings, loaders: Loaders, tmp_path: Path) -> None:
    own = tmp_path / "package.json"
    own.write_text('{"version": 1}')
    with pytest.raises(UserError, match=r"package\.json does not describe static scores; name another prune\.scores"):
        compute(settings(prune__scores=own.with_suffix(".npy")), loaders)
    assert own.read_text() == '{"version": 1}' and not own.with_suffix(".npy").exists()


# The runs


def run(own: config.Config, loaders: Loaders) -> tuple[str, dict[str, str], list[np.ndarray]]:
    """Train; return the method's name, result.csv and the selections."""
    result = train(own, loaders)
    with (result.folder / "result.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    return result.method, row, [np.load(path) for path in sorted((result.folder / "selections").iterdir())]


def top(scores: np.ndarray, k: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k])


def test_a_static_run_keeps_the_highest_scores_and_names_their_cost(
    settings: Settings, loaders: Loaders, el2n_file: Path
) -> None:
    method, row, selections = run(settings(prune__method="static", prune__scores=el2n_file), loaders)
    scores = np.load(el2n_file).mean(axis=0)
    assert method == row["method"] == "el2n"
    assert [ids.tolist() for ids in selections] == [top(scores, round(KEEP * len(scores)))] * 3
    seconds = json.loads(el2n_file.with_suffix(".json").read_text())["seconds"]
    assert float(row["static_seconds"]) == pytest.approx(seconds["total"], abs=1e-3)
    assert seconds["total"] >= seconds["train"] + seconds["score"] > 0
    assert float(row["score_seconds"]) < 0.001


def test_static_epsilon_greedy_draws_a_share_anew_each_time(
    settings: Settings, loaders: Loaders, el2n_file: Path
) -> None:
    own = settings(prune__method="static_epsilon_greedy", prune__scores=el2n_file, prune__epsilon=0.5)
    method, _, selections = run(own, loaders)
    scores = np.load(el2n_file).mean(axis=0)
    k = round(KEEP * len(scores))
    always = set(top(scores, k - round(0.5 * k)))
    assert method == "el2n_epsilon_greedy"
    assert all(always <= set(ids.tolist()) and len(ids) == k for ids in selections)
    assert len({ids.tobytes() for ids in selections}) == 3


def test_static_ucb_takes_the_models_for_selections(settings: Settings, loaders: Loaders, el2n_file: Path) -> None:
    own = settings(prune__method="static_ucb", prune__scores=el2n_file, prune__alpha=0.6, prune__c=40)
    method, _, selections = run(own, loaders)
    first, second = np.load(el2n_file).astype(np.float64)
    scores = 0.6 * second + 0.4 * first + 40 * 0.6 * (second - first) ** 2
    k = round(KEEP * len(scores))
    assert method == "el2n_ucb"
    assert [ids.tolist() for ids in selections] == [top(scores, k)] * 3
    assert top(scores, k) != top(first + second, k)


def test_static_ucb_needs_several_models(settings: Settings, loaders: Loaders) -> None:
    own = settings(static__models=1, static__epochs=0, prune__method="static_ucb")
    compute(own, loaders)
    with pytest.raises(UserError, match=r"raise static\.models"):
        train(own, loaders)


def test_static_random_is_drawn_once_from_the_seed(settings: Settings, loaders: Loaders, beton: Beton) -> None:
    def chosen(seed: int) -> np.ndarray:
        _, row, selections = run(settings(prune__method="static_random", run__seed=seed), loaders)
        assert row["static_seconds"] == "0.0"
        assert len(selections) == 3 and all((ids == selections[0]).all() for ids in selections)
        return selections[0]

    assert (chosen(0) == chosen(0)).all()
    assert (chosen(0) != chosen(1)).any()
    counts = np.zeros(20)
    for seed in range(1000):  # each sample with probability k/n: 250 of 1,000, standard deviation 13.7
        selection = build("static_random", keep=0.25).start(20, seed=seed).select(0)
        assert selection is not None
        counts[selection.ids] += 1
    assert np.abs(counts - 250).max() < 4.5 * 13.7
