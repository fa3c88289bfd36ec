"""Showing what DAR looks at: what ``scripts/explain.py`` does."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from omegaconf import DictConfig

from icda.data.classes import ClassSet
from icda.data.io import read_image, resize_label
from icda.device import pick_device
from icda.errors import UserError
from icda.explanation.dar_view import DeformableView, cells_of
from icda.explanation.figures import (
    attention_figure,
    effective,
    local_figure,
    marked,
    offset_figure,
    wrapped,
)
from icda.explanation.look import (
    Look,
    check_dar,
    checkpoint_of,
    look,
    prototypes_of,
    similarities,
    threshold_of,
)
from icda.explanation.page import explain_page
from icda.explanation.points import chosen_points, given_points
from icda.explanation.settings import ENHANCED, ExplainConfig, validate_explain
from icda.prediction.inputs import chosen_size, training_size
from icda.prediction.outputs import write_picture
from icda.report.html import ENCODING
from icda.training.checkpoint import Trained, load_trained
from icda.training.durable import write_whole
from icda.viz import confidence_map, heat_map, overlay, resized

log = logging.getLogger(__name__)

PAGE, SUMMARY = "index.html", "explain.json"
_SAME_SHAPE = 0.02  # by which width / height of both pictures may differ before it is said
_SHADE = 0.25  # brightness of what is not confident


def explain(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Draw what DAR looks at, the prototypes and the pseudo labels; write PNG files and ``index.html``.

    Args:
        cfg: Composed from ``conf/explain.yaml``.
        folder: The run's folder, where all is written.

    Returns:
        What ``explain.json`` holds: the queries, what is predicted there, and the figures' numbers.

    Raises:
        UserError: If checkpoint, pictures or settings cannot be used.
    """
    config = validate_explain(cfg)
    device = pick_device(config.device)
    night, day = _pictures(config)
    ckpt = checkpoint_of(config.ckpt)
    trained = _trained(ckpt, device, config.teacher)
    size = chosen_size(config.size, training_size(trained.config))

    def points(labels: np.ndarray) -> np.ndarray:
        if config.points is not None:
            return given_points(config.points, labels.shape)
        return chosen_points(labels, config.count)

    seen = look(trained, night, day, size, points, batch_statistics=config.teacher)
    threshold = threshold_of(trained.config) if config.threshold is None else config.threshold
    prototypes = prototypes_of(ckpt)
    if prototypes is None:
        log.info("%s holds no prototypes; those of a run are in its checkpoints/last.pt", ckpt)
    summary = _summary(config, ckpt, trained, seen, threshold, prototypes)
    figures = _figures(config, trained.classes, night, day, seen, threshold)
    if prototypes is not None:
        names = trained.classes.names
        figures["prototypes"] = heat_map(similarities(prototypes), names, names, -1, 1, diverging=True)
    _write(folder, figures, explain_page(summary, figures, trained.classes), summary)
    return summary


def _trained(ckpt: Path, device: torch.device, teacher: bool) -> Trained:
    """The network, which has a DAR."""
    try:
        trained = load_trained(ckpt, device, teacher=teacher)
    except UserError:
        if teacher:  # there may be none, but whoever takes the student instead needs a DAR as well
            check_dar(load_trained(ckpt, device), str(ckpt))
        raise
    if teacher and trained.model.dar is None and load_trained(ckpt, device).model.dar is not None:
        raise UserError(f"{ckpt} holds a DAR of the student, but none of the mean teacher; give teacher=false")
    check_dar(trained, str(ckpt))
    return trained


def _pictures(config: ExplainConfig) -> tuple[np.ndarray, np.ndarray]:
    """The night picture, and the day picture as it is, or made from it."""
    night = read_image(_existing("night", config.night))
    if config.day == ENHANCED:
        import albumentations as A  # takes seconds

        from icda.transforms import LiftIllumination, reseed

        lift = A.Compose([LiftIllumination(p=1.0)])
        reseed(lift, 0)
        return night, lift(image=night)["image"]
    day = read_image(_existing("day", config.day))
    shapes = [picture.shape[1] / picture.shape[0] for picture in (night, day)]
    if abs(shapes[0] / shapes[1] - 1) > _SAME_SHAPE:
        log.warning(
            "the night picture is %d x %d, the day picture %d x %d (height x width): the day picture is distorted to "
            "night's shape, as in training",
            *night.shape[:2], *day.shape[:2],
        )  # fmt: skip
    return night, day


