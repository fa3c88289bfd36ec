"""Train a network: python scripts/train.py [dataset=...] [model=...] [loss=...] [key=value ...]"""

import sys

from icda.cli import run
from icda.training.loop import train

if __name__ == "__main__":
    sys.exit(run("train", train))
