"""Segment pictures or a video: python scripts/predict.py ckpt=PATH input=PATH [submission=true] [key=value ...]"""

import sys
from pathlib import Path

from icda.cli import run

CONF = Path(__file__).resolve().parents[1] / "conf"

if __name__ == "__main__":
    sys.exit(run("predict", "icda.prediction.run.predict", CONF))
