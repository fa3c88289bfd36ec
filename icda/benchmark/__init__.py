"""How fast parts of the toolkit are on this machine: what ``scripts/benchmark.py`` does."""

from icda.benchmark.run import BENCHMARKS, benchmark
from icda.benchmark.timing import Result, Timing, measure

__all__ = ["BENCHMARKS", "Result", "Timing", "benchmark", "measure"]
