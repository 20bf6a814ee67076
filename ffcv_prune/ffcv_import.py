"""Imports FFCV without what it does besides. Each module of ours that imports FFCV imports this one before.

* FFCV sets torch and numba to one thread: undone.
* FFCV keeps its two image modes in a numba dictionary. Its compilation takes three seconds in every process (measured:
  3.3 s of CPU time, against 0.1 s). Only Python reads it, so a plain dictionary is enough.
* Building one of FFCV's own loaders makes numba's type uint8[::1] read-only for the whole process. Whatever was
  compiled for that type before is then not found any more: KeyErrors, in the end from numba's finalizers. Here that
  loader compiles for a read-only type of its own, which is what was meant.
* FFCV makes numba start its threads. On a single core, with TBB (which libopencv-dev installs), a process may then
  never end. Numba's module for TBB waits for one of these threads when it is freed. After a fork, as in the writer,
  this always happens. So the module is never freed here.
"""

import ctypes
import sys
from typing import Any

import numba
import numba.typed
import numpy as np
import torch
from numba import types

from ffcv_prune.errors import UserError

DEBIAN_PACKAGES = "build-essential python3-dev pkg-config libopencv-dev libturbojpeg0-dev"  # FFCV compiles with them

_torch_threads, _numba_threads = torch.get_num_threads(), numba.get_num_threads()
_typed_dict, numba.typed.Dict = numba.typed.Dict, dict
try:
    import ffcv  # noqa: F401 - for what it does
except ImportError as error:
    reason = "is not installed" if error.name == "ffcv" else f"cannot be imported ({error})"
    raise UserError(
        f"FFCV {reason}: as root, apt-get install {DEBIAN_PACKAGES}; then "
        'pip install "ffcv_prune[ffcv]"; or use TorchLoader, which does without'
    ) from error
finally:
    numba.typed.Dict = _typed_dict
    torch.set_num_threads(_torch_threads)
    numba.set_num_threads(_numba_threads)

if _tbb := sys.modules.get("numba.np.ufunc.tbbpool"):  # loaded with the threads
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_tbb))

from ffcv.memory_managers import OSCacheManager  # noqa: E402
from ffcv.pipeline.compiler import Compiler  # noqa: E402

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_STATE = types.Tuple([_BYTES, types.uint64[::1], types.uint64[::1]])


def _compile_reader(self: OSCacheManager) -> Any:
    """FFCV's own, but for the types."""

    def read(address, state):  # type: ignore[no-untyped-def]
        size = state[2][np.searchsorted(state[1], address)]
        return state[0][address : address + size]

    return Compiler.compile(read, _BYTES(types.uint64, _STATE))


OSCacheManager.compile_reader = _compile_reader
