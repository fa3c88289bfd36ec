"""Finished runs gathered into one table: mean and spread over seeds, one row a setting."""

from __future__ import annotations

import csv
import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from icda.errors import UserError
from icda.finished_runs import GROUPS, FinishedRun, collect
from icda.table_names import layout, row_names, words

VAL = "val"
"""What the validation set is called beside the sets of ``score_last``."""

Row = list[FinishedRun]
"""The runs of a setting, by seed."""


def _rows(runs: Sequence[FinishedRun]) -> list[Row]:
    """Runs by name and setting, those of a setting by seed: ablations by their names, then the others, those of
    experiments by data set, by rising mean.
    """
    rows: dict[tuple, Row] = {}
    for run in sorted(runs, key=lambda r: r.seed):
        rows.setdefault((run.experiment, run.ablation, run.setting), []).append(run)

    def place(row: Row) -> tuple:
        first = row[0]
        if first.ablation is not None:
            name = (0, first.experiment or "", first.ablation)
        else:
            name = (1, "" if first.experiment is None else first.groups.get("dataset", ""), "")
        return *name, statistics.mean(r.miou for r in row), first.setting

    return sorted(rows.values(), key=place)


def _classes(runs: Sequence[FinishedRun]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.iou))


def _held_out(runs: Sequence[FinishedRun]) -> list[str]:
    """Names of the sets of ``score_last`` that any run has."""
    return list(dict.fromkeys(name for run in runs for name in run.held_out))


def _miou(run: FinishedRun, name: str) -> float | None:
    """Last mIoU on a set; None where there is none."""
    return run.miou if name == VAL else _held_out_miou(run, name)


def _held_out_miou(run: FinishedRun, name: str) -> float | None:
    return run.held_out[name].miou if name in run.held_out else None


def _held_out_iou(run: FinishedRun, name: str, of: str) -> float | None:
    return run.held_out[name].iou.get(of) if name in run.held_out else None


