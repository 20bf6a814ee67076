"""Errors that a user can cause and mend: one line, exit code 2."""

from __future__ import annotations

import argparse
import faulthandler
import operator
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

EXIT_USER_ERROR = 2
EXIT_TERMINATED = 75  # EX_TEMPFAIL of sysexits.h: try again later
EXIT_INTERRUPTED = 130

# The commands, as messages name them: the scripts of a clone, or else what pip installed.
_CLONE = Path(__file__).parents[1].joinpath("write_datasets.py").exists()
WRITE = "python write_datasets.py" if _CLONE else "ffcv-prune-write"
TRAIN = "python train_imagenet.py" if _CLONE else "ffcv-prune-train"
SCORES = "python -m ffcv_prune.static_scores" if _CLONE else "ffcv-prune-scores"
REPORT = "python -m ffcv_prune.analysis" if _CLONE else "ffcv-prune-report"


def write_command(beton_path: str | os.PathLike[str]) -> str:
    """The command that writes a .beton: where a recipe has the name of its folder, it is that one's."""
    name = Path(beton_path).parent.name
    known = os.path.isfile(Path(__file__).with_name("write_datasets") / f"{name}.yaml")  # False for any odd name
    return f"{WRITE} --dataset {name if known else 'RECIPE'}"


class UserError(ValueError):
    """Something the user can mend. Its message is one line: it names the thing and the remedy.

    Control characters in what the message quotes, a key of a damaged file say, are shown as escapes.

    Attributes:
        agreed: all processes that train together raise it.
        alone: not all of them raise it, and torch's connections to the others are left as they are. On the way out
            through the interpreter they may abort the process.
    """

    alone = False

    def __init__(self, message: str, agreed: bool = False) -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))
        self.agreed = agreed


class Arguments(argparse.ArgumentParser):
    """A parser of the command line that raises UserError, where argparse prints how the command is used."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


class Terminated(Exception):
    """SIGTERM came, as schedulers send it before they take the machine away; what was done is saved."""


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most like `word`, in whatever case; None if none is."""
    by_lower = {name.lower(): name for name in known}
    close = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[close[0]] if close else None


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean "x"?`` for the known word nearest to `word`, else the list of known words."""
    known = sorted(known)
    close = closest(word, known)
    return f"; known: {', '.join(known)}" if close is None else f'; did you mean "{close}"?'


def first_line(error: BaseException) -> str:
    """What another library says, as a part of a message."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def wrong_kind(what: str, found: object, wanted: str) -> UserError:
    """What to raise for a piece that does not fit: a class in place of an instance, or another library's piece."""
    kind = f"the class {found.__name__}" if isinstance(found, type) else f"of type {type(found).__name__}"
    return UserError(f"the {what} is {kind}: give {wanted}")


def whole_number(what: str, value: Any) -> int:
    """The value as an int; UserError for what is no integer, such as 2.5 or "3"."""
    try:
        return operator.index(value)
    except TypeError:
        raise wrong_kind(what, value, "a whole number") from None


@contextmanager
def uninterrupted() -> Iterator[list[int]]:
    """Put Ctrl-C off until things are tidied up, so that an impatient second one cannot leave half of them.

    For what takes no longer than the batch at hand, or looks into the list that it gets: each Ctrl-C appends to it.
    Only the main thread receives signals: elsewhere nothing is done.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    previous = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, previous or signal.SIG_DFL)  # None: a handler that is not Python's
        if came:
            signal.raise_signal(signal.SIGINT)


def warn_in_one_line() -> None:
    """Print each warning of this process as one line, ``warning: …``, above progress bars."""
    from tqdm import tqdm  # here: methods and fits do without it

    warnings.showwarning = lambda message, *_: tqdm.write(f"warning: {message}", file=sys.stderr)


def run_command(main: Callable[[], None]) -> None:
    """Run a command's `main` and turn what it raises into an exit code.

    `UserError` prints ``error: …`` on standard error and exits with 2; Ctrl-C exits with 130, SIGTERM with 75.
    Anything else is a defect of ours and keeps its traceback; a crash in native code gets one too.
    A warning is one line.
    """
    warn_in_one_line()
    if not faulthandler.is_enabled():
        faulthandler.enable()
    try:
        main()
    except UserError as error:
        if not error.agreed or os.environ.get("LOCAL_RANK", "0") == "0":  # of one that all raise, one line a machine
            print(f"error: {error}", file=sys.stderr)
        if error.alone:
            with suppress(OSError):  # nobody may read it any more
                sys.stdout.flush()
            os._exit(EXIT_USER_ERROR)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # we are leaving: another one has nothing to add
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except Terminated:
        print("terminated", file=sys.stderr)
        sys.exit(EXIT_TERMINATED)
