"""Batch norms folded into the convolutions before them: the same scores from fewer passes over memory."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.modules.batchnorm import _BatchNorm

PROBES = 8  # images on which the folded model is held against the model
TOLERANCE = 1e-2  # of the largest logit: rounding, TF32's too, stays far below, a model traced wrongly far above


class _Tracer(fx.Tracer):
    """Goes into modules that have batch norms, and into no others: what is not looked into may do as it likes."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return super().is_leaf_module(module, qualified_name) or not _has_batch_norm(module)


def fold_batch_norm(model: nn.Module, images: Tensor) -> nn.Module:
    """Return a copy of `model`, in evaluation mode, whose batch norms are folded into their convolutions.

    In evaluation mode a batch norm is an affine map with fixed numbers, which the convolution before it can apply
    along (torch.nn.utils.fuse_conv_bn_eval). torch.fx finds the pairs by tracing the model. What has none, cannot be
    traced, has hooks, which a copy would not call, or does not give the same logits as before for the first of
    `images` [B, ...] is returned as it is.
    """
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    if hooked or not _has_batch_norm(model):
        return model
    try:
        root = copy.deepcopy(model)
        folded = fuse(fx.GraphModule(root, _Tracer().trace(root)), inplace=True, no_trace=True)
        with torch.autocast(images.device.type, enabled=False):
            expected, found = model(images[:PROBES]), folded(images[:PROBES])
        error = (found - expected).abs().max() / expected.abs().max()
    except Exception:  # of the model's own code, which a tracer may lead anywhere
        return model
    return folded if error < TOLERANCE else model  # nan is not


def _has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(part, _BatchNorm) for part in module.modules())
