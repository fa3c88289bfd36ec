"""What ``scripts/prepare.py`` does: look whether a data set is whole, and make what training can do faster with."""

from icda.data.prepare.run import PrepareConfig, prepare

__all__ = ["PrepareConfig", "prepare"]
