"""Importing FFCV sets torch and numba to one thread: undone here, before anything of ours uses FFCV."""

import numba
import torch

_torch_threads, _numba_threads = torch.get_num_threads(), numba.get_num_threads()
import ffcv  # noqa: E402, F401 - for what it does to them

torch.set_num_threads(_torch_threads)
numba.set_num_threads(_numba_threads)
