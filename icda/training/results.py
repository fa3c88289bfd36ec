"""What a run writes for people: a line and pictures a validation, a summary at the end."""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from icda.scores import percent, table
from icda.training.durable import append_whole, naming, remove_leftovers, write_whole
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

    def begin(self, step: int, earlier: Path | None, validated: bool = True) -> None:
        """Keep what was recorded up to a step and drop what was after it.

        The scores of held-out sets are dropped as well: whatever goes on comes to its last step again, and to them.
        Temporary files that killed processes left in the folder go as well.

        Args:
            step: Step at which the run goes on; 0 drops everything.
            earlier: Folder of the run that is gone on with, or None.
            validated: Whether the checkpoint holds the scores of its own step. Where it does not, their validation
                was cut off and will be made up for, so that a line of this step is dropped as well.

        Raises:
            OSError: If ``metrics.jsonl`` cannot be written; all files are as they were.
        """
        last = step if validated else step - 1
        lines = [] if earlier is None else _lines(earlier / "metrics.jsonl")
        kept = "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= last and "score_last" not in line)
        kept = kept.encode()
        remove_leftovers(self.folder)
        write_whole(self.folder / "metrics.jsonl", lambda file: file.write(kept))
        (self.folder / "summary.json").unlink(missing_ok=True)

    def validation(self, step: int, seconds: float, result: dict[str, Any]) -> None:
        """Add a validation's scores, all or nothing, and see to it that they are on the disk.

        Raises:
            OSError: If they cannot be written.
        """
        line = json.dumps({"step": step, "seconds": round(seconds, 3), **result}) + "\n"
        path = self.folder / "metrics.jsonl"
        with naming(path), path.open("ab", buffering=0) as file:
            append_whole(file, line.encode())
            os.fsync(file.fileno())

    def picture(self, name: str, step: int, sheet: np.ndarray) -> None:
        """Write a contact sheet, RGB (H, W, 3) uint8."""
        path = self.folder / "panels" / f"{name}_{step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        encoded = cv2.imencode(path.suffix, sheet[:, :, ::-1])[1]
        path.write_bytes(encoded.tobytes())  # unlike cv2.imwrite it says when the disk is full

    def finish(
        self,
        cfg: DictConfig,
        step: int,
        seconds: float,
        best_miou: float,
        result: dict[str, Any],
        skipped: int = 0,
        held_out: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Write ``summary.json``, and held-out scores into ``metrics.jsonl``; print the table and what to type next.

        Args:
            cfg: The composed configuration.
            step: Steps done.
            seconds: Of the whole run.
            best_miou: 0..1.
            result: The last validation's scores (``icda.scores.scores``).
            skipped: Steps that were left out, since their loss or gradient was not finite.
            held_out: The scores of the sets of ``score_last``, by name; None where there are none.

        Returns:
            What the file holds.

        Raises:
            OSError: If it cannot be written.
        """
        if held_out := _brief(held_out or {}):
            self.validation(step, seconds, {"score_last": held_out})
        summary = {
            "best_miou": best_miou,
            "last_miou": result.get("miou"),
            "steps": step,
            "skipped": skipped,
            "seconds": round(seconds, 3),
            "iou": result.get("iou"),
            "val": self.val,
            "score_last": held_out,
            "config": OmegaConf.to_container(cfg, resolve=False),
            "choices": _choices(),
        }
        content = (json.dumps(summary, indent=2) + "\n").encode()
        write_whole(self.folder / "summary.json", lambda file: file.write(content))  # its run is a finished one
        log.info("\n%s\n", table(result))
        log.info("best mIoU %s after %d steps, %.0f s", percent(best_miou), step, seconds)
        if skipped:
            reason = "since their loss or gradient was not finite; see not_finite/"
            log.warning("left out %d of the %d steps, %s", skipped, step, reason)
        self._say_what_is_next()
        return summary

    def _say_what_is_next(self) -> None:
        best = self.folder / "checkpoints" / "best.pt"
        log.info("run folder: %s", self.folder)
        log.info("next: python scripts/eval.py ckpt=%s save_predictions=true", shlex.quote(str(best)))
        log.info("      tensorboard --logdir %s", shlex.quote(str(self.folder)))


def _brief(held_out: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {key: scored[key] for key in ("miou", "iou")} for name, scored in held_out.items()}


def _choices() -> dict[str, str]:
    """The files that were chosen of the configuration's groups, as far as Hydra has composed it."""
    chosen = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    groups = ("dataset", "model", "loss", "schedule", "cem", "experiment", "ablation")
    return {group: chosen[group] for group in groups if chosen.get(group) is not None}


def finished(folder: Path, cfg: DictConfig, max_steps: int) -> dict[str, Any] | None:
    """The summary of a run that has done all its steps; None if it has not, or there is none.

    A summary without the scores of a set that ``score_last`` names is not the end of a run either.

    Args:
        folder: The run's folder.
        cfg: The configuration at hand.
        max_steps: Its number of steps.

    Raises:
        UserError: If the folder holds a finished run of other settings.
    """
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    if not _is_summary(summary) or summary["steps"] != max_steps:
        return None
    check_same_run(summary["config"], cfg, f"the finished run in {folder}", strict=True, finished=True)
    scored = summary.get("score_last")
    return summary if set(cfg.get("score_last") or ()) <= set(scored if isinstance(scored, Mapping) else ()) else None


def _is_summary(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and type(value.get("steps")) is int
        and type(value.get("last_miou", "")) in (int, float, type(None))
        and isinstance(value.get("config"), Mapping)
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    """The validations in a ``metrics.jsonl``; lines that are damaged, or were cut short by a kill, are left out."""
    found = []
    for content in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            line = json.loads(content.decode())
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and type(line.get("step")) is int:
            found.append(line)
    return found
