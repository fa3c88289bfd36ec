"""The table of finished runs, with figures computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from icda.errors import UserError
from icda.table import table


def run(folder: Path, loss: str, seed: int, miou: float | None, *extra: str) -> None:
    (folder / "config").mkdir(parents=True)
    choices = f"{{dataset: demo, model: icda_small, loss: {loss}, cem: style}}"
    (folder / "config" / "hydra.yaml").write_text(f"hydra: {{runtime: {{choices: {choices}}}}}\n")
    overrides = [f"loss={loss}", f"seed={seed}", "workers=0", *extra]
    (folder / "config" / "overrides.yaml").write_text("\n".join(f"- {o}" for o in overrides))
    (folder / "metrics.jsonl").write_text("{}\n")
    if miou is not None:
        summary = {"last_miou": miou, "best_miou": miou + 0.01, "seconds": 90.0}
        (folder / "summary.json").write_text(json.dumps(summary))


def test_mean_and_spread_over_seeds(tmp_path, caplog):
    for seed, miou in enumerate((0.10, 0.12, 0.17)):
        run(tmp_path / f"a{seed}", "icda", seed, miou)
    run(tmp_path / "b", "dacs", 0, 0.05)
    run(tmp_path / "c", "dacs", 0, 0.07, "schedule.lr=1e-3")
    run(tmp_path / "d", "dacs", 1, None)
    lines = table([tmp_path]).splitlines()
    common = "dataset=demo model=icda_small"
    assert lines[2:] == [
        f"| {common} loss=dacs cem=style | 1 | 5.0 | 6.0 | 1.5 |",
        f"| {common} loss=dacs cem=style schedule.lr=1e-3 | 1 | 7.0 | 8.0 | 1.5 |",
        f"| {common} loss=icda cem=style | 3 | 13.0 ± 3.6 | 14.0 | 1.5 |",  # deviations -3, -1, 4: sqrt(26 / 2)
    ]
    assert "1 unfinished runs are left out" in caplog.text


def test_nothing_finished(tmp_path):
    with pytest.raises(UserError, match="no finished run"):
        table([tmp_path])
