from __future__ import annotations

import csv
import statistics

import pytest
from training_runs import finish, settings, start

pytestmark = pytest.mark.slow


def test_memory_is_flat_after_the_warm_up(demo_data, tmp_path):
    """300 steps with validations, checkpoints and pictures; resident memory is noted at each."""
    arguments = settings(
        demo_data,
        tmp_path,
        "schedule.max_steps=300",
        "schedule.val_every=25",
        "schedule.save_every=10",
        "schedule.batch_size=1",
        "workers=1",
        "panels=1",
        "logger=csv",
        "model.encoder.name=test_efficientnet",  # timm's smallest
    )
    finish(start(arguments))
    with (tmp_path / "scalars.csv").open() as file:
        resident = [float(row["value"]) for row in csv.DictReader(file) if row["name"] == "memory/resident_gb"]
    assert len(resident) == 300
    early, late = (statistics.median(resident[a:b]) for a, b in ((100, 150), (250, 300)))
    assert abs(late - early) < 0.01 * early, (early, late)  # 1 %: a step that kept one batch would add far more
