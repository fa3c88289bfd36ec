"""Measure speed on this machine: python scripts/benchmark.py what=data [data_dir=PATH]; the last line is JSON."""

import sys
from pathlib import Path

from icda.benchmark import benchmark
from icda.cli import run

if __name__ == "__main__":
    sys.exit(run("benchmark", benchmark, Path(__file__).resolve().parents[1] / "conf"))