def _existing(key: str, path: str) -> Path:
    found = Path(path).expanduser()
    if not found.is_file():
        what = "is no file" if found.exists() else "does not exist"
        raise UserError(f"{key}={path} {what}; give a PNG or a JPEG")
    return found


def _summary(
    config: ExplainConfig,
    ckpt: Path,
    trained: Trained,
    seen: Look,
    threshold: float,
    prototypes: np.ndarray | None,
) -> dict[str, Any]:
    """What the page tells in words and numbers."""
    names, size = trained.classes.names, seen.coupled.labels.shape
    queries = []
    for i, (y, x) in enumerate(cells_of(seen.shares, size).tolist()):
        queries.append(
            {
                "point": seen.points[i].tolist(),
                "coupled": names[seen.coupled.labels[y, x]],
                "alone": names[seen.alone.labels[y, x]],
                "confidence": float(seen.coupled.confidence[y, x]),
                "effective_samples": [effective(s.deformable.weights[i].mean(0)) for s in seen.stages],
            }
        )
    return {
        "checkpoint": str(ckpt),
        "night": config.night,
        "day": config.day,
        "step": trained.step,
        "teacher": config.teacher,
        "size": list(size),
        "grids": [list(stage.size) for stage in seen.stages],
        "largest_offset_cells": [_largest_offset(stage.deformable) for stage in seen.stages],
        "queries": queries,
        "threshold": threshold,
        "share_above_threshold": float((seen.pseudo.confidence >= threshold).mean()),
        "mean_confidence": float(seen.pseudo.confidence.mean()),
        "changed_by_dar": float((seen.coupled.labels != seen.alone.labels).mean()),
        "prototypes": None if prototypes is None else int((np.abs(prototypes).sum(1) > 0).sum()),
    }


def _largest_offset(view: DeformableView) -> float:
    """The longest distance between a reference point and its position, in cells."""
    return float(np.linalg.norm(view.positions - view.references, axis=-1).max())


def _figures(
    config: ExplainConfig, classes: ClassSet, night: np.ndarray, day: np.ndarray, seen: Look, threshold: float
) -> dict[str, np.ndarray]:
    """All pictures but the prototypes', by the name of their file."""
    height, width = night.shape[:2]
    tile = max(1, round(height * config.tile / width)), config.tile
    night, day = resized(night, tile), resized(day, tile)
    colored = {
        name: overlay(night, resize_label(prediction.labels, tile), classes, config.opacity)
        for name, prediction in (("alone", seen.alone), ("coupled", seen.coupled), ("pseudo", seen.pseudo))
    }
    numbered = night
    for i, cell in enumerate(seen.stages[0].queries):
        numbered = marked(numbered, cell, seen.stages[0].size, str(i + 1))
    overview = {
        "night, and the queries": [numbered],
        "day": [day],
        "from night alone": [colored["alone"]],
        "with day, by DAR": [colored["coupled"]],
    }
    figures = {"overview": wrapped(overview)}
    for i in range(len(seen.points)):
        for j, stage in enumerate(seen.stages):
            figures[f"query{i + 1}_stage{j + 1}_deformable"] = attention_figure(night, day, stage, i)
            figures[f"query{i + 1}_stage{j + 1}_local"] = local_figure(night, stage, i)
    for j, stage in enumerate(seen.stages):
        figures[f"stage{j + 1}_offsets"] = offset_figure(night, day, stage)
    sure = cv2.resize(seen.pseudo.confidence, tile[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    shade = np.where((sure >= threshold)[..., None], 1, _SHADE)
    pseudo = {
        "pseudo label": [colored["pseudo"]],
        "confidence (dark 0, yellow 1)": [confidence_map(sure)],
        f"bright: {threshold:g} or more": [(colored["pseudo"] * shade).astype(np.uint8)],
    }
    return {**figures, "pseudo_labels": wrapped(pseudo)}


def _write(folder: Path, figures: dict[str, np.ndarray], page: str, summary: dict[str, Any]) -> None:
    """Write each figure, then the numbers and the page; those of an earlier run in this folder go first."""
    for pattern in (PAGE, SUMMARY, "query*_stage*_*.png", "stage*_offsets.png", "prototypes.png"):
        for path in folder.glob(pattern):
            path.unlink()
    for name, picture in figures.items():
        write_picture(folder / f"{name}.png", picture)
    write_whole(folder / SUMMARY, lambda file: file.write(json.dumps(summary, indent=2).encode() + b"\n"))
    write_whole(folder / PAGE, lambda file: file.write(page.encode(ENCODING)))
    log.info("%d figures and %s written to %s", len(figures), PAGE, folder)
