"""`run` on machines it does not have: a copy of it, a PATH of stubs that write down how they were called.

FFCV, uv, pip and apt are not run here; the commands that `run` would have them do are compared.
"""

from __future__ import annotations

import fcntl
import shutil
import stat
import subprocess
import sys
from importlib.metadata import Distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
TOOLS = ["bash", "cat", "dirname", "env", "flock", "head", "mkdir", "rm", "sed", "sha256sum", "tail", "touch"]
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

# The interpreter: every check it is asked holds; `-m venv` copies it, `-m pip` talks and installs nothing.
PYTHON = """
case "$*" in
*ensurepip*) [ ! -e "$STATE/no-ensurepip" ] ;;
*version_info*) [ ! -e "$STATE/old-python" ] ;;
--version) echo "Python 3.11.2" ;;
"-m venv "*) mkdir -p "$3/bin" && cat "$0" >"$3/bin/python" && chmod +x "$3/bin/python" ;;
"-m pip "*)
    for i in {1..30}; do echo "Collecting package $i"; done
    [ ! -e "$STATE/pip-dies" ] || kill -9 "$PPID"
    [ ! -e "$STATE/pip-fails" ] || { echo "ERROR: no network" >&2 && exit 1; } ;;
"-m uv "*) [ ! -e "$STATE/uv-fails" ] ;;
"-m mypy "*) [ ! -e "$STATE/mypy-fails" ] ;;
*test_mixture.py) [ ! -e "$STATE/fits-fail" ] ;;
esac
"""
# What apt installs is there afterwards.
APT_GET = """
for i in {1..30}; do echo "Unpacking package $i"; done
[ ! -e "$STATE/apt-fails" ] || { echo "E: no space left" >&2 && exit 100; }
case "$*" in
*install*) for word; do rm -f "$STATE/no-$word"; done ;;
esac
"""
# Every package is in this release, or all but the data set.
APT_CACHE = """
case "$*" in
*dataset-fashion-mnist*) [ -e "$STATE/no-dataset" ] || echo found ;;
*) echo found ;;
esac
"""


