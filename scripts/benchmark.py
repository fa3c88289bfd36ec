"""Measure speed on this machine: python scripts/benchmark.py what=train [key=value ...]; the last line is JSON."""

import sys
from pathlib import Path

from icda.cli import run

CONF = Path(__file__).resolve().parents[1] / "conf"

if __name__ == "__main__":
    sys.exit(run("benchmark", "icda.benchmark.run.benchmark", CONF))
