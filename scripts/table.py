"""Gather finished runs into one table: python scripts/table.py FOLDER [FOLDER ...] [--csv FILE]"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from pathlib import Path
from typing import NoReturn

from icda.errors import UserError
from icda.finished_runs import collect
from icda.table import markdown, pairing, write_csv


class Parser(argparse.ArgumentParser):
    """One line for a mistake."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see python scripts/table.py --help")


def main() -> None:
    """Read the command line, print or write the table."""
    parser = Parser(description=__doc__.partition(":")[0] + ".", allow_abbrev=False)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders that hold some")
    parser.add_argument("--csv", metavar="FILE", help="write CSV there, - for standard output, in place of markdown")
    parser.add_argument("--per-class", action="store_true", help="add the last IoU of every class")
    parser.add_argument("--runs", action="store_true", help="a row for every run, with its seed and folder")
    parser.add_argument(
        "--paired",
        metavar="SET",
        nargs="?",
        const="",
        help="add the difference to the row above over the seeds that both rows have, of the mIoU on SET: val, "
        "which is taken where SET is left out, or one of score_last",
    )
    parser.add_argument(
        "--against",
        metavar="NAME",
        help="compare with the ablation or experiment NAME instead, or with the runs in the folder NAME",
    )
    arguments = parser.parse_args()
    runs = collect(arguments.folders)
    paired = None
    if arguments.paired is not None or arguments.against is not None:
        paired = pairing(runs, arguments.paired or None, arguments.against)
    if arguments.csv is None:
        print(markdown(runs, arguments.per_class, arguments.runs, paired))
        return
    with contextlib.ExitStack() as stack:
        file = sys.stdout
        if arguments.csv != "-":
            file = stack.enter_context(Path(arguments.csv).open("w", newline="", encoding="utf-8"))
        write_csv(runs, file, arguments.per_class, arguments.runs, paired)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename} cannot be used: {error.strerror}; choose another place for --csv")
