"""The sections of a training run's configuration but for its method: every key, with its meaning, range and default."""

from __future__ import annotations

from dataclasses import dataclass

from ffcv_prune.settings import REQUIRED, key

# `models.MODELS` without torch, which a command that only reads its arguments does not import.
MODEL_NAMES = (
    *("basic_cnn", "cifar_fast", "cifar_fast_narrow", "cifar_fast_small", "cifar_fast_wide", "resnet18_blurpool"),
    *("resnet18_cifar", "resnet34_cifar", "resnet_small", "resnet_tiny", "vgg16"),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """the run and its folder"""

    name: str = key("", "folder name of the run; empty: the config file's name")
    out: str = key("runs", "folder that holds the run folders")
    save_every: float = key(300.0, "seconds between saves; the end of the run and a signal save too", within="[0, inf)")
    profile: bool = key(False, "print where the time went when the run ends, into profile.json too; short: --profile")
    tracker: str = key(
        "none",
        "where the log and the histogram of scores go beside log.jsonl; each is an extra of the same name",
        choices=("none", "tensorboard", "wandb", "mlflow", "trackio"),
    )
    seed: int = key(0, "seed of weights, order, augmentation and selection", within="[0, 4294967295]")


@dataclass(frozen=True, kw_only=True)
class Data:
    """the compiled data set and how its images are cut"""

    train: str = key(REQUIRED, "path of the training .beton")
    test: str = key(REQUIRED, "path of the test .beton")
    augment: str = key("none", "training augmentation", choices=("none", "pad_crop_flip", "random_resized_crop"))
    padding: int = key(4, "pad_crop_flip: pixels on each side, and so how far an image moves", within="[0, inf)")
    flip: str = key(
        "random",
        "pad_crop_flip: mirror each sample at random, or in every second epoch",
        choices=("random", "alternating"),
    )
    size: int = key(0, "side of the images fed to the model; 0: as stored", within="[0, inf)")
    size_ramp: tuple[float, ...] = key(
        (),
        "progressive resizing: first side, last side, and the fractions of the run between which the side of the "
        "training images grows, in steps of 32, such as 160,192,0.74,0.86; empty: data.size",
        within="(0, inf)",
    )
    test_size: int = key(0, "side of the test images; 0: data.size", within="[0, inf)")
    test_flip: bool = key(False, "test by the mean of the outputs for an image and for its mirror image")
    test_ratio: float = key(1.0, "centre crop over image side, scoring and test", within="(0, 1]")
    score: str = key("", "path of a smaller .beton of the same training samples, to score; empty: data.train")
    score_size: int = key(
        0, "side of the images in scoring; 0: data.size, or as stored in data.score", within="[0, inf)"
    )
    score_batch_size: int = key(
        0, "images per batch in scoring and test, over all processes; 0: twice train.batch_size", within="[0, inf)"
    )
    num_workers: int = key(-1, "loader threads; -1: all cores available, with a GPU but one", within="[-1, inf)")


@dataclass(frozen=True, kw_only=True)
class Model:
    """the network"""

    name: str = key(
        REQUIRED,
        f"{', '.join(MODEL_NAMES)}, a classification model of torchvision or timm such as resnet18, or "
        "package.module:function, which gets num_classes",
    )
    weights: str = key("", "file with the state_dict to begin with; empty: random weights")
    classes: int = key(0, "number of classes; 0: from the data set's manifest", within="[0, inf)")


@dataclass(frozen=True, kw_only=True)
class Train:
    """optimiser, schedule and device"""

    epochs: int = key(REQUIRED, "passes over the data, or over what is kept of it", within="[1, inf)")
    batch_size: int = key(128, "images per step, over all processes", within="[1, inf)")
    lr: float = key(0.1, "peak learning rate", within="(0, inf)")
    momentum: float = key(0.9, "momentum of SGD", within="[0, 1)")
    nesterov: bool = key(True, "Nesterov momentum")
    weight_decay: float = key(5e-4, "weight decay", within="[0, inf)")
    norm_decay: bool = key(True, "weight decay on biases and on the parameters of norms, too")
    task: str = key(
        "auto",
        "what the targets are; auto: classes (an IntField) or a number (a FloatField)",
        choices=("auto", "classification", "multi_label", "regression"),
    )
    label_smoothing: float = key(0.0, "label smoothing of the training loss", within="[0, 1)")
    lr_schedule: str = key("step", "shape of the learning rate", choices=("step", "cosine", "linear"))
    lr_milestones: tuple[float, ...] = key(
        (0.3, 0.6, 0.8), "where a step schedule drops, as fractions of the run, rising", within="(0, 1)"
    )
    lr_factor: float = key(0.2, "factor of each drop", within="(0, 1]")
    warmup_epochs: float = key(0.0, "epochs in which the learning rate rises linearly", within="[0, inf)")
    device: str = key("auto", "auto: the GPU if there is one", pattern=r"auto|cpu|cuda(:\d+)?")
    amp: str = key("auto", "mixed precision; auto: as the hardware has it", choices=("auto", "bf16", "fp16", "off"))
    ema: float = key(
        0.0,
        "decay of a step of a moving mean of the weights, which is tested and written at the end; 0: none",
        within="[0, 1)",
    )
    compile: str = key(
        "off",
        "mode of torch.compile for the training step",
        choices=("off", "default", "reduce-overhead", "max-autotune"),
    )
    eval_every: int = key(1, "epochs between tests; the last epoch is always tested", within="[1, inf)")


@dataclass(frozen=True, kw_only=True)
class StaticScores:
    """what python -m ffcv_prune.static_scores writes to prune.scores, before training"""

    method: str = key("el2n", "the score", choices=("el2n", "grand", "forget"))
    model: str = key("", "network that scores, a proxy; empty: model.name")
    models: int = key(10, "independent models to average over", within="[1, inf)")
    epochs: int = key(20, "of the schedule, trained before scoring, or over which to count", within="[0, inf)")
