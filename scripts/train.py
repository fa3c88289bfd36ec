"""Train a network: python scripts/train.py [dataset=...] [model=...] [loss=...] [key=value ...]"""

import sys
from pathlib import Path

from icda.cli import run
from icda.training.loop import train

if __name__ == "__main__":
    sys.exit(run("train", train, Path(__file__).resolve().parents[1] / "conf", objective="last_miou"))