def _mean_and_spread(shares: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard deviation (n - 1) in percent; None where there are too few."""
    percents = [100 * share for share in shares if share is not None]
    mean = statistics.mean(percents) if percents else None
    return mean, statistics.stdev(percents) if len(percents) > 1 else None


def _cell(shares: Iterable[float | None], signed: bool = False) -> str:
    """Mean and spread in percent and, where some runs lack the figure, of how many they are."""
    shares = list(shares)
    mean, spread = _mean_and_spread(shares)
    if mean is None:
        return "-"
    text = f"{mean:+.1f}" if signed else f"{mean:.1f}"
    have = len(shares) - shares.count(None)
    return text + ("" if spread is None else f" ± {spread:.1f}") + ("" if have == len(shares) else f" ({have})")


@dataclass(frozen=True)
class Pairing:
    """Differences between the runs of two rows that have the same seed.

    Attributes:
        name: Set whose mIoU is compared: ``val``, or one of ``score_last``.
        to: Name of the ablation or experiment that every row is compared with, or the folder that holds its runs;
            None for the row above.
    """

    name: str
    to: str | Path | None = None

    @property
    def title(self) -> str:
        """What the differences are."""
        return f"{'mIoU' if self.name == VAL else self.name} less {self.to or 'row above'}"

    def differences(self, rows: Sequence[Row], place: int) -> dict[int, float]:
        """By seed: mIoU of a row's run less that of the other row's run of this seed, -1..1.

        Empty where there is no other row, the set is not the same, or no seed is in both.

        Args:
            rows: All rows, in the table's order.
            place: Which.
        """
        row, other = rows[place], self.other(rows, place)
        if other is None or not self.same_set(row, other):
            return {}
        before = {run.seed: _miou(run, self.name) for run in other}
        pairs = {run.seed: (_miou(run, self.name), before.get(run.seed)) for run in row}
        return {seed: one - two for seed, (one, two) in pairs.items() if one is not None and two is not None}

    def other(self, rows: Sequence[Row], place: int) -> Row | None:
        """The row that one is compared with; None where there is none, or, of those with a name, none of this set."""
        if self.to is None:
            return rows[place - 1] if place else None
        found = [row for row in rows if self.is_named(row) and self.same_set(row, rows[place])]
        return found[0] if found and found[0] is not rows[place] else None

    def is_named(self, row: Row) -> bool:
        """Whether a row is of the ablation or experiment ``to``, or has a run in the folder ``to``."""
        if isinstance(self.to, Path):
            return any(_is_in(run, self.to) for run in row)
        return self.to == (row[0].ablation or row[0].experiment)

    def same_set(self, row: Row, other: Row) -> bool:
        """Whether two rows were scored on the same images."""
        return _set_of(row[0], self.name) == _set_of(other[0], self.name)


def _is_in(run: FinishedRun, folder: Path) -> bool:
    return run.folder.resolve().is_relative_to(folder.resolve())


def _set_of(run: FinishedRun, name: str) -> dict[str, str]:
    """What says on which images a set's mIoU is."""
    if name == VAL:
        return {"": run.settings["dataset.val"]}
    prefix = f"dataset.score_also.{name}."
    own = {key.removeprefix(prefix): value for key, value in run.settings.items() if key.startswith(prefix)}
    return {key: value for key, value in own.items() if key != "size"}


def pairing(runs: Sequence[FinishedRun], name: str | None = None, to: str | None = None) -> Pairing:
    """What ``markdown`` and ``write_csv`` are to compare.

    Args:
        runs: From ``collect``.
        name: The set; None for ``val``, by which settings may be chosen.
        to: A folder that holds some of the runs, or a name; see ``Pairing``.

    Raises:
        UserError: If no run has such a set, ablation, experiment or folder, or several rows do.
    """
    sets = [VAL, *_held_out(runs)]
    if name is not None and name not in sets:
        raise UserError(f"no run has scores of a set {name}; choose one of {', '.join(sets)}")
    if to is None:
        return Pairing(name or VAL)
    in_folder = any(_is_in(run, Path(to)) for run in runs)
    found = Pairing(name or VAL, Path(to) if in_folder else to)
    named = [row for row in _rows(runs) if found.is_named(row)]
    if not named:
        known = sorted({run.ablation or run.experiment for run in runs if run.ablation or run.experiment})
        choice = f"choose one of {', '.join(known)}, or a folder" if known else "choose a folder of some"
        raise UserError(f"no run is of or in {to}; {choice}")
    if any(found.same_set(one, other) for one, other in itertools.combinations(named, 2)):
        what = f"lie in {to}" if in_folder else f"are called {to}"
        raise UserError(f"several rows {what}, with different settings; name the folder of one")
    return found


def markdown(
    runs: Sequence[FinishedRun], per_class: bool = False, each: bool = False, paired: Pairing | None = None
) -> str:
    """A markdown table: setting, number of runs, last mIoU (mean ± standard deviation with n - 1) and best mIoU
    (mean) in percent, minutes (mean); rows of ablations by name, others by rising mean. Above it what all runs share;
    rows name what differs, or, where nothing does, the chosen files. Where runs have an ablation or experiment, its
    name comes first, and what it explains is not told. Every set of ``score_last`` has a column of its last mIoU.
    Where some of a row's runs lack a figure, the number of those that have it follows in brackets.

    Args:
        runs: From ``collect``.
        per_class: Whether there is a column for each class's last IoU, on every set.
        each: Whether every run has a row of its own, with its seed and folder.
        paired: Adds the difference to another row, over the seeds that both have: mean ± standard deviation and, in
            brackets, their number; None adds none. Rows that are compared with a named one, or that of a folder, say
            of their setting what differs from that.
    """
    plan, rows = layout(runs), _rows(runs)
    lines = [f"All runs: {words(plan.common, plan.common)}", ""] if plan.common else []
    head: list[str] = []
    records = []
    for place, whole in enumerate(rows):
        gaps = {} if paired is None else paired.differences(rows, place)
        base = None if paired is None or paired.to is None else paired.other(rows, place)
        for row in [[run] for run in whole] if each else [whole]:
            found = [gaps[run.seed] for run in row if run.seed in gaps]
            count = "" if each else f" ({len(found)})"
            difference = _cell(found, signed=True) + (count if found else "")
            cells = [
                *row_names(row[0], runs, plan, base[0] if base else None).items(),
                ("seed" if each else "n", str(row[0].seed if each else len(row))),
                ("mIoU", _cell(run.miou for run in row)),
                ("best", f"{statistics.mean(100 * run.best_miou for run in row):.1f}"),
                *((name, _cell(_held_out_miou(run, name) for run in row)) for name in _held_out(runs)),
                *([] if paired is None else [(paired.title + (" (n)" if count else ""), difference)]),
                ("minutes", f"{statistics.mean(run.seconds / 60 for run in row):.1f}"),
                *((name, _cell(values)) for name, values in (_class_iou(row, runs).items() if per_class else ())),
                *([("folder", str(row[0].folder))] if each else []),
            ]
            records.append([cell for _, cell in cells])
            head = [name for name, _ in cells]
    lines += [_line(head), _line(["---"] * len(head))]
    return "\n".join([*lines, *map(_line, records)])


def _class_iou(row: Row, runs: Sequence[FinishedRun]) -> dict[str, list[float | None]]:
    """Last IoU of every class, of a row's runs, by ``CLASS`` and, for sets of ``score_last``, by ``SET: CLASS``."""
    classes = _classes(runs)
    own = {of: [run.iou.get(of) for run in row] for of in classes}
    return own | {
        f"{name}: {of}": [_held_out_iou(run, name, of) for run in row] for name in _held_out(runs) for of in classes
    }


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def write_csv(
    runs: Sequence[FinishedRun],
    file: IO[str],
    per_class: bool = False,
    each: bool = False,
    paired: Pairing | None = None,
) -> None:
    """Write the table as CSV with full precision: a column for every group and named setting, shares in percent.

    Where runs have them, ``experiment`` and ``ablation`` come first. Columns that follow the settings: ``runs``,
    ``miou_percent_mean``, ``miou_percent_std``, ``best_miou_percent_mean``, ``minutes_mean``; for sets of
    ``score_last`` ``miou_percent_mean.SET`` and ``miou_percent_std.SET``; with ``paired`` ``difference_runs``,
    ``difference_percent_mean`` and ``difference_percent_std``; with ``per_class`` ``iou_percent_mean.CLASS`` and
    ``iou_percent_std.CLASS``, where ``SET: CLASS`` stands for CLASS on sets of ``score_last``. Or, with ``each``:
    ``seed``, ``miou_percent``, ``best_miou_percent``, ``minutes``, ``folder``, ``miou_percent.SET``,
    ``difference_percent``, ``iou_percent.CLASS``. A figure that does not exist, such as the spread of one run, is
    empty.

    Args:
        runs: From ``collect``.
        file: Opened with ``newline=""``.
        per_class: See ``markdown``.
        each: See ``markdown``.
        paired: See ``markdown``.
    """
    plan, rows = layout(runs), _rows(runs)
    names = [n for n in dict.fromkeys((*GROUPS, *plan.common, *plan.differing)) if any(n in r.all for r in runs)]
    kinds = [kind for kind in ("experiment", "ablation") if any(getattr(run, kind) for run in runs)]
    records = []
    for place, row in enumerate(rows):
        gaps = None if paired is None else paired.differences(rows, place)
        own = {kind: getattr(row[0], kind) or "" for kind in kinds}
        setting = own | {name: row[0].all.get(name, "") for name in names}
        if each:
            records += [{**setting, **_figures_of_run(run, runs, per_class, gaps)} for run in row]
        else:
            records.append({**setting, **_figures_of_row(row, runs, per_class, gaps)})
    writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)