class Machine:
    """A machine with everything installed, until a file in `state` says otherwise."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin, self.state = folder / "project", folder / "bin", folder / "state"
        for path in (self.root, self.bin, self.state):
            path.mkdir()
        for name in ("run", "setup.py", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root)
        native = Path("ffcv_prune", "loading", "native")
        shutil.copytree(ROOT / native, self.root / native)
        for tool in [*TOOLS, "chmod"]:
            (self.bin / tool).symlink_to(shutil.which(tool) or tool)
        self.stub("python3", PYTHON)
        self.stub("apt-get", APT_GET)
        self.stub("apt-cache", 'case "$*" in *dataset*) [ -e "$STATE/no-dataset" ] || echo it ;; *) echo it ;; esac')
        self.stub("dpkg", "")
        self.stub("id", 'if [ -e "$STATE/user" ]; then echo 1000; else echo 0; fi')
        self.stub("g++", "")
        self.stub(
            "pkg-config",
            'case "$2" in opencv4) [ ! -e "$STATE/no-libopencv-dev" ] ;; '
            'libjpeg) [ ! -e "$STATE/no-libjpeg-dev" ] ;; '
            '*) [ ! -e "$STATE/no-libturbojpeg0-dev" ] ;; esac',
        )

    def stub(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f'#!/bin/bash\necho "${{0##*/}} $*" >>"$STATE/calls"\n{body}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def set(self, *conditions: str) -> None:
        for condition in conditions:
            (self.state / condition).touch()

    def run(self, *arguments: str, root: Path | None = None) -> subprocess.CompletedProcess[str]:
        (self.state / "calls").unlink(missing_ok=True)
        return subprocess.run(
            [(root or self.root) / "run", *arguments],
            env=self.environment,
            cwd=self.root,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": str(self.bin), "STATE": str(self.state)}

    def calls(self, command: str) -> list[str]:
        path = self.state / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line.startswith(f"{command} ")]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


needs_certificates = pytest.mark.skipif(not CERTIFICATES.exists(), reason="`run` would find ca-certificates missing")


@needs_certificates
def test_complete_machine_is_not_touched_and_a_repeat_installs_nothing(machine: Machine) -> None:
    first = machine.run("python", "-c", "print()")
    assert first.returncode == 0, first.stderr
    assert machine.calls("apt-get") == []
    python = machine.root / ".venv" / "bin" / "python"
    assert [call for call in machine.calls("python") if " install " in call] == [
        "python -m pip install --disable-pip-version-check uv",
        f"python -m uv pip install --python {python} --compile-bytecode --editable {machine.root}[test]",
    ]
    assert first.stderr.splitlines() == [
        "run: system packages: present",
        "run: making .venv with Python 3.11.2",
        "run: installing python packages into .venv (uv; several minutes and gigabytes the first time)",
    ]
    second = machine.run("python", "-c", "print()")
    assert second.returncode == 0
    assert machine.calls("python")[-1] == "python -c print()"
    assert not [call for call in machine.calls("python") if " install " in call or "-m venv" in call]
    assert second.stderr.splitlines()[-1] == "run: python packages: up to date in .venv"


@needs_certificates
@pytest.mark.parametrize("package", ["libopencv-dev", "libjpeg-dev"])
def test_root_installs_what_is_missing_and_nothing_else(machine: Machine, package: str) -> None:
    machine.set(f"no-{package}")
    done = machine.run("true")
    assert f"run: installing {package} (apt)" in done.stderr
    update, install = machine.calls("apt-get")
    assert update.endswith(" update")
    assert install.endswith(f" install -y --no-install-recommends {package}")


@needs_certificates
def test_what_apt_and_pip_print_is_in_the_log_alone(machine: Machine) -> None:
    machine.set("no-libopencv-dev")
    done = machine.run("python")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert [line for line in done.stderr.splitlines() if not line.startswith("run: ")] == []
    log = (machine.root / ".run.log").read_text()
    assert "Unpacking package 30" in log
    assert "Collecting package 30" in log
    assert "-m pip install" in log  # each output follows its command
    machine.run("python")
    assert not (machine.root / ".run.log").exists()  # of the last installation, which this one was not


@needs_certificates
@pytest.mark.parametrize(
    ("condition", "step", "last"),
    [
        ("pip-fails", "installing python packages into .venv", "ERROR: no network"),
        ("apt-fails", "reading the lists of packages", "E: no space left"),
    ],
)
def test_a_failing_step_names_the_log_and_shows_its_end(machine: Machine, condition: str, step: str, last: str) -> None:
    machine.set("no-libopencv-dev", condition)
    done = machine.run("python")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    (failed,) = [number for number, line in enumerate(lines) if "failed" in line]
    assert step in lines[failed - 1]
    assert str(machine.root / ".run.log") in lines[failed]
    assert lines[failed + 1 :] == (machine.root / ".run.log").read_text().splitlines()[-10:]
    assert lines[-1] == last


@needs_certificates
def test_sudo_installs_for_a_user(machine: Machine) -> None:
    machine.set("user", "no-libturbojpeg0-dev")
    machine.stub("sudo", '[ "$1" = -n ] || exec "$@"')
    assert machine.run("python").returncode == 0
    assert [call.split()[1] for call in machine.calls("sudo")] == ["-n", "env", "dpkg", "env"]
    assert machine.calls("apt-get")[-1].endswith("libturbojpeg0-dev")


@needs_certificates
@pytest.mark.parametrize("sudo", [None, "exit 1"])
def test_without_root_the_exact_line_is_printed_and_nothing_done(machine: Machine, sudo: str | None) -> None:
    machine.set("user", "no-libopencv-dev", "no-libturbojpeg0-dev", "no-ensurepip")
    (machine.bin / "g++").unlink()
    if sudo:
        machine.stub("sudo", sudo)
    done = machine.run("test")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "run: system packages are missing. As root, run: apt-get update && apt-get install -y "
        "build-essential python3-venv libopencv-dev libturbojpeg0-dev"
    ]
    assert machine.calls("apt-get") == []
    assert not (machine.root / ".venv").exists()


@needs_certificates
def test_what_apt_cannot_mend_is_said(machine: Machine) -> None:
    machine.set("no-ensurepip")  # stays: this interpreter is not Debian's
    done = machine.run("python")
    assert done.returncode == 2
    assert "still lacks python3-venv; name another with PYTHON=" in done.stderr


@needs_certificates
def test_an_old_python_is_refused(machine: Machine) -> None:
    machine.set("old-python")
    done = machine.run("python")
    assert done.returncode == 2
    assert "Python 3.11.2 is too old" in done.stderr
    assert not (machine.root / ".venv").exists()


@needs_certificates
def test_an_interrupted_installation_starts_anew(machine: Machine) -> None:
    machine.set("pip-dies")
    assert machine.run("python").returncode != 0
    (machine.state / "pip-dies").unlink()
    done = machine.run("python")
    assert done.returncode == 0
    assert "run: removing .venv: it is incomplete, or was made elsewhere" in done.stderr
    assert [call for call in machine.calls("python3") if "-m venv" in call]


@needs_certificates
@pytest.mark.parametrize("changed", ["setup.py", "ffcv_prune/loading/native/pool.c"])
def test_changed_dependencies_are_installed_into_the_same_environment(machine: Machine, changed: str) -> None:
    machine.run("python")
    with (machine.root / changed).open("a") as file:
        file.write("# changed\n")
    assert machine.run("python").returncode == 0
    calls = [call for call in machine.calls("python") if " install " in call or "-m venv" in call]
    assert [call.split()[2] for call in calls] == ["pip", "uv"]


@needs_certificates
def test_where_uv_gets_no_packages_pip_does(machine: Machine) -> None:
    machine.set("uv-fails")
    assert machine.run("python").returncode == 0
    _, by_uv, by_pip = (call for call in machine.calls("python") if " install " in call)
    assert by_uv.startswith("python -m uv pip install ")
    assert by_pip == f"python -m pip install --disable-pip-version-check --editable {machine.root}[test]"


@needs_certificates
def test_a_copied_project_makes_its_own_environment(machine: Machine, tmp_path: Path) -> None:
    machine.run("python")
    copy = shutil.copytree(machine.root, tmp_path / "copy")
    done = machine.run("python", root=copy)
    assert "made elsewhere" in done.stderr
    assert (copy / ".venv" / "installed").read_text().splitlines()[0] == str(copy)


@needs_certificates
def test_two_at_once_install_one_after_the_other(machine: Machine) -> None:
    with (machine.root / ".venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = subprocess.Popen(
            [machine.root / "run", "python"], env=machine.environment, stderr=subprocess.PIPE, text=True
        )
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == "run: waiting for another ./run to finish installing\n"
        assert not (machine.root / ".venv").exists()
    _, rest = waiting.communicate(timeout=30)
    assert waiting.returncode == 0, rest


@needs_certificates
def test_demo_goes_on_without_the_debian_package(machine: Machine) -> None:
    run = machine.root / "run"
    run.write_text(run.read_text().replace("/usr/share/datasets/fashion-mnist", str(machine.root / "nowhere")))
    machine.set("no-dataset")
    done = machine.run("demo", "--epochs=1")
    assert done.returncode == 0, done.stderr
    assert "dataset-fashion-mnist: skipped (not in this release" in done.stderr
    assert machine.calls("apt-get") == []
    assert machine.calls("python")[-1] == "python -m benchmarks.demo --epochs=1"
    (machine.state / "no-dataset").unlink()
    machine.run("demo")
    assert machine.calls("apt-get")[-1].endswith("dataset-fashion-mnist")


@needs_certificates
def test_test_runs_every_check(machine: Machine) -> None:
    assert machine.run("test", "-k", "selectors").returncode == 0
    assert machine.calls("python")[-4:] == [
        "python -m ruff check .",
        "python -m ruff format --check .",
        "python -m mypy ffcv_prune write_datasets.py train_imagenet.py",
        "python -m pytest -k selectors",
    ]


@needs_certificates
def test_all_tests_fit_the_mixture_too_in_an_environment_of_its_own(machine: Machine) -> None:
    """PyMC wants another numba than FFCV gets: it is not in .venv."""
    first = machine.run("test")
    assert first.returncode == 0, first.stderr
    assert [call for call in machine.calls("python3") if "-m venv" in call] == [
        f"python3 -m venv {machine.root}/{name}" for name in (".venv-analysis", ".venv")
    ]
    _, installed, *others = machine.calls("python")
    assert installed.startswith("python -m uv pip install ")
    assert installed.endswith(" pymc pytest pytest-timeout")
    others.remove("python -m pytest --noconftest -m  tests/test_mixture.py")  # beside the next, in any order
    assert [call.split()[2] for call in others] == ["pip", "uv", "ruff", "ruff", "mypy", "pytest"]
    assert others[-1] == "python -m pytest -n 2 --dist loadfile --no-loadscope-reorder"
    assert machine.run("test").returncode == 0
    assert not [call for call in machine.calls("python") if " install " in call or "-m venv" in call]
    (machine.root / ".venv-analysis" / "incomplete").touch()
    assert "removing .venv-analysis: it is incomplete" in machine.run("test").stderr


@needs_certificates
@pytest.mark.parametrize("check", ["mypy-fails", "fits-fail"])
def test_a_check_that_fails_ends_it(machine: Machine, check: str) -> None:
    machine.set(check)
    assert machine.run("test").returncode == 1
    assert not [call for call in machine.calls("python") if "-n 2" in call]


def test_usage(machine: Machine) -> None:
    helped, bare = machine.run("--help"), machine.run()
    assert (helped.returncode, bare.returncode) == (0, 2)
    assert helped.stdout == bare.stderr
    assert "./run demo" in helped.stdout


@pytest.mark.parametrize("name", ["nonsense", "--nonsense", "cd"])
def test_an_unknown_command_is_one_line(name: str, machine: Machine) -> None:
    machine.run("true")  # installs
    run = machine.run(name)
    assert run.returncode == 2
    said = [line for line in run.stderr.splitlines() if " packages: " not in line]  # what the set-up found
    assert said == [f"run: there is no command {name}; see ./run --help"]


@pytest.mark.parametrize("name", ["foo.py", "./foo.py", "nowhere.py", "notes"])
def test_a_script_in_place_of_a_command_is_refused_before_anything_is_installed(name: str, machine: Machine) -> None:
    """Defect: `./run foo.py` made .venv and installed gigabytes before it found that there is no such command."""
    for path in ("foo.py", "notes"):
        (machine.root / path).write_text("print()\n")
    done = machine.run(name, "--epochs=1")
    assert done.returncode == 2
    assert done.stderr == f"run: {name} is no command: write ./run python {name} --epochs=1\n"
    assert not (machine.root / ".venv").exists()


@needs_certificates
def test_scripts_that_are_commands_run(machine: Machine) -> None:
    """One that is executable and given by its path, and what pip put into .venv under a name that a file has too."""
    machine.stub("../project/foo.py", "")
    assert machine.run("./foo.py").returncode == 0
    assert machine.calls("foo.py") == ["foo.py "]
    (machine.root / "pytest").touch()
    machine.stub("../project/.venv/bin/pytest", "")
    assert machine.run("pytest").returncode == 0


def copy_project(folder: Path) -> Path:
    """What setup.py reads, in a folder that it may write to."""
    shutil.copytree(ROOT / "ffcv_prune", folder / "ffcv_prune", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder


def test_requirements_name_what_dependencies_need_and_do_not_declare(tmp_path: Path) -> None:
    """FFCV imports distutils, which Python 3.12 and newer have from setuptools alone. FFCV itself is an extra."""
    subprocess.run(
        [sys.executable, "setup.py", "-q", "dist_info"], cwd=copy_project(tmp_path), check=True, capture_output=True
    )
    (info,) = tmp_path.glob("*.dist-info")
    required = [Requirement(line) for line in Distribution.at(info).requires or []]

    def names(extra: str) -> set[str]:
        return {one.name for one in required if one.marker is None or one.marker.evaluate({"extra": extra})}

    assert {"torch", "pyyaml", "pillow"} <= names("")
    assert names("ffcv") - names("") == {"ffcv", "setuptools"}
    assert names("ffcv") < names("test")
