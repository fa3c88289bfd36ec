"""Whether a configuration goes on with the run that a checkpoint is of, or would make another one of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from icda.errors import UserError

log = logging.getLogger(__name__)

# Where and how a run is made; its result is the same.
FREE = frozenset(
    {"data_dir", "prepared_dir", "device", "memory", "compile", "workers", "worker_timeout", "resume", "keep"}
    | {"max_skipped", "logger", "panels", "progress"}
    | {f"schedule.{name}_every" for name in ("val", "save", "log")}
)
# Settings that came later, and what runs before them were trained with.
LATER = {
    "loss.statistics": "all",
    "loss.masked": 0.0,
    "loss.coupling_trains": "dar",
    "loss.pca_labels": "own",
    "loss.pca_balanced": False,
    "loss.pseudo_label_weight": "batch",
    "loss.mix_source": "plain",
    "loss.mix_classes": "uniform",
    "loss.mix_reverse": 0.0,
    "loss.teacher_statistics": "batch",
    "loss.pca_space": "logits",
    "model.dar.aligned": False,
    "model.dar.position_table": False,
}
# A run may be made longer, moved to more or fewer processes, or to a device of another precision.
CHANGEABLE = frozenset(
    {"schedule.max_steps", "schedule.batch_size", "schedule.accumulate", "precision", "no_grad_precision"}
)


def check_same_run(
    before: Mapping[str, Any], cfg: DictConfig, setting: str, strict: bool, finished: bool = False
) -> None:
    """Say what a configuration changes of the run that it goes on with; refuse it where it is another run.

    Settings that only one of both knows are passed over, as the checkpoint may be of another version. The file of
    ``model.encoder.weights`` may have moved, since it is not read when a run goes on.

    Args:
        before: The checkpoint's configuration, not resolved.
        cfg: The configuration at hand.
        setting: How the checkpoint was asked for, for messages.
        strict: Whether to refuse (``resume=auto``, where a folder may be another run's by mistake).
        finished: Whether the run is finished, so that its result would be given for that of the configuration at
            hand: then nothing that the result hangs on may change.

    Raises:
        UserError: If ``strict`` and a setting differs that makes it another run.
    """
    old, new = (dict(leaves(tree)) for tree in (before, OmegaConf.to_container(cfg, resolve=False)))
    old |= {key: value for key, value in LATER.items() if key not in old and _has_group(old, key)}
    free = FREE | {key for key in old if key.endswith(".root")}  # data may have moved
    changed = {key: (old[key], new[key]) for key in sorted(old.keys() & new.keys() - free) if old[key] != new[key]}
    changed |= _replaced(old, new)
    other = [key for key, values in changed.items() if finished or not (key in CHANGEABLE or _moved(key, *values))]
    if strict and other:
        key, (was, now) = other[0], changed[other[0]]
        more = f" ({len(other) - 1} more)" if len(other) > 1 else ""
        by_name = ", or the checkpoint by name, as resume=PATH, to go on with changed ones"
        raise UserError(
            f"{setting} was trained with {key}={_line(was)}, now it is {_line(now)}{more}; give the run's own "
            f"settings, or another folder (hydra.run.dir or hydra.sweep.dir){'' if finished else by_name}"
        )
    if changed:
        text = ", ".join(f"{key} {_line(was)} -> {_line(now)}" for key, (was, now) in changed.items())
        log.warning("%s goes on with changed settings: %s", setting, text)


def _has_group(settings: Mapping[str, Any], key: str) -> bool:
    group = key.rpartition(".")[0] + "."
    return any(name.startswith(group) for name in settings)


def _replaced(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Groups that one configuration spells out and the other takes from elsewhere, as an oracle its source."""
    found = {}
    for key in sorted(old.keys() ^ new.keys()):
        if isinstance(new.get(key), str) and _has_group(old, f"{key}."):
            found[key] = ("other settings", new[key])
        elif isinstance(old.get(key), str) and _has_group(new, f"{key}."):
            found[key] = (old[key], "other settings")
    return found


def _moved(key: str, was: Any, now: Any) -> bool:
    """Whether a setting names a file before and after, of weights that a run which goes on does not read."""
    return key == "model.encoder.weights" and all(isinstance(value, str) and "/" in value for value in (was, now))


def _line(value: Any) -> str:
    return " ".join(str(value).split())


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of the settings in a tree; an empty group is a setting.

    Args:
        tree: Nested dicts.
        prefix: Name of the tree.
    """
    if not isinstance(tree, Mapping) or (prefix and not tree):
        yield prefix, tree
        return
    for key, value in tree.items():
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
