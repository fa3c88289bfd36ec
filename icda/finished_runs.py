"""Finished runs of scripts/train.py, as their folders tell of them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from icda.errors import UserError
from icda.training.same_run import FREE, leaves

log = logging.getLogger(__name__)

GROUPS = ("dataset", "model", "loss", "schedule", "cem")
# Settings that say where and how a run was made and what else was scored at its end, and the seed, over which is
# averaged. How often it is validated is a setting, as the best is the best of all validations.
_NOT_A_SETTING = FREE - {"schedule.val_every"} | {"seed", "score_last"}
# What opening and reading a run's files raises where they are missing, cut short or something else.
_BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, OmegaConfBaseException, YAMLError)


@dataclass(frozen=True)
class HeldOut:
    """Scores of a set that was scored once, after the last step.

    Attributes:
        miou: mIoU, 0..1; None if no class occurs.
        iou: IoU by class, 0..1; None for a class that does not occur.
    """

    miou: float | None
    iou: Mapping[str, float | None]


@dataclass(frozen=True)
class FinishedRun:
    """What a table needs of a run.

    Attributes:
        folder: The run's folder.
        groups: Chosen file by group, of those where it is known.
        settings: Every setting of the composed configuration by dotted name, as text; without the seed and what
            changes no result. ``world_size`` and ``dataset.val`` are what the run noted of itself.
        given: The settings' names that the command line gave.
        seed: Its seed.
        miou: mIoU of the last step, 0..1.
        best_miou: The best mIoU of all validations, 0..1.
        seconds: How long it took.
        iou: Last IoU by class, 0..1; None for a class that does not occur.
        ended: When it ended, seconds since 1970.
        held_out: By name of a set of ``score_last``: its mIoU, and its IoU by class, 0..1.
        experiment: Chosen file of conf/experiment; None if there was none, or it is not known.
        ablation: Chosen file of conf/ablation; likewise.
    """

    folder: Path
    groups: Mapping[str, str]
    settings: Mapping[str, str]
    given: frozenset[str]
    seed: int
    miou: float
    best_miou: float
    seconds: float
    iou: Mapping[str, float | None]
    ended: float
    held_out: Mapping[str, HeldOut] = field(default_factory=dict)
    experiment: str | None = None
    ablation: str | None = None

    @property
    def setting(self) -> tuple[tuple[str, str], ...]:
        """What runs share that differ in their seeds alone; chosen files are names for settings."""
        return tuple(sorted(self.settings.items()))

    @property
    def all(self) -> dict[str, str]:
        """Groups and settings in one; ``schedule`` is left out where it is the data set's own."""
        own = self.groups.get("schedule") == self.groups.get("dataset")
        groups = {name: chosen for name, chosen in self.groups.items() if not (own and name == "schedule")}
        return {**groups, **self.settings}


def read_run(folder: Path) -> FinishedRun:
    """Read a run's folder; it may have been moved or copied.

    What the run was comes from its summary. The folder's ``config/`` may be of a later command that was refused
    there, so of it counts what agrees with the summary.

    Raises:
        UserError: If it is not the folder of a finished run, or its files are damaged or of two different runs.
    """
    try:
        summary = json.loads((folder / "summary.json").read_text())
        trained = summary.get("config")
        configured = dict(leaves(trained if isinstance(trained, dict) else _config(folder)))
        settings = _settings(configured)
        groups, given = _command(folder, settings, required=not isinstance(trained, dict))
        names: dict[str, str] = {}
        if isinstance(choices := summary.get("choices"), dict):
            groups = {name: str(choices[name]) for name in GROUPS if name in choices}
            names = {name: str(choices[name]) for name in ("experiment", "ablation") if choices.get(name)}
        parts = _parts(folder)
        sizes = {int(part["world_size"]) for part in parts} or {1}
        own = {"dataset.val": str(summary["val"]), "world_size": "+".join(map(str, sorted(sizes)))}
        run = FinishedRun(
            folder=folder,
            groups=groups,
            settings={**settings, **own},
            given=given,
            seed=int(configured["seed"]),
            miou=float(summary["last_miou"]),
            best_miou=float(summary["best_miou"]),
            seconds=float(summary["seconds"]),
            iou=_iou(summary["iou"]),
            ended=_ended(folder, parts),
            held_out=_held_out(summary.get("score_last") or {}),
            **names,
        )
        steps, expected = summary["steps"], configured["schedule.max_steps"]
    except _BROKEN as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{folder} is not whole ({what}); give folders of finished runs of scripts/train.py"
        ) from error
    if steps != expected:
        raise UserError(f"{folder} has a summary of {steps} steps, its configuration says {expected}; go on with it")
    return run


def _iou(by_class: Mapping[str, Any]) -> dict[str, float | None]:
    return {str(name): None if value is None else float(value) for name, value in by_class.items()}


def _held_out(sets: Mapping[str, Any]) -> dict[str, HeldOut]:
    """The sets of ``score_last`` in a summary; a run of an earlier version has none."""
    mious = {name: scored["miou"] for name, scored in sets.items()}
    return {n: HeldOut(None if m is None else float(m), _iou(sets[n]["iou"])) for n, m in mious.items()}


