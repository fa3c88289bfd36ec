"""Show what CEM makes of a data set's images: python scripts/show_cem.py dataset=NAME [cem=NAME] [key=value ...]"""

import sys
from pathlib import Path

from icda.cli import run
from icda.explanation.settings import validate_show_cem

CONF = Path(__file__).resolve().parents[1] / "conf"

if __name__ == "__main__":
    sys.exit(run("show_cem", "icda.explanation.cem_sheet.show_cem", CONF, check=validate_show_cem))
