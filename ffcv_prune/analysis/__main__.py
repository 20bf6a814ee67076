"""Write one HTML report about one or several run folders: python -m ffcv_prune.analysis RUN… (see --help)."""

from __future__ import annotations

from pathlib import Path

from ffcv_prune.errors import REPORT, Arguments, run_command


def main() -> None:
    parser = Arguments(prog=REPORT, description="Write one HTML report about one or several run folders.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, such as runs/fashion_ucb")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="default: report.html")
    parser.add_argument("--fit", action="store_true", help="fit always, sometimes and never groups (needs PyMC)")
    args = parser.parse_args()
    from ffcv_prune.analysis.report import groups_path, write_report  # seconds of imports, not needed before

    print(f"report: {write_report(args.runs, args.out, fit=args.fit)}")
    if args.fit:
        print(f"groups: {groups_path(args.out)}")


if __name__ == "__main__":
    run_command(main)
