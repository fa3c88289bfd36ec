"""Finished runs gathered into one table: mean and spread over seeds, one row a setting."""

from __future__ import annotations

import csv
import json
import logging
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from icda.errors import UserError
from icda.training.same_run import FREE, leaves

log = logging.getLogger(__name__)

_GROUPS = ("dataset", "model", "loss", "schedule", "cem")
# Settings that say where and how a run was made, and the seed, over which is averaged. How often it is validated is a
# setting, as the best is the best of all validations.
_NOT_A_SETTING = FREE - {"schedule.val_every"} | {"seed"}
# What opening and reading a run's files raises where they are missing, cut short or something else.
_BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, OmegaConfBaseException, YAMLError)


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
        if isinstance(choices := summary.get("choices"), dict):
            groups = {name: str(choices[name]) for name in _GROUPS if name in choices}
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
            iou={str(k): None if v is None else float(v) for k, v in summary["iou"].items()},
            ended=_ended(folder, parts),
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
        groups = {name: str(choices[name]) for name in _GROUPS if name not in changed}
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
    below = tuple(f"{key}." for key in keys if key not in _GROUPS)
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
        key = (run.setting, run.seed)
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


@dataclass(frozen=True)
class Layout:
    """Which settings a table names.

    Attributes:
        common: What all runs share and the command line or a group says.
        differing: Names of groups and settings that differ between runs.
    """

    common: Mapping[str, str]
    differing: tuple[str, ...]


def layout(runs: Sequence[FinishedRun]) -> Layout:
    """What tells runs apart, and what of interest they share.

    A setting is named if a command line gave it, or if it differs between runs that chose the same file of its group;
    what a choice of a file explains is not.
    """
    groups = [name for name in _GROUPS if any(name in run.all for run in runs)]
    names = dict.fromkeys(name for run in runs for name in run.settings)
    named = [name for name in names if _given_by_any(name, runs) or _unexplained(name, runs)]
    values = {name: {run.all.get(name) for run in runs} for name in (*groups, *named)}
    return Layout(
        {name: value for name, (value, *more) in values.items() if not more and value is not None},
        tuple(name for name, found in values.items() if len(found) > 1),
    )


def _given_by_any(name: str, runs: Sequence[FinishedRun]) -> bool:
    """Whether a command line says a setting's value; that of the number of processes is torchrun's."""
    return any(name in run.given or (name == "world_size" and run.settings[name] != "1") for run in runs)


def _unexplained(name: str, runs: Sequence[FinishedRun]) -> bool:
    """Whether a setting differs between runs of one choice; where one's choice is not known, between any."""
    pairs = {(run.groups.get(name.partition(".")[0]), run.settings.get(name)) for run in runs}
    choices, values = ({pair[i] for pair in pairs} for i in (0, 1))
    return len(values) > 1 if None in choices else len(pairs) > len(choices)


def _rows(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """Runs by setting, by rising mean; those of a setting by seed."""
    rows: dict[tuple, list[FinishedRun]] = {}
    for run in sorted(runs, key=lambda r: r.seed):
        rows.setdefault(run.setting, []).append(run)
    return sorted(rows.values(), key=lambda row: (statistics.mean(r.miou for r in row), row[0].setting))


def _classes(runs: Sequence[FinishedRun]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.iou))


