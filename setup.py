"""Metadata and dependencies of ffcv_prune. Settings of the tools are in pyproject.toml."""

from glob import glob
from pathlib import Path

from setuptools import Extension, find_packages, setup

FFCV = [
    "ffcv==1.0.2",
    "setuptools",  # FFCV imports distutils, which Python 3.12 and newer have from setuptools alone
]
# An extra each. From the oldest versions that were tried with success: ffcv_prune/extras.py refuses older ones.
FRAMEWORKS = {
    "lightning": ["lightning>=2.5"],
    "accelerate": ["accelerate>=1.3"],
    "timm": ["timm>=1.0.3"],
    "transformers": ["transformers>=4.57", "accelerate>=1.3"],  # its Trainer runs on the second
}
ALL_FRAMEWORKS = sorted({package for packages in FRAMEWORKS.values() for package in packages})
HUGGINGFACE = ["datasets>=5"]
# Under 3.10 no release of the first works with the second.
DOCS = [f"{package}; python_version >= '3.11'" for package in ("mkdocs-material>=9.8", "mkdocstrings[python]>=1.0")]

# Where it cannot be built, FFCV's decoder serves. It is called by ctypes, hence not tied to a version of Python.
NATIVE = Extension(
    "ffcv_prune.loading._native",
    sorted(glob("ffcv_prune/loading/native/*.c")),
    depends=sorted(glob("ffcv_prune/loading/native/*.h")),
    libraries=["jpeg", "m"],
    extra_compile_args=["-O3", "-fvisibility=hidden", "-pthread"],
    extra_link_args=["-pthread"],
    py_limited_api=True,
    optional=True,
)

setup(
    name="ffcv_prune",
    version="0.1.0",
    description="Dynamic data pruning on FFCV: train on the samples that matter, re-chosen as training goes",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["ffcv_prune", "ffcv_prune.*"]),
    ext_modules=[NATIVE],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},  # one wheel for all versions of Python
    package_data={
        "ffcv_prune": ["write_datasets/*.yaml", "rn_configs/*.yaml", "py.typed"],  # links to the folders at the root
        "ffcv_prune.analysis": ["*.j2"],
    },
    entry_points={
        "console_scripts": [
            f"ffcv-prune-{name} = ffcv_prune.commands:{name}" for name in ("write", "train", "report", "scores")
        ]
    },
    install_requires=[
        "torch>=2.6",
        "torchvision",
        "numba",
        "numpy",
        "fastargs",
        "pyyaml",  # these two fastargs uses without declaring them
        "terminaltables",
        "pillow",  # FFCV writes images without declaring it
        "tqdm",
        "matplotlib",
        "scipy",
        "jinja2",
        "packaging",
    ],
    extras_require={
        "ffcv": FFCV,  # compiled where it is installed, with what docs/README.md names; without it TorchLoader serves
        **FRAMEWORKS,  # docs/frameworks.md
        "frameworks": ALL_FRAMEWORKS,
        "huggingface": HUGGINGFACE,  # the source of that name in recipes
        "analysis": ["pymc"],  # fits the always, sometimes and never samples
        "tensorboard": ["tensorboard"],  # the trackers: run.tracker
        "wandb": ["wandb"],
        "mlflow": ["mlflow"],
        "trackio": ["trackio"],
        "rivals": ["nvidia-dali-cuda120", "spdl", "grain", "simplejpeg"],  # what benchmarks/loading compares with
        "docs": DOCS,  # mkdocs build
        "test": [
            *FFCV,
            *ALL_FRAMEWORKS,
            *HUGGINGFACE,
            *DOCS,
            "tensorboard",  # of the trackers: the others take longer to install than their tests to run
            "pytest",
            "hypothesis",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "mypy",
            "types-PyYAML",
        ],
    },
)
