"""The networks by name, each with its normalisation inside. torchvision, timm and your own modules have more.

================  =========================================================  ==============
name              network                                                    made for
================  =========================================================  ==============
resnet18_cifar    ResNet-18, 3x3 stem with stride 1, no max-pooling          32x32
resnet34_cifar    ResNet-34, 3x3 stem with stride 1, no max-pooling          32x32
vgg16             VGG16 with batch norm, one linear layer as head            32x32
basic_cnn         2 convolutions, 2 fully connected layers                   28x28, 32x32
resnet_small      3x3 stem with stride 1, 3 basic blocks, 32/64/128 wide     32x32, CPU
resnet_tiny       3x3 stem with stride 2, 2 basic blocks, 32/64 wide         28x28, CPU
cifar_fast        whitened patches, 6 convolutions, 32/128/128 wide          32x32, CPU
cifar_fast_small  the same, 16/64/128 wide                                   32x32, many runs
cifar_fast_narrow the same, 8/32/32 wide                                     32x32, a proxy
cifar_fast_wide   the same, 64/256/256 wide, as in cifar10-airbench          32x32
resnet18_blurpool ResNet-18 with blurred strides, as in ffcv-imagenet        224x224
================  =========================================================  ==============
"""

from __future__ import annotations

import inspect
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models

from ffcv_prune.errors import UserError, nearest, wrong_kind
from ffcv_prune.models.basic_cnn import basic_cnn
from ffcv_prune.models.cifar_fast import Whitening, cifar_fast, cifar_fast_narrow, cifar_fast_small, cifar_fast_wide
from ffcv_prune.models.normalize import Normalize
from ffcv_prune.models.resnet import (
    resnet18_blurpool,
    resnet18_cifar,
    resnet34_cifar,
    resnet_small,
    resnet_tiny,
)
from ffcv_prune.models.vgg import vgg16

MODELS: dict[str, Callable[[int], nn.Module]] = {
    "resnet18_cifar": resnet18_cifar,
    "resnet34_cifar": resnet34_cifar,
    "vgg16": vgg16,
    "basic_cnn": basic_cnn,
    "resnet_small": resnet_small,
    "resnet_tiny": resnet_tiny,
    "cifar_fast": cifar_fast,
    "cifar_fast_small": cifar_fast_small,
    "cifar_fast_narrow": cifar_fast_narrow,
    "cifar_fast_wide": cifar_fast_wide,
    "resnet18_blurpool": resnet18_blurpool,
}

WHITENING_IMAGES = 5000


def build_model(name: str, num_classes: int, mean: Sequence[float], std: Sequence[float]) -> nn.Sequential:
    """Build the model `name` with random weights, all parameters in the channels_last memory format.

    Args:
        name: a key of `MODELS`; a classification model of torchvision or timm; or ``package.module:function``, which
            is called with ``num_classes=`` and returns a module that takes float images [B, 3, H, W].
        num_classes: width of the output, at least 1.
        mean, std: of each of the 3 channels of the training images, in units of 0 to 1 (a manifest has them).

    Returns:
        A module that takes uint8 images ``[B, 3, H, W]`` (channels_last is fast, contiguous works). It returns logits
        ``[B, num_classes]``, float32 or the dtype of the surrounding autocast. Its children are `normalize` (see
        `Normalize`) and `network`.

    Raises:
        UserError: unknown name, no classes, or statistics that cannot normalise.
    """
    if num_classes < 1:
        raise UserError(f"model.classes is {num_classes}; a model needs at least 1 class")
    layers = OrderedDict(normalize=Normalize(mean, std), network=_network(name, num_classes))
    return nn.Sequential(layers).to(memory_format=torch.channels_last)


def whiten(model: nn.Sequential, batches: Iterable[Tensor]) -> None:
    """Give the whitening layer of a model of `build_model` its training images, where it has one.

    Args:
        batches: uint8[B, 3, H, W] each; as many of them are taken as make `WHITENING_IMAGES`.
    """
    layers = [module for module in model.modules() if isinstance(module, Whitening)]
    if not layers:
        return
    images, found = list[Tensor](), 0
    for batch in batches:
        images.append(batch.clone())  # a view of a loader's ring
        found += len(batch)
        if found >= WHITENING_IMAGES:
            break
    for layer in layers:
        layer.whiten(model.get_submodule("normalize")(torch.cat(images)))


def _network(name: str, num_classes: int) -> nn.Module:
    if ":" in name:
        return _own_network(name, num_classes)
    if name in MODELS:
        return MODELS[name](num_classes)
    torchvisions = models.list_models(module=models)
    if name in torchvisions:
        return models.get_model(name, num_classes=num_classes)
    timms = []
    if find_spec("timm"):  # not among our dependencies
        import timm

        timms = timm.list_models()
        if name in timms:
            return timm.create_model(name, num_classes=num_classes)
    raise UserError(f'model.name is "{name}"{nearest(name, [*MODELS, *torchvisions, *timms])}')


def _own_network(name: str, num_classes: int) -> nn.Module:
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:  # a command has the folder of its own file in it
        sys.path.insert(0, os.getcwd())
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if not error.name or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # something that the module imports
        raise UserError(f"model.name is {name}: there is no module {module_name} here or installed") from None
    except (TypeError, ValueError):
        raise UserError(f"model.name is {name}: write package.module:function") from None
    if not hasattr(module, function_name):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise UserError(f'model.name is {name}: {module_name} has no "{function_name}"{nearest(function_name, known)}')
    try:
        inspect.signature(getattr(module, function_name)).bind(num_classes=num_classes)
    except TypeError as error:
        raise UserError(f"model.name is {name}: it must take num_classes={num_classes} alone ({error})") from None
    network = getattr(module, function_name)(num_classes=num_classes)
    if not isinstance(network, nn.Module):
        raise wrong_kind(f"result of {name}", network, "a torch.nn.Module")
    return network


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a state_dict from a file into a model of `build_model`, or into its network alone.

    Parameters of another shape in the file, such as a head for other classes, are not loaded. A notice on standard
    error names them.

    Raises:
        UserError: no such file, one that is no state_dict, or one of another network.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"model.weights={path} does not exist") from None
    except Exception as error:  # a damaged file can make zipfile and the unpickler raise anything
        raise UserError(f"model.weights={path} cannot be read as a state_dict ({type(error).__name__})") from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"model.weights={path} holds no state_dict: save one with torch.save(model.state_dict(), …)")
    whole = any(name.startswith("network.") for name in state)
    target = model if whole else model.get_submodule("network")
    own = target.state_dict()
    differing = sorted(state.keys() ^ own.keys())
    if differing:
        raise UserError(f"model.weights={path} is of another network: only one of the two has {differing[0]}")
    other = [name for name, value in state.items() if value.shape != own[name].shape]
    target.load_state_dict({name: own[name] if name in other else value for name, value in state.items()})
    if other:
        print(f"notice: {path} has other shapes for {', '.join(other)}: they stay random", file=sys.stderr)