def _command(folder: Path, settings: Mapping[str, str], required: bool) -> tuple[dict[str, str], frozenset[str]]:
    """Chosen files and given settings of the last command in a folder, of those that say what the run was.

    A chosen file is one that the run had if all settings of its group are the run's.

    Args:
        folder: The run's folder.
        settings: The run's, by dotted name, as text.
        required: Whether what ``config/`` raises where it is damaged is raised; else nothing is known.
    """
    try:
        last = _settings(dict(leaves(_config(folder))))
        choices = OmegaConf.load(folder / "config" / "hydra.yaml").hydra.runtime.choices
        overrides = [str(o) for o in OmegaConf.load(folder / "config" / "overrides.yaml")]
        other = {name for name in last.keys() | settings.keys() if last.get(name) != settings.get(name)}
        changed = {name.partition(".")[0] for name in other}
        groups = {name: str(choices[name]) for name in GROUPS if name not in changed}
        return groups, _given(overrides, settings.keys() - other)
    except _BROKEN:
        if required:
            raise
        return {}, frozenset()


def _ended(folder: Path, parts: Sequence[Mapping[str, Any]]) -> float:
    """When a run ended, as its record says, or else when its summary was written; seconds since 1970."""
    ended = parts[-1].get("ended") if parts else None
    if ended is None:
        return (folder / "summary.json").stat().st_mtime
    return datetime.fromisoformat(ended).timestamp()


def _config(folder: Path) -> dict[str, Any]:
    """The composed configuration, interpolations as they stand."""
    return OmegaConf.to_container(OmegaConf.load(folder / "config" / "config.yaml"), resolve=False)


def _settings(configured: Mapping[str, Any]) -> dict[str, str]:
    """What results hang on, as text; data may have moved."""
    kept = {k: v for k, v in configured.items() if k not in _NOT_A_SETTING and not k.endswith(".root")}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in kept.items()}


def _given(overrides: Iterable[str], settings: Iterable[str]) -> frozenset[str]:
    """The settings that Hydra's overrides name, such as ``+a.b=1`` or ``~loss.mix``, or lie below."""
    keys = [re.match(r"[+~]*([^=@]*)", o)[1] for o in overrides]
    below = tuple(f"{key}." for key in keys if key not in GROUPS)
    return frozenset(name for name in settings if name in keys or name.startswith(below))


def _parts(folder: Path) -> list[dict[str, Any]]:
    """The parts of ``record.json``; none if there is no such file, or it is damaged."""
    try:
        parts = json.loads((folder / "record.json").read_text())
    except (OSError, ValueError):
        return []
    return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []


def collect(folders: Sequence[Path]) -> list[FinishedRun]:
    """The finished runs in and below some folders, no setting and seed twice.

    Runs that are not finished, damaged ones, and all but the newest of a setting and seed are left out; the log names
    each.

    Args:
        folders: Run folders, or folders that hold some.

    Raises:
        UserError: If a folder is missing, or none holds a finished run.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}; give folders that scripts/train.py wrote")
    files = (p for folder in folders for name in ("metrics.jsonl", "summary.json") for p in folder.rglob(name))
    found = list({p.parent.resolve(): p.parent for p in sorted(files)}.values())
    unfinished = [folder for folder in found if not (folder / "summary.json").is_file()]
    runs: dict[tuple, FinishedRun] = {}
    for folder in found:
        if folder in unfinished:
            continue
        try:
            run = read_run(folder)
        except UserError as error:
            log.warning("left out: %s", error)
            continue
        key = (run.experiment, run.ablation, run.setting, run.seed)
        if key in runs:
            older, run = sorted((runs[key], run), key=lambda r: r.ended)
            what = f"the same setting and seed={run.seed}"
            log.warning("left out: %s has %s as %s, which is newer", older.folder, what, run.folder)
        runs[key] = run
    if unfinished:
        log.warning("%d unfinished %s left out:", len(unfinished), "run is" if len(unfinished) == 1 else "runs are")
    for folder in unfinished:
        log.warning("  %s: %s", folder, _how_far(folder))
    if not runs:
        raise UserError(
            f"no finished run in {', '.join(map(str, folders))}; give folders that scripts/train.py wrote"
        )
    return list(runs.values())


def _how_far(folder: Path) -> str:
    """The last step that an unfinished run noted, of how many, and how it ended if it noted that."""
    parts = _parts(folder)
    step, outcome = (parts[-1].get("step"), parts[-1].get("outcome")) if parts else (None, None)
    path = folder / "metrics.jsonl"
    for line in path.read_text().splitlines() if step is None and path.is_file() else ():
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):  # the last line of a run that was killed
            continue
    try:
        steps = str(_config(folder)["schedule"]["max_steps"])
    except _BROKEN:
        steps = "?"
    stopped = "stopped before its summary was written; give its command again"
    return f"step {step or 0} of {steps}" + (f", {stopped if outcome == 'finished' else outcome}" if outcome else "")
