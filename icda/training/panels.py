"""Pictures of a run in progress: always the same samples, so that progress can be seen from sheet to sheet."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from icda.data.base import SegmentationDataset
from icda.data.loader import EvaluationImages
from icda.data.stream import PairStream
from icda.evaluation import predict
from icda.training.step import TrainStep
from icda.viz import contact_sheet, to_image


class Panels:
    """Contact sheets of the first samples of the training stream and of evenly spread validation images.

    Args:
        stream: Training samples.
        val: Validation images.
        rows: Samples on each sheet.
    """

    def __init__(self, stream: PairStream, val: SegmentationDataset, rows: int) -> None:
        self.samples = [stream[i] for i in range(min(rows, len(stream)))]
        self.val = val
        self.val_indices = np.unique(np.linspace(0, len(val) - 1, min(rows, len(val))).round().astype(int))

    @torch.no_grad()
    def training(self, method: TrainStep, device: torch.device) -> np.ndarray:
        """Source, enhanced twin and its label, night image, reference, pseudo label and prediction.

        Returns:
            RGB (H, W, 3) uint8; columns of what the run does not use are left out.
        """
        student, classes = method.student, method.classes
        was_training = student.training
        student.eval()
        # The teacher's batch norm always works on the batch at hand, and would keep statistics of these pictures.
        buffers = [] if method.teacher is None else list(method.teacher.buffers())
        kept = [buffer.clone() for buffer in buffers]
        columns: dict[str, list[np.ndarray]] = {}

        def add(name: str, picture: np.ndarray) -> None:
            columns.setdefault(name, []).append(picture)

        for sample in self.samples:
            images = {k: v.to(device)[None] for k, v in sample.items() if not k.endswith("label")}
            for name in ("source", "enhanced"):
                if name in images:
                    add(name, to_image(images[name][0], student.mean, student.std))
            label = sample.get("enhanced_label", sample["source_label"])
            add("label", classes.colorize(label.numpy()))
            for name in ("target", "reference"):
                if name in images:
                    add({"target": "night"}.get(name, name), to_image(images[name][0], student.mean, student.std))
            night = images.get("target", images["source"])
            if method.teacher is not None:
                pseudo = method.teacher_logits(night, images.get("reference")).argmax(1)[0]
                add("pseudo label", classes.colorize(pseudo.cpu().numpy()))
            add("prediction", classes.colorize(predict(student, night, night.shape[2:])[0].cpu().numpy()))
        student.train(was_training)
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)
        return contact_sheet(columns)

    @torch.inference_mode()
    def validation(self, method: TrainStep, device: torch.device) -> np.ndarray:
        """Night image, prediction and label of validation images, RGB (H, W, 3) uint8."""
        student, classes = method.student, method.classes
        was_training = student.training
        student.eval()
        images = EvaluationImages(self.val, student.mean, student.std)
        columns: dict[str, list[np.ndarray]] = {"night": [], "prediction": [], "label": []}
        for index in self.val_indices:
            image, _, _ = images[int(index)]
            prediction: Tensor = predict(student, image[None].to(device), image.shape[1:])[0]
            columns["night"].append(to_image(image, student.mean, student.std))
            columns["prediction"].append(classes.colorize(prediction.cpu().numpy()))
            columns["label"].append(classes.colorize(self.val.label(int(index))))
        student.train(was_training)
        return contact_sheet(columns)
