"""python -m benchmarks.selectors: `topk.py` beside this says what it measures and how to read it.

Only the command is here. A script of this folder that is started by its path has the folder before the standard
library, which then takes this file for its own `selectors`: it is handed that one.
"""

import sys

if __name__ == "selectors":
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec
    from sysconfig import get_path

    spec = PathFinder.find_spec("selectors", [get_path("stdlib")])
    assert spec is not None and spec.loader is not None
    sys.modules["selectors"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["selectors"])
elif __name__ == "__main__":
    from benchmarks.topk import main
    from ffcv_prune.errors import run_command

    run_command(main)
