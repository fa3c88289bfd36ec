"""Gather finished runs into one table: python scripts/table.py FOLDER [FOLDER ...]"""

import argparse
import sys
from pathlib import Path

from icda.errors import UserError
from icda.table import table

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders that hold some")
    try:
        print(table(parser.parse_args().folders))
    except UserError as error:
        sys.exit(f"error: {error}")
