"""Batch norms folded into the convolutions before them: the same scores from fewer passes over memory."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

PROBES = 8  # images on which the folded model is held against the model
# Of any output, and relative to it or the largest: float32 rounds to far less, a model traced wrongly is far off.
TOLERANCE, RELATIVE_TOLERANCE = 1e-2, 1e-3

_FOLDED = (_BatchNorm, _ConvNd, nn.Linear)


class _Tracer(fx.Tracer):
    """Goes into modules that have batch norms, and into no others: what is not looked into may do as it likes."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return super().is_leaf_module(module, qualified_name) or not _has_batch_norm(module)


def fold_batch_norm(model: nn.Module) -> nn.Module | None:
    """Return a copy of `model`, in evaluation mode, whose batch norms are folded into their convolutions.

    In evaluation mode a batch norm is an affine map with fixed numbers. The convolution before it can include this map
    (torch.nn.utils.fuse_conv_bn_eval). The tracer of torch.fx finds the pairs. The result is None for a model without
    batch norm, a compiled model, and a model that cannot be traced. It is also None for a model that sets its own
    precision (torch.autocast): a trace would lose it. It is None for a model with hooks: a copy would not call them.
    It is None for a model that uses a layer twice which could be folded: torch would fold it twice.
    The copy may be wrong where the model takes another path under a tracer: ask `agrees`.

    Not to be called while other threads run modules: the tracer takes over `nn.Module.__call__`.
    """
    if not _has_batch_norm(model) or any(
        module._forward_hooks or module._forward_pre_hooks or getattr(module, "_compiled_call_impl", None)
        for module in model.modules()
    ):
        return None
    try:
        root = copy.deepcopy(model)
        with _no_autocast():
            graph = _Tracer().trace(root)
        used = Counter(node.target for node in graph.nodes if node.op == "call_module")
        if any(used[name] > 1 for name, module in root.named_modules() if isinstance(module, _FOLDED)):
            return None
        return fuse(fx.GraphModule(root, graph), inplace=True, no_trace=True)
    except Exception:  # of the model's own code, which a tracer may lead anywhere
        return None


def agrees(folded: nn.Module, model: nn.Module, images: Tensor) -> bool:
    """Whether both say the same of the first of `images` [B, ...], in float32. Waits for the device."""
    probes = images[:PROBES].float() if images.is_floating_point() else images[:PROBES]
    try:
        with _without_tf32(images.is_cuda), torch.autocast(images.device.type, enabled=False):
            found, expected = (one(probes).float() for one in (folded, model))
        allowed = min(TOLERANCE, RELATIVE_TOLERANCE * float(expected.abs().max()))
        return torch.allclose(found, expected, rtol=RELATIVE_TOLERANCE, atol=allowed)  # not where any is nan
    except Exception:  # as above, or no tensor; what is wrong with the model itself shows in the pass
        return False


@contextmanager
def _no_autocast() -> Iterator[None]:
    """TypeError where a model enters torch.autocast. Setting the precision by torch's functions goes unnoticed."""

    def refuse(_: torch.autocast) -> None:
        raise TypeError("a trace would lose the precision that the model sets")

    enter = torch.autocast.__enter__
    torch.autocast.__enter__ = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast.__enter__ = enter  # type: ignore[method-assign]


def _without_tf32(cuda: bool) -> AbstractContextManager[None]:
    """Convolutions in all of float32's bits: cuDNN's TF32, which is on by default, rounds by more than TOLERANCE."""
    if not cuda:
        return nullcontext()
    cudnn = torch.backends.cudnn
    kept = {"enabled": cudnn.enabled, "benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
    return cudnn.flags(**kept, allow_tf32=False)


def _has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(part, _BatchNorm) for part in module.modules())
