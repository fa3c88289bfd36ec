"""Train a network: python scripts/train.py [dataset=...] [model=...] [loss=...] [key=value ...]"""

import sys
from pathlib import Path

from icda.cli import run
from icda.config import validate

CONF = Path(__file__).resolve().parents[1] / "conf"

if __name__ == "__main__":
    sys.exit(run("train", "icda.training.loop.train", CONF, objective="last_miou", check=validate))
