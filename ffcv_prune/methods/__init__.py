"""Methods of dynamic data pruning: `build` makes one, `PRESETS` lists them, `Method.start` begins a run."""

from ffcv_prune.methods.method import Method
from ffcv_prune.methods.presets import PRESETS, build
from ffcv_prune.methods.selection import Selection
from ffcv_prune.methods.state import State

__all__ = ["PRESETS", "Method", "Selection", "State", "build"]
