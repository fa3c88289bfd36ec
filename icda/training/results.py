"""What a run writes for people: a line and pictures a validation, a summary at the end."""

from __future__ import annotations

import json
import logging
import shlex
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from omegaconf import DictConfig, OmegaConf

from icda.report import percent, table
from icda.training.same_run import check_same_run

log = logging.getLogger(__name__)


class Results:
    """The files ``metrics.jsonl``, ``summary.json`` and ``panels/`` of a run.

    Args:
        folder: The run's folder.
        val: Name of the set that is scored.
    """

    def __init__(self, folder: Path, val: str) -> None:
        self.folder = folder
        self.val = val

    def begin(self, step: int, earlier: Path | None) -> None:
        """Keep what was recorded up to a step and drop what was after it.

        Args:
            step: Step at which the run goes on; 0 drops everything.
            earlier: Folder of the run that is gone on with, or None.
        """
        lines = [] if earlier is None else _lines(earlier / "metrics.jsonl")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "summary.json").unlink(missing_ok=True)
        kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= step]
        (self.folder / "metrics.jsonl").write_text("".join(kept))

    def validation(self, step: int, seconds: float, result: dict[str, Any]) -> None:
        """Add a validation's scores."""
        line = {"step": step, "seconds": round(seconds, 3), **result}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def picture(self, name: str, step: int, sheet: np.ndarray) -> None:
        """Write a contact sheet, RGB (H, W, 3) uint8."""
        path = self.folder / "panels" / f"{name}_{step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        encoded = cv2.imencode(path.suffix, sheet[:, :, ::-1])[1]
        path.write_bytes(encoded.tobytes())  # unlike cv2.imwrite it says when the disk is full

    def finish(
        self, cfg: DictConfig, step: int, seconds: float, best_miou: float, result: dict[str, Any]
    ) -> dict[str, Any]:
        """Write ``summary.json``, print the table and what to type next.

        Args:
            cfg: The composed configuration.
            step: Steps done.
            seconds: Of the whole run.
            best_miou: 0..1.
            result: The last validation's scores (``icda.report.scores``).

        Returns:
            What the file holds.
        """
        summary = {
            "best_miou": best_miou,
            "last_miou": result.get("miou"),
            "steps": step,
            "seconds": round(seconds, 3),
            "iou": result.get("iou"),
            "val": self.val,
            "config": OmegaConf.to_container(cfg, resolve=False),
        }
        temporary = self.folder / ".summary.json.tmp"
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
        temporary.replace(self.folder / "summary.json")  # a run with a summary is a finished one
        log.info("\n%s\n", table(result))
        best = self.folder / "checkpoints" / "best.pt"
        log.info("best mIoU %s after %d steps, %.0f s", percent(best_miou), step, seconds)
        log.info("run folder: %s", self.folder)
        log.info("next: python scripts/eval.py ckpt=%s save_predictions=true", shlex.quote(str(best)))
        log.info("      tensorboard --logdir %s", shlex.quote(str(self.folder)))
        return summary


def finished(folder: Path, cfg: DictConfig, max_steps: int) -> dict[str, Any] | None:
    """The summary of a run that has done all its steps; None if it has not, or there is none.

    Args:
        folder: The run's folder.
        cfg: The configuration at hand.
        max_steps: Its number of steps.

    Raises:
        UserError: If the folder holds a finished run of other settings.
    """
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(summary, dict) or summary.get("steps") != max_steps or "config" not in summary:
        return None
    check_same_run(summary["config"], cfg, f"the finished run in {folder}", strict=True)
    return summary


def _lines(path: Path) -> list[dict[str, Any]]:
    """The validations in a ``metrics.jsonl``; a last line that was cut short when the run was killed is left out."""
    found = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            found.append(line)
    return found
