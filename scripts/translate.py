"""Make night-like versions of a data set's labelled images: python scripts/translate.py dataset=NAME method=style"""

import sys
from pathlib import Path

from icda.cli import run

CONF = Path(__file__).resolve().parents[1] / "conf"

if __name__ == "__main__":
    sys.exit(run("translate", "icda.translation.translate", CONF))