def _figures_of_run(
    run: FinishedRun, runs: Sequence[FinishedRun], per_class: bool, gaps: Mapping[int, float] | None
) -> dict[str, Any]:
    """What a line of the CSV file says of one run; see ``write_csv``."""
    figures: dict[str, Any] = {"seed": run.seed, "miou_percent": 100 * run.miou}
    figures["best_miou_percent"] = 100 * run.best_miou
    figures |= {"minutes": run.seconds / 60, "folder": str(run.folder)}
    shares = {f"miou_percent.{name}": _held_out_miou(run, name) for name in _held_out(runs)}
    if gaps is not None:
        shares["difference_percent"] = gaps.get(run.seed)
    if per_class:
        shares |= {f"iou_percent.{name}": value for name, (value,) in _class_iou([run], runs).items()}
    return figures | {name: _mean_and_spread([share])[0] for name, share in shares.items()}


def _figures_of_row(
    row: Row, runs: Sequence[FinishedRun], per_class: bool, gaps: Mapping[int, float] | None
) -> dict[str, Any]:
    """What a line of the CSV file says of a setting's runs; see ``write_csv``."""
    mean, spread = _mean_and_spread(run.miou for run in row)
    figures = {"runs": len(row), "miou_percent_mean": mean, "miou_percent_std": spread}
    figures["best_miou_percent_mean"] = _mean_and_spread(run.best_miou for run in row)[0]
    figures["minutes_mean"] = statistics.mean(run.seconds / 60 for run in row)
    pairs = {("miou", f".{name}"): [_held_out_miou(run, name) for run in row] for name in _held_out(runs)}
    if gaps is not None:
        pairs["difference", ""] = list(gaps.values())
        figures["difference_runs"] = len(gaps)
    if per_class:
        pairs |= {("iou", f".{name}"): values for name, values in _class_iou(row, runs).items()}
    for (kind, name), shares in pairs.items():
        figures[f"{kind}_percent_mean{name}"], figures[f"{kind}_percent_std{name}"] = _mean_and_spread(shares)
    return figures


def table(folders: Sequence[Path]) -> str:
    """A markdown table of the finished runs in and below some folders; see ``markdown``, and ``collect`` for
    arguments and errors.
    """
    return markdown(collect(folders))
