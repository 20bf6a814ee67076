"""Numbers in the sentences of reports, warnings and the console."""

from __future__ import annotations


def percent(share: float) -> str:
    """``12.34 %`` of 0.1234: every share that was measured or is asked for, with two digits."""
    return f"{100 * share:.2f} %"
