"""Score a checkpoint: python scripts/eval.py ckpt=PATH [dataset=...] [save_predictions=true]"""

import sys
from pathlib import Path

from icda.cli import run

CONF = Path(__file__).resolve().parents[1] / "conf"

if __name__ == "__main__":
    sys.exit(run("eval", "icda.scoring.score", CONF))
