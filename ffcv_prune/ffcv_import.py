"""Imports FFCV without what that import does besides. Each module of ours that imports FFCV imports this one before.

* FFCV sets torch and numba to one thread: undone.
* FFCV keeps its two image modes in a numba dictionary, which takes three seconds of compilation in every process
  (measured: 3.3 s of CPU time, against 0.1 s). They are only read from Python, so a plain one serves.
"""

import numba
import numba.typed
import torch

_torch_threads, _numba_threads = torch.get_num_threads(), numba.get_num_threads()
_typed_dict, numba.typed.Dict = numba.typed.Dict, dict
try:
    import ffcv  # noqa: F401 - for what it does
finally:
    numba.typed.Dict = _typed_dict
    torch.set_num_threads(_torch_threads)
    numba.set_num_threads(_numba_threads)
