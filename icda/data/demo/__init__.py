"""Demo data: small drawn streets by day and by night, on disk in the layouts of Cityscapes and Dark Zurich."""

from icda.data.demo.writer import DemoCounts, make_demo, make_demo_with_night_labels

__all__ = ["DemoCounts", "make_demo", "make_demo_with_night_labels"]
