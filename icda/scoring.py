"""Scoring a checkpoint on a data set: what ``scripts/eval.py`` does."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from omegaconf import DictConfig, OmegaConf, open_dict
from tqdm.contrib.logging import logging_redirect_tqdm

from icda.config import EvalConfig, validate_eval
from icda.data.base import SegmentationDataset
from icda.data.setup import open_part
from icda.errors import UserError
from icda.evaluation import evaluate
from icda.report import percent, scores, table
from icda.training.checkpoint import Trained, load_trained
from icda.training.loop import pick_device

log = logging.getLogger(__name__)


def score(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Score a checkpoint, print the table, write ``eval.json`` and, if asked, predictions.

    Args:
        cfg: Composed from ``conf/eval.yaml``.
        folder: Where ``eval.json`` and ``predictions/`` go.

    Returns:
        What ``eval.json`` holds: ``miou``, ``iou`` by class name, pixel counts, and what was scored.

    Raises:
        UserError: If the checkpoint or the data cannot be used.
    """
    config = validate_eval(cfg)
    device = pick_device(config.device)
    trained = load_trained(config.ckpt, device, teacher=config.teacher)
    dataset = _open(config, cfg.get("dataset"), trained)
    if dataset.classes.names != trained.classes.names:
        one, other = trained.classes, dataset.classes
        raise UserError(
            f"{config.ckpt} was trained for the classes {one.name} ({len(one)}), {dataset.name} has {other.name} "
            f"({len(other)}); choose a data set with the same classes"
        )
    writer = PredictionWriter(dataset, folder / "predictions") if config.save_predictions else None
    with logging_redirect_tqdm():
        matrix = evaluate(
            trained.model, dataset, device, workers=config.workers, progress=config.progress, on_prediction=writer
        )
    result = {
        **scores(matrix, dataset.classes),
        "images": len(dataset),
        "dataset": dataset.name,
        "checkpoint": config.ckpt,
        "step": trained.step,
        "teacher": config.teacher,
    }
    (folder / "eval.json").write_text(json.dumps(result, indent=2) + "\n")
    log.info("%s\n", table(result))
    log.info("mIoU %s on %s, %d images", percent(result["miou"]), dataset.name, len(dataset))
    log.info("written: %s%s", folder / "eval.json", f", {writer.folder}" if writer is not None else "")
    return result


def _open(config: EvalConfig, chosen: DictConfig | None, trained: Trained) -> SegmentationDataset:
    """The data set to score on: the one chosen, or the one that the checkpoint was trained with."""
    composed = trained.config
    with open_dict(composed):
        if config.data_dir is not None:
            composed.data_dir = config.data_dir
        if chosen is not None:
            composed.dataset = OmegaConf.to_container(chosen, resolve=False)
    dataset = OmegaConf.create(OmegaConf.to_container(composed, resolve=True)).dataset
    if dataset.prepare is not None:
        open_part(dataset.prepare)
    part = dataset[config.split]
    return open_part(part, **({"translations": None} if "translations" in part else {}))


class PredictionWriter:
    """Writes every prediction as train ids and in colour, under the image's own name and sub-folders.

    Args:
        dataset: Where the images come from.
        folder: Gets ``labels/<key>.png`` (train ids) and ``colors/<key>.png``.
    """

    def __init__(self, dataset: SegmentationDataset, folder: Path) -> None:
        self.dataset = dataset
        self.folder = folder

    def __call__(self, index: int, prediction: np.ndarray) -> None:
        """Write the prediction (H, W) uint8 of the image at ``index``."""
        sample = self.dataset.samples[index]
        relative = Path(sample.key).parent / f"{sample.image.stem}.png"
        color = self.dataset.classes.colorize(prediction)[:, :, ::-1]
        for kind, picture in (("labels", prediction), ("colors", color)):
            path = self.folder / kind / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            if not cv2.imwrite(str(path), picture):
                raise UserError(f"{path} could not be written; choose another folder with hydra.run.dir=")
