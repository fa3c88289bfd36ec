"""Look whether a data set is whole, and make what speeds up training: python scripts/prepare.py dataset=NAME"""

import sys
from pathlib import Path

from icda.cli import run

CONF = Path(__file__).resolve().parents[1] / "conf"

if __name__ == "__main__":
    sys.exit(run("prepare", "icda.data.prepare.run.prepare", CONF))
