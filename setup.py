"""Metadata and dependencies of ffcv_prune. Settings of the tools are in pyproject.toml."""

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.dist_info import dist_info


def missing_for_ffcv() -> dict[str, str]:
    """What building FFCV needs and this machine lacks, and the Debian package that brings it."""
    compiler = (os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++").split()[0]
    pkg_config = shutil.which("pkg-config")

    def library(*names: str) -> bool:
        return pkg_config is not None and any(
            subprocess.run([pkg_config, "--exists", name]).returncode == 0 for name in names
        )

    found = {
        ("a C++ compiler", "build-essential"): shutil.which(compiler) is not None,
        ("Python.h", "python3-dev"): Path(sysconfig.get_path("include"), "Python.h").exists(),
        ("pkg-config", "pkg-config"): pkg_config is not None,
        ("OpenCV", "libopencv-dev"): library("opencv4", "opencv"),
        ("turbojpeg", "libturbojpeg0-dev"): library("libturbojpeg"),
    }
    return {thing: package for (thing, package), is_found in found.items() if not is_found}


def ffcv_is_installed() -> bool:
    """Whether FFCV is there already. pip's isolated build hides the target's packages from sys.path."""
    target = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return any(metadata.distributions(name="ffcv", path=[*sys.path, *target]))


class CheckedDistInfo(dist_info):
    """Explains what FFCV's build needs before pip downloads anything: pip asks for the metadata first.

    Making a source distribution or a wheel does not come through here.
    """

    def run(self) -> None:
        missing = {} if ffcv_is_installed() else missing_for_ffcv()
        if missing:
            sys.exit(
                f"error: FFCV is compiled on this machine, which lacks {', '.join(missing)}. Run:\n"
                f"    sudo apt-get update && sudo apt-get install -y {' '.join(missing.values())}"
            )
        super().run()


setup(
    name="ffcv_prune",
    version="0.1.0",
    description="Dynamic data pruning on FFCV: train on the samples that matter, re-chosen as training goes",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["ffcv_prune", "ffcv_prune.*"]),
    package_data={"ffcv_prune.analysis": ["*.j2"]},
    install_requires=[
        "torch>=2.6",
        "torchvision",
        "ffcv==1.0.2",
        "setuptools",  # FFCV imports distutils, which Python 3.12 and newer have from setuptools alone
        "numba",
        "numpy",
        "fastargs",
        "pyyaml",  # fastargs reads YAML without declaring it
        "pillow",  # FFCV writes images without declaring it
        "tqdm",
        "matplotlib",
        "scipy",
        "jinja2",
    ],
    extras_require={
        "analysis": ["pymc"],  # fits the always, sometimes and never samples
        "rivals": ["nvidia-dali-cuda120", "spdl", "grain", "simplejpeg"],  # what benchmarks/loading compares with
        "test": ["pytest", "hypothesis", "pytest-timeout", "pytest-xdist", "ruff", "mypy", "types-PyYAML"],
    },
    cmdclass={"dist_info": CheckedDistInfo},
)
