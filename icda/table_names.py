"""What a table of finished runs calls its rows: what tells them apart, and what they share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from icda.finished_runs import GROUPS, FinishedRun


@dataclass(frozen=True)
class Layout:
    """Which settings a table names.

    Attributes:
        common: What all runs share and the command line or a group says.
        differing: Names of groups and settings that differ between runs, other than by their experiment or ablation.
        title: Head of the column that names experiments or ablations; None where no run has one.
    """

    common: Mapping[str, str]
    differing: tuple[str, ...]
    title: str | None = None


def layout(runs: Sequence[FinishedRun]) -> Layout:
    """What tells runs apart, and what of interest they share.

    A setting is named if a command line gave it, or if it differs between runs that chose the same file of its group;
    what a choice of a file explains is not, and neither is what the choice of an experiment or ablation does.
    """
    groups = [name for name in GROUPS if any(name in run.all for run in runs)]
    names = dict.fromkeys(name for run in runs for name in run.settings)
    named = [name for name in names if _given_by_any(name, runs) or _unexplained(name, runs)]
    values = {name: {run.all.get(name) for run in runs} for name in (*groups, *named)}
    titles = [kind for kind in ("ablation", "experiment") if any(getattr(run, kind) for run in runs)]
    return Layout(
        {name: value for name, (value, *more) in values.items() if not more and value is not None},
        tuple(name for name, found in values.items() if len(found) > 1 and not _told_by_label(name, runs)),
        titles[0] if titles else None,
    )


def _given_by_any(name: str, runs: Sequence[FinishedRun]) -> bool:
    """Whether a command line says a setting's value; that of the number of processes is torchrun's."""
    return any(name in run.given or (name == "world_size" and run.settings[name] != "1") for run in runs)


def _unexplained(name: str, runs: Sequence[FinishedRun]) -> bool:
    """Whether a setting differs between runs of one choice; where one's choice is not known, between any."""
    pairs = {(run.groups.get(name.partition(".")[0]), run.settings.get(name)) for run in runs}
    choices, values = ({pair[i] for pair in pairs} for i in (0, 1))
    return len(values) > 1 if None in choices else len(pairs) > len(choices)


def _told_by_label(name: str, runs: Sequence[FinishedRun]) -> bool:
    """Whether all runs have an experiment or ablation, and those of one agree on a group or setting."""
    labels = {(run.experiment, run.ablation) for run in runs}
    told = {(run.experiment, run.ablation, run.all.get(name)) for run in runs}
    return (None, None) not in labels and len(told) == len(labels)


def _label(run: FinishedRun, runs: Sequence[FinishedRun]) -> str | None:
    """The ablation's or experiment's name; the ablation's with its experiment where there are several of these."""
    if run.ablation is None:
        return run.experiment
    several = len({other.experiment for other in runs if other.ablation is not None}) > 1
    return f"{run.experiment}/{run.ablation}" if several else run.ablation


def row_names(
    run: FinishedRun, runs: Sequence[FinishedRun], plan: Layout, base: FinishedRun | None = None
) -> dict[str, str]:
    """A row's first cells: its ablation or experiment, and its setting, by the columns' heads.

    Args:
        run: One of the row's.
        runs: The table's.
        plan: Theirs.
        base: A run of the row that this one is compared with, whose settings are not said again; None for all.
    """
    label = {} if plan.title is None else {plan.title: _label(run, runs) or "-"}
    if not plan.differing and all(r.ablation or r.experiment for r in runs):
        return label
    short, names = _short_numbers(runs), plan.differing or [name for name in GROUPS if name in plan.common]
    told = {name: short.get((name, value), value) for name, value in run.all.items()}
    if base is not None:
        names = [name for name in names if run.all.get(name) != base.all.get(name)]
    return {**label, "setting": words(names, told) or ("all" if base is None else "-")}


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


def words(names: Iterable[str], values: Mapping[str, str]) -> str:
    """``NAME=VALUE`` for each of some names that has a value."""
    return " ".join(f"{name}={values[name]}" for name in names if name in values)