def _mean_and_spread(shares: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard deviation (n - 1) in percent; None where there are too few."""
    percents = [100 * share for share in shares if share is not None]
    mean = statistics.mean(percents) if percents else None
    return mean, statistics.stdev(percents) if len(percents) > 1 else None


def _cell(shares: Iterable[float | None]) -> str:
    mean, spread = _mean_and_spread(shares)
    if mean is None:
        return "-"
    return f"{mean:.1f}" if spread is None else f"{mean:.1f} ± {spread:.1f}"


def markdown(runs: Sequence[FinishedRun], per_class: bool = False, each: bool = False) -> str:
    """A markdown table: setting, number of runs, last mIoU (mean ± standard deviation with n - 1) and best mIoU
    (mean) in percent, minutes (mean); by rising mean. Above it what all runs share; rows name what differs, or, where
    nothing does, the chosen files.

    Args:
        runs: From ``collect``.
        per_class: Whether there is a column for each class's last IoU.
        each: Whether every run has a row of its own, with its seed and folder.
    """
    plan, classes = layout(runs), _classes(runs) if per_class else []
    lines = [f"All runs: {_words(plan.common, plan.common)}", ""] if plan.common else []
    names = plan.differing or [name for name in _GROUPS if name in plan.common]
    head = ["setting", "seed" if each else "n", "mIoU", "best", "minutes", *classes, *(["folder"] if each else [])]
    lines += [_line(head), _line(["---"] * len(head))]
    rows, words = _rows(runs), _short_numbers(runs)
    for row in [[run] for runs_of in rows for run in runs_of] if each else rows:
        minutes = statistics.mean(run.seconds / 60 for run in row)
        cells = [
            _words(names, {name: words.get((name, value), value) for name, value in row[0].all.items()}) or "all",
            str(row[0].seed if each else len(row)),
            _cell(run.miou for run in row),
            f"{statistics.mean(100 * run.best_miou for run in row):.1f}",
            f"{minutes:.1f}",
            *(_cell(run.iou.get(name) for run in row) for name in classes),
        ]
        lines.append(_line(cells + ([str(row[0].folder)] if each else [])))
    return "\n".join(lines)


def _short_numbers(runs: Sequence[FinishedRun]) -> dict[tuple[str, str], str]:
    """Long numbers, as a search draws them, with four digits, where those still tell a setting's values apart."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for name, value in run.settings.items():
            values.setdefault(name, set()).add(value)
    short: dict[tuple[str, str], str] = {}
    for name, found in values.items():
        new = {v: f"{float(v):.4g}" if re.fullmatch(r"-?\d+\.\d{6,}(e-?\d+)?", v) else v for v in found}
        if len(set(new.values())) == len(found):
            short |= {(name, v): text for v, text in new.items()}
    return short


def _words(names: Iterable[str], values: Mapping[str, str]) -> str:
    return " ".join(f"{name}={values[name]}" for name in names if name in values)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def write_csv(runs: Sequence[FinishedRun], file: IO[str], per_class: bool = False, each: bool = False) -> None:
    """Write the table as CSV with full precision: a column for every group and named setting, shares in percent.

    Columns that follow: ``runs``, ``miou_percent_mean``, ``miou_percent_std``, ``best_miou_percent_mean``,
    ``minutes_mean``, with ``per_class`` ``iou_percent_mean.CLASS`` and ``iou_percent_std.CLASS``; or, with ``each``,
    ``seed``, ``miou_percent``, ``best_miou_percent``, ``minutes``, ``folder``, ``iou_percent.CLASS``. A figure that
    does not exist, such as the spread of one run, is empty.

    Args:
        runs: From ``collect``.
        file: Opened with ``newline=""``.
        per_class: See ``markdown``.
        each: See ``markdown``.
    """
    plan, classes = layout(runs), _classes(runs) if per_class else []
    names = [n for n in dict.fromkeys((*_GROUPS, *plan.common, *plan.differing)) if any(n in r.all for r in runs)]
    records = []
    for row in _rows(runs):
        setting = {name: row[0].all.get(name, "") for name in names}
        for run in row if each else ():
            percents = {f"iou_percent.{c}": _mean_and_spread([run.iou.get(c)])[0] for c in classes}
            figures = {"miou_percent": 100 * run.miou, "best_miou_percent": 100 * run.best_miou}
            where = {"minutes": run.seconds / 60, "folder": str(run.folder)}
            records.append({**setting, "seed": run.seed, **figures, **where, **percents})
        if not each:
            mean, spread = _mean_and_spread(run.miou for run in row)
            figures = {"runs": len(row), "miou_percent_mean": mean, "miou_percent_std": spread}
            figures["best_miou_percent_mean"] = _mean_and_spread(run.best_miou for run in row)[0]
            figures["minutes_mean"] = statistics.mean(run.seconds / 60 for run in row)
            for c in classes:
                pair = _mean_and_spread(run.iou.get(c) for run in row)
                figures[f"iou_percent_mean.{c}"], figures[f"iou_percent_std.{c}"] = pair
            records.append({**setting, **figures})
    writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)


def table(folders: Sequence[Path]) -> str:
    """A markdown table of the finished runs in and below some folders; see ``markdown``, and ``collect`` for
    arguments and errors.
    """
    return markdown(collect(folders))
