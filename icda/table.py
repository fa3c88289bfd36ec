"""Finished runs gathered into one table: mean and spread over seeds."""

from __future__ import annotations

import json
import logging
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from icda.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinishedRun:
    """What a table needs of a run.

    Attributes:
        setting: The configuration groups that were chosen, and what else was changed but for the seed.
        miou: mIoU of the last step, 0..1.
        best_miou: The best mIoU of all validations, 0..1.
        seconds: How long it took.
    """

    setting: str
    miou: float
    best_miou: float
    seconds: float


# Overrides that say where and how a run was made, not what it was.
_NOT_A_SETTING = ("seed=", "data_dir=", "device=", "workers=", "progress=", "panels=", "hydra.", "resume=")


def read_run(folder: Path) -> FinishedRun:
    """Read a run's folder.

    Raises:
        UserError: If it is not the folder of a finished run.
    """
    try:
        summary = json.loads((folder / "summary.json").read_text())
        choices = OmegaConf.load(folder / "config" / "hydra.yaml").hydra.runtime.choices
        overrides = [str(o).lstrip("+") for o in OmegaConf.load(folder / "config" / "overrides.yaml")]
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not whole: {error}; give folders that scripts/train.py wrote") from error
    groups = [f"{name}={choices[name]}" for name in ("dataset", "model", "loss", "cem")]
    changes = [o for o in overrides if not o.startswith((*_NOT_A_SETTING, *(g.split("=")[0] + "=" for g in groups)))]
    setting = " ".join(groups + sorted(changes))
    return FinishedRun(setting, summary["last_miou"], summary["best_miou"], summary["seconds"])


def table(folders: list[Path]) -> str:
    """A markdown table of the runs below some folders.

    One row a setting: number of runs, mean and standard deviation (n - 1) of the last mIoU in percent, mean of the
    best, mean minutes. Runs that are not finished are left out and counted in the log.

    Args:
        folders: Run folders, or folders that hold some.

    Raises:
        UserError: If there is no finished run.
    """
    found = sorted({p.parent for folder in folders for p in folder.rglob("metrics.jsonl")})
    finished = [p for p in found if (p / "summary.json").exists()]
    if not finished:
        raise UserError(
            f"no finished run in {', '.join(map(str, folders))}; give folders that scripts/train.py wrote"
        )
    if len(finished) < len(found):
        log.warning(
            "%d unfinished runs are left out, the first is %s",
            len(found) - len(finished),
            min(set(found) - set(finished)),
        )
    rows: dict[str, list[FinishedRun]] = defaultdict(list)
    for folder in finished:
        run = read_run(folder)
        rows[run.setting].append(run)
    lines = ["| setting | runs | mIoU, last step | best | minutes |", "| --- | --- | --- | --- | --- |"]
    for setting, runs in sorted(rows.items(), key=lambda item: statistics.mean(r.miou for r in item[1])):
        last = [100 * r.miou for r in runs]
        spread = f" ± {statistics.stdev(last):.1f}" if len(runs) > 1 else ""
        best = statistics.mean(100 * r.best_miou for r in runs)
        minutes = statistics.mean(r.seconds / 60 for r in runs)
        lines.append(
            f"| {setting} | {len(runs)} | {statistics.mean(last):.1f}{spread} | {best:.1f} | {minutes:.1f} |"
        )
    return "\n".join(lines)
