"""A pair of pictures through encoder, DAR and head: what is predicted, how sure the network is, what DAR looks at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from icda.data.io import resize_label
from icda.data.stream import normalize
from icda.errors import UserError
from icda.explanation.dar_view import StageView, view_dar
from icda.inference import enough_memory
from icda.models import SegmentationModel
from icda.models.segmentation import SMALLEST_SIDE
from icda.prediction.inputs import InputSize
from icda.training.checkpoint import Trained, find, read_file
from icda.training.mean_teacher import use_batch_statistics

PUBLISHED_THRESHOLD = 0.968
"""From which probability a pseudo label counts as confident, if a checkpoint does not tell (method section 7.7)."""


@dataclass(frozen=True)
class Prediction:
    """Train ids (h, w) uint8 at the size at which a picture enters, and their probabilities (h, w) float32."""

    labels: np.ndarray
    confidence: np.ndarray


@dataclass(frozen=True)
class Look:
    """What a network makes of a night picture and a day picture of the same place.

    Attributes:
        alone: From the night picture alone, as at inference.
        coupled: From the night features that DAR enriched by those of the day picture.
        pseudo: That of both which writes the pseudo labels: ``coupled``, unless the training says otherwise.
        points: The queries, (Q, 2) int64, (row, column) in pixels of the night picture's own size.
        shares: The same as shares of height and width, (Q, 2) float64, 0 to below 1.
        stages: What the two stages of DAR look at.
    """

    alone: Prediction
    coupled: Prediction
    pseudo: Prediction
    points: np.ndarray
    shares: np.ndarray
    stages: list[StageView]


def check_dar(trained: Trained, called: str) -> None:
    """Refuse a model without DAR.

    Args:
        trained: The model.
        called: What messages call its file.

    Raises:
        UserError: If it has none.
    """
    if trained.model.dar is None:
        raise UserError(
            f"{called} holds no DAR: its training needed none (loss=source_only, loss=dacs), or it is a student "
            "exported alone; give a checkpoint of a training with loss=icda"
        )


def look(
    trained: Trained,
    night: np.ndarray,
    day: np.ndarray,
    size: InputSize,
    points: Callable[[np.ndarray], np.ndarray],
    batch_statistics: bool,
) -> Look:
    """Predict the classes of a night picture, and tell what DAR looks at.

    Args:
        trained: With a DAR. With ``batch_statistics``, it is left in the mode of a mean teacher.
        night: RGB (H, W, 3) uint8.
        day: RGB (h, w, 3) uint8. As the pairs of training are, it is brought to the size at which night enters,
            whatever its shape.
        size: At which the night picture enters.
        points: Given the predicted train ids (H, W) uint8 at the night picture's own size, the queries (Q, 2) int64.
        batch_statistics: Whether batch norm works on the statistics of the picture, as a mean teacher's does.

    Raises:
        UserError: If the pictures enter too small for DAR, or the memory does not suffice.
    """
    model = trained.model
    entering = size.of(night.shape[:2])
    if min(entering) < SMALLEST_SIDE:
        raise UserError(
            f"the night picture enters at {entering[0]} x {entering[1]} (height x width), too small for DAR, which "
            f"needs {SMALLEST_SIDE} a side; give size=[height,width]"
        )
    mean, std = model.mean.cpu().numpy(), model.std.cpu().numpy()
    if batch_statistics:
        use_batch_statistics(model)
    with enough_memory(entering), torch.inference_mode():
        pair = [
            normalize(resized, mean, std)[None].to(model.mean.device)
            for resized in (size.resize(night), InputSize(fixed=entering).resize(day))
        ]
        night_maps, day_maps = (model.encoder(picture) for picture in pair)
        alone = _predicted(model, night_maps, entering)
        coupled = _predicted(model, model.dar(night_maps, day_maps), entering)
        queries = points(resize_label(coupled.labels, night.shape[:2]))
        shares = (queries + 0.5) / night.shape[:2]
        _, stages = view_dar(model.dar, night_maps, day_maps, shares)
    with_dar = OmegaConf.select(trained.config, "loss.pseudo_label_with_dar", default=True)
    return Look(alone, coupled, coupled if with_dar else alone, queries, shares, stages)


def _predicted(model: SegmentationModel, maps: list[Tensor], size: tuple[int, int]) -> Prediction:
    logits = model.upsample(model.head(maps).float(), size)
    confidence, labels = logits.softmax(1).max(1)
    return Prediction(labels[0].to(torch.uint8).cpu().numpy(), confidence[0].cpu().numpy())


def threshold_of(config: DictConfig) -> float:
    """From which probability the pseudo labels of a training count; published if its configuration does not tell."""
    return float(OmegaConf.select(config, "loss.pseudo_label_threshold", default=PUBLISHED_THRESHOLD))


def checkpoint_of(path: str) -> Path:
    """The file that the setting ``ckpt`` means: of a run's folder the last one, which has the prototypes.

    Args:
        path: A file or a run's folder, see ``icda.training.checkpoint.find``.

    Raises:
        UserError: If a folder holds no checkpoint, or several runs.
    """
    try:
        return find(path, last=True)
    except UserError:
        return find(path)


def prototypes_of(ckpt: Path) -> np.ndarray | None:
    """PCA's prototypes (C, C) float32 in a checkpoint (method section 6); None if it holds none."""
    state = read_file(ckpt).get("training", {}).get("pca")
    return None if state is None else state["prototypes"].float().cpu().numpy()


def similarities(prototypes: np.ndarray) -> np.ndarray:
    """Cosine similarity of each prototype with each, (C, C) float64 in -1..1; nan for those never learnt."""
    lengths = np.linalg.norm(prototypes.astype(np.float64), axis=1, keepdims=True)
    directions = prototypes / np.where(lengths > 0, lengths, np.nan)
    return directions @ directions.T
