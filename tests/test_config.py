"""Configurations: who wins, what comes back, and what is refused with which line."""

from __future__ import annotations

import dataclasses
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffcv_prune import methods
from ffcv_prune.config import RECIPE_SECTIONS, SECTIONS, Config, load
from ffcv_prune.data.recipe import RECIPES, Recipe
from ffcv_prune.errors import UserError
from ffcv_prune.strict_args import PATTERNS, parse_command_line
from ffcv_prune.yaml_settings import read_yaml

CONFIGS = Path(__file__).parents[1] / "rn_configs"
MINIMAL = """\
data: {train: train.beton, test: test.beton}
model: {name: basic_cnn}
train: {epochs: 20}
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    return write(tmp_path / "minimal.yaml", MINIMAL)


def load_with(path: Path, *overrides: str) -> Config:
    return load(["--config", str(path), *overrides])


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_with(path, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_are_the_papers(minimal: Path) -> None:
    config = load_with(minimal)
    assert config.run.name == "minimal"
    assert (config.train.lr, config.train.momentum, config.train.nesterov) == (0.1, 0.9, True)
    assert (config.train.weight_decay, config.train.batch_size) == (5e-4, 128)
    assert config.train.lr_milestones == (0.3, 0.6, 0.8)
    assert config.prune == methods.PRESETS["full"]
    ucb = load_with(minimal, "--prune.method=ucb").prune
    assert [ucb.values[name] for name in ("keep", "period", "alpha", "c")] == [0.3, 10, 0.8, 1.0]


def test_command_line_beats_file_beats_base_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "shared" / "root.yaml", MINIMAL + "prune: {method: ucb, alpha: 0.1, c: 0.1, period: 4}\n")
    write(tmp_path / "base.yaml", "base: shared/root.yaml\nprune: {alpha: 0.2, c: 0.2}\n")
    path = write(tmp_path / "configs" / "top.yaml", "base: ../base.yaml\nprune: {alpha: 0.3}\n")
    monkeypatch.setenv("prune.period", "3")  # fastargs would let the environment win
    monkeypatch.setenv("prune.alpha", "0.9")
    config = load_with(path, "--prune.random_share=0.4")
    assert config.prune == methods.build("ucb", alpha=0.3, c=0.2, period=4, random_share=0.4)
    assert load_with(path, "--prune.alpha", "0.4").prune.values["alpha"] == 0.4
    assert load_with(path, "--prune.alpha=0.4", "--prune.alpha=0.5").prune.values["alpha"] == 0.5


def test_keys_that_a_lower_file_left_for_another_method_do_not_count(tmp_path: Path) -> None:
    write(tmp_path / "ucb.yaml", MINIMAL + "prune: {method: ucb, c: 2, keep: 0.4}\n")
    path = write(tmp_path / "random.yaml", "base: ucb.yaml\nprune: {method: random}\n")
    assert load_with(path).prune == methods.build("random", keep=0.4)
    assert load_with(tmp_path / "ucb.yaml", "--prune.method=ema").prune == methods.build("ema", keep=0.4)
    write(path, "base: ucb.yaml\nprune: {method: random, c: 3}\n")
    assert refusal(path) == f"prune.c ({path}): method random takes no c; leave it out"


@pytest.mark.parametrize("name", methods.PRESETS)
def test_every_method_reads_back_from_its_own_file(name: str, minimal: Path) -> None:
    needed = {"scores": "a.npy", "proxy_model": "resnet_tiny"}.items()
    options = [f"--prune.{key}={value}" for key, value in needed if key in methods.PRESETS[name].parameters]
    config = load_with(minimal, f"--prune.method={name}", *options)
    assert load_with(write(minimal.with_name("again.yaml"), config.to_yaml())) == config


def test_a_list_is_no_method(tmp_path: Path) -> None:
    assert "prune.method" in refusal(write(tmp_path / "a.yaml", MINIMAL + "prune: {method: [ucb]}\n"))


def test_score_source_exchanges_the_source_and_its_keys(minimal: Path) -> None:
    options = ["--prune.method=ucb", "--prune.score_source=training", "--prune.warmup=1", "--prune.warmup_mode=full"]
    config = load_with(minimal, *options)
    assert config.prune.makes_passes is False and config.prune.records_losses
    assert "takes no score_budget" in refusal(minimal, *options, "--prune.score_budget=0.5")


def test_base_chain_that_comes_back_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "base: b.yaml\n")
    path = write(tmp_path / "b.yaml", "base: a.yaml\n")
    assert "comes back to itself" in refusal(path)


def test_missing_base_names_both_files(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "a.yaml", "base: nowhere.yaml\n"))
    assert "a.yaml" in message
    assert "nowhere.yaml" in message


@pytest.mark.parametrize(
    ("argument", "section", "value"),
    [
        ("train.lr=5e-4", "train", 5e-4),  # YAML 1.1 reads a text
        ("train.amp=off", "train", "off"),  # YAML 1.1 reads false
        ("train.nesterov=False", "train", False),  # fastargs reads true
        ("train.nesterov=no", "train", False),
        ("train.nesterov=1", "train", True),
        ("train.lr_milestones=0.5,0.75", "train", (0.5, 0.75)),
        ("train.lr_milestones=", "train", ()),
        ("run.name=007", "run", "007"),
        ("data.num_workers=-1", "data", -1),
        ("train.momentum=0.5", "train", 0.5),
    ],
)
def test_a_value_reads_the_same_in_a_file_and_on_the_command_line(
    minimal: Path, argument: str, section: str, value: object
) -> None:
    name, _, text = argument.partition("=")
    key = name.partition(".")[2]
    on_command_line = load_with(minimal, f"--{argument}")
    separate = load_with(minimal, f"--{name}", text)
    file = write(minimal.parent / "file.yaml", f"base: minimal.yaml\n{section}:\n  {key}: {text}\n")
    in_file = load_with(file)
    for config in (on_command_line, separate, in_file):
        read = getattr(getattr(config, section), key)
        assert read == value
        assert type(read) is type(value)


def test_lists_may_be_yaml_lists(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", MINIMAL.replace("epochs: 20", "epochs: 20, lr_milestones: [0.2, 0.4]"))
    assert load_with(path).train.lr_milestones == (0.2, 0.4)


def test_a_section_may_be_empty(tmp_path: Path) -> None:
    assert load_with(write(tmp_path / "a.yaml", MINIMAL + "prune:\n#  keep: 0.3\n")).prune == methods.PRESETS["full"]


@pytest.mark.parametrize(
    ("argument", "fragments"),
    [
        ("train.lrr=0.1", ['"train.lrr"', 'did you mean "train.lr"?']),
        ("prune.methd=ucb", ['did you mean "prune.method"?']),
        ("confg=a.yaml", ['did you mean "config"?']),
        ("base=minimal.yaml", ['unknown key "base"']),
        ("train=3", ['unknown key "train"']),
        ("train.lr=fast", ["train.lr=fast", "expected a number in (0, inf)"]),
        ("train.lr=nan", ["expected a number"]),
        ("train.lr=", ["expected a number"]),
        ("train.epochs=2.5", ["train.epochs=2.5", "expected an integer in [1, inf)"]),
        ("train.epochs=0", ["expected an integer in [1, inf)"]),
        ("train.nesterov=on", ["train.nesterov=on", "expected true or false"]),
        ("train.lr_milestones=0.3,x", ["train.lr_milestones=0.3,x", "list of numbers"]),
        ("train.lr_milestones=0.3,1.5", ["in (0, 1)"]),
        ("train.lr_milestones=0.6,0.3", ["must rise"]),
        ("train.lr_schedule=stepp", ['did you mean "step"?']),
        ("train.device=gpu", ["train.device=gpu", "expected one of auto, cpu, cuda, cuda:0"]),
        ("train.momentum=0", ["train.nesterov=false"]),
        ("train.warmup_epochs=20", ["train.warmup_epochs", "train.epochs=20"]),
        ("prune.method=ucbb", ["prune.method=ucbb", 'did you mean "ucb"?']),
        ("prune.method=UCB", ["prune.method=UCB", 'did you mean "ucb"?']),
        ("prune.method=EL2N", ["prune.method=EL2N", "set prune.method=static and static.method=el2n"]),
        ("prune.method=forget", ["set prune.method=static and static.method=forget"]),
        ("prune.keep=0.3", ["method full takes no keep", "prune.method"]),
        ("data.num_workers=0", ["data.num_workers=0"]),
        ("run.name=../elsewhere", ["run.name=../elsewhere", "run.out"]),
    ],
)
def test_bad_values_are_refused_with_key_value_and_expectation(
    minimal: Path, argument: str, fragments: list[str]
) -> None:
    message = refusal(minimal, f"--{argument}")
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize(
    ("argument", "fragments"),
    [
        ("prune.keep=0", ["prune.keep=0", "expected a number in (0, 1]"]),
        ("prune.keep=1.01", ["expected a number in (0, 1]"]),
        ("prune.period=0", ["prune.period=0", "expected an integer in [1, inf)"]),
        ("prune.warmup=21", ["warmup = 21 and final = 0 do not fit into 20 epochs"]),
        ("prune.epsilon=0.1", ["method ucb takes no epsilon"]),
        ("prune.score_source=passes", ['did you mean "pass"?']),
    ],
)
def test_bad_parameters_of_a_method_are_refused(minimal: Path, argument: str, fragments: list[str]) -> None:
    message = refusal(minimal, "--prune.method=ucb", f"--{argument}")
    for fragment in fragments:
        assert fragment in message


def test_a_bad_value_in_a_base_file_names_that_file(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", MINIMAL + "prune: {method: ucb, keep: [0.3]}\n")
    message = refusal(write(tmp_path / "a.yaml", "base: base.yaml\n"))
    assert "prune.keep=0.3" in message
    assert "base.yaml" in message


@pytest.mark.parametrize("key", ["data.train", "data.test", "model.name", "train.epochs"])
def test_required_keys(tmp_path: Path, key: str) -> None:
    section, _, name = key.partition(".")
    content = read_yaml(write(tmp_path / "all.yaml", MINIMAL))
    del content[section][name]
    message = refusal(write(tmp_path / "a.yaml", str(content)))
    assert f"{key} is required" in message


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("train:\n  lr: [0.1\n", ["a.yaml:3"]),
        ("train:\n  lr: 1\n  lr: 2\n", ["a.yaml:3", 'duplicate key "lr"']),
        ("train:\n  lr: 1\ntrain.lr: 2\n", ["a.yaml", 'duplicate key "train.lr"']),
        ("? [a, b]\n: 1\n", ["a.yaml:1"]),
        ("- a\n", ["a.yaml", "key: value"]),
        ("a: 1\n---\nb: 2\n", ["a.yaml:2"]),
    ],
)
def test_yaml_faults_name_file_and_line(tmp_path: Path, text: str, fragments: list[str]) -> None:
    message = refusal(write(tmp_path / "a.yaml", text))
    for fragment in fragments:
        assert fragment in message


def test_unreadable_files(tmp_path: Path, minimal: Path) -> None:
    assert refusal(tmp_path / "nowhere.yaml").endswith("No such file or directory")
    assert refusal(tmp_path / "mimimal.yml").endswith(f'No such file or directory; did you mean "{minimal}"?')
    dangling = tmp_path / "dangling.yaml"
    dangling.symlink_to(tmp_path / "gone")
    assert refusal(dangling).endswith("No such file or directory")
    assert refusal(tmp_path / "no" / "minimal.yaml").endswith("No such file or directory")
    binary = tmp_path / "weights.pt"
    binary.write_bytes(b"\xff\xfe\x00\x80\x04")
    assert "weights.pt" in refusal(binary)


def test_yaml_builds_no_python_objects(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", 'name: !!python/object/apply:os.system ["exit 1"]\n')
    assert read_yaml(path) == {"name": ["exit 1"]}


@pytest.mark.parametrize("argv", [[], ["train.yaml"], ["--config"], ["--config", "--train.lr=1"], ["--"]])
def test_malformed_command_lines(argv: list[str]) -> None:
    with pytest.raises(UserError):
        load(argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--profil"], "unknown option --profil; did you mean --profile?"),
        (["--profil", "--config=a.yaml"], "unknown option --profil; did you mean --profile?"),
        (["--xyz"], "unknown option --xyz; see --help"),
        (["--confg", "a.yaml"], "unknown option --confg; did you mean --config?"),
        (["--confg=a.yaml", "--train.lr=1"], "unknown option --confg; did you mean --config?"),
        (["--config"], "--config needs a value; write --config=VALUE"),
        (["--train.lr"], "--train.lr needs a value; write --train.lr=VALUE"),
        (["--profile=yes"], "--profile takes no value; write --profile"),
        (["a.yaml"], 'unexpected argument "a.yaml"; write --config a.yaml'),
        (["a.config"], 'unexpected argument "a.config"; write --config a.config'),
        (["train.lr=1"], 'unexpected argument "train.lr=1"; write --key=value'),
    ],
)
def test_malformed_command_lines_are_told_what_to_write(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.config", MINIMAL)
    with pytest.raises(UserError) as caught:
        load(argv)
    assert str(caught.value) == message


def test_profile_is_short_for_its_key(minimal: Path) -> None:
    assert load(["--profile", "--config", str(minimal)]).run.profile
    assert not load_with(minimal).run.profile


def test_a_recipe_is_no_training_config() -> None:
    """Defect: each of its keys was called unknown, and each required one missing, in a line of 1,700 characters."""
    path = RECIPES / "imagenet.yaml"
    remedy = f"use python write_datasets.py --dataset {path}"
    assert refusal(path) == f"{path} is a recipe, not a training config: {remedy}"
    assert tuple(field.name for field in dataclasses.fields(Recipe)) == RECIPE_SECTIONS


def test_the_pattern_of_a_key_is_put_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    """Defect: messages and --help showed the regular expression."""
    with pytest.raises(SystemExit):
        load(["--help"])
    text = capsys.readouterr().out
    assert "a text matching" not in text
    for words in PATTERNS.values():
        assert f"; {words}; default" in text


def test_the_first_faults_are_told_at_once(minimal: Path) -> None:
    message = refusal(
        minimal, "--prune.method=random", "--prune.c=2", "--prune.epsilon=1", "--train.lrr=1", "--train.epochs=0"
    )
    for fragment in ("takes no c;", "takes no epsilon;", 'mean "train.lr"?'):
        assert fragment in message
    assert message.endswith(" | and 1 more") and message.count(" | ") == 3
    message = refusal(minimal, "--train.warmup_epochs=30", "--train.momentum=0", "--data.num_workers=0")
    assert message.count(" | ") == 2


def test_a_config_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(["--config=cifar10_ucb"]) == load_with(CONFIGS / "cifar10_ucb.yaml")
    assert 'no config "cifar10_ubc"; did you mean "cifar10_ucb"?' in refusal(Path("cifar10_ubc"))
    path = Path("rn_configs/cifar10_ucb.yaml")
    assert refusal(path) == f"{path} does not exist; --config=cifar10_ucb is the one that comes with ffcv_prune"
    write(tmp_path / "cifar10_ucb", MINIMAL)  # a file there is what is meant
    assert load(["--config=cifar10_ucb"]).model.name == "basic_cnn"


def test_a_run_to_go_on_from(minimal: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run / "config.yaml", load_with(minimal, "--prune.method=ucb").to_yaml())
    with pytest.raises(UserError, match=r"did not finish.*--resume"):
        load(["--init-from", str(run)])
    write(run / "weights.pt", "")
    config = load(["--init-from", str(run), "--train.epochs=7"])
    assert (config.model.weights, config.train.epochs, config.run.name) == (str(run / "weights.pt"), 7, "minimal")
    for options in (["--config", str(minimal)], ["--resume", str(run)]):
        with pytest.raises(UserError, match="exclude each other"):
            load([*options, "--init-from", str(run)])


def test_help_lists_every_key_and_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for section in SECTIONS:
        assert f"\n{section}: " in text
    assert "--prune.save" in text and "--train.lr_milestones" in text
    assert "default 0.3,0.6,0.8" in text
    assert "resnet18_cifar, " in text and "timm" in text
    (line,) = (line for line in text.splitlines() if line.startswith("  --prune.method "))
    assert line.endswith("; default full")  # what a config without the key gets


def test_help_tells_where_methods_differ(capsys: pytest.CaptureFixture[str]) -> None:
    """Defect: of a key that methods share, only the meaning and default of the first method were there."""
    with pytest.raises(SystemExit):
        load(["--help"])
    text = capsys.readouterr().out
    for name, method in methods.PRESETS.items():
        period = next((part.period for part in method.other_parts if hasattr(part, "period")), None)
        lines = [line for line in text.splitlines() if line.startswith("  --prune.period ")]
        assert len(lines) == 2
        if period is not None:
            assert any(line.endswith(f"default {period}") for line in lines)
            assert (re.search(rf"\b{name}\b", lines[1]) is not None) == (period != 1)
    ratios = [line.split(maxsplit=1)[1] for line in text.splitlines() if line.startswith("  --prune.ratio ")]
    assert [ratio.partition(":")[0] for ratio in ratios] == ["infobatch, bls", "repb", "seta"]


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"ffcv_prune {version('ffcv_prune')}\n"


def test_config_is_immutable(minimal: Path) -> None:
    config = load_with(minimal)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.lr = 1.0  # type: ignore[misc]


@settings(max_examples=25, deadline=None)
@given(
    name=st.text(st.characters(exclude_categories=["C"], exclude_characters="/"), max_size=12).filter(
        lambda s: not s.startswith(".")
    ),
    lr=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    milestones=st.lists(st.floats(0, 1, exclude_min=True, exclude_max=True), unique=True).map(sorted),
    nesterov=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_written_configuration_reads_back_identically(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    lr: float,
    milestones: list[float],
    nesterov: bool,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("config")
    config = load_with(
        write(folder / "a.yaml", MINIMAL),
        f"--run.name={name}",
        f"--run.seed={seed}",
        f"--train.lr={lr!r}",
        f"--train.lr_milestones={','.join(map(repr, milestones))}",
        f"--train.nesterov={nesterov}",
    )
    assert config.train.lr_milestones == tuple(milestones)
    assert load_with(write(folder / "config.yaml", config.to_yaml())) == config


def test_command_line_of_other_commands() -> None:
    options, overrides = parse_command_line(
        ["--dataset", "cifar10", "--data-dir=d", "--image.quality=90", "-h"], options=("dataset", "data-dir")
    )
    assert options == {"dataset": "cifar10", "data-dir": "d", "help": ""}
    assert overrides == {"image.quality": "90"}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_load_and_open_with_their_command(path: Path) -> None:
    assert load_with(path).run.name == path.stem
    first_line = path.read_text(encoding="utf-8").splitlines()[0]
    assert first_line == f"# python train_imagenet.py --config rn_configs/{path.name}"


def test_what_is_too_long_for_a_config_is_refused_unread(tmp_path: Path) -> None:
    """A data file, or a device that never ends."""
    path = tmp_path / "long.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: to read it all would need a terabyte of memory
    with pytest.raises(UserError, match="has more than 1,000,000 bytes: that is no config"):
        read_yaml(path)
