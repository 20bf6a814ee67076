import ffcv_prune.ffcv_import  # noqa: F401 - before anything of this folder imports FFCV
