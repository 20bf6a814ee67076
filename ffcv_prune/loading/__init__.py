"""Importing FFCV sets torch to one thread for the whole process: undone here, before anything of ours uses FFCV."""

import torch

_torch_threads = torch.get_num_threads()
import ffcv  # noqa: E402, F401 - for what it does to torch

torch.set_num_threads(_torch_threads)
