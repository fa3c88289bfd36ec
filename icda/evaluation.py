"""Scores of a model on labelled images (method section 9)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from icda.data.base import SegmentationDataset
from icda.data.loader import EvaluationImages, batches
from icda.distributed import any_over_ranks, is_main, rank, sum_over_ranks, world_size
from icda.inference import WHOLE, Views
from icda.metrics import ConfusionMatrix, UncertaintyIoU
from icda.models import SegmentationModel

_SMALLER = "give the data set a smaller one, such as dataset.val.size=[height,width]"


@dataclass(frozen=True)
class Scored:
    """One image that was segmented and compared with its label.

    Args:
        index: Its place in the data set.
        image: As it entered the network, (3, H, W) float32, normalised, on the CPU.
        label: Train ids, (h, w) uint8, at the label's own size.
        prediction: Train ids, (h, w) uint8.
        confidence: Their probabilities, (h, w) float32.
        counts: Its pixels by label and prediction, (C, C) int64.
    """

    index: int
    image: Tensor
    label: np.ndarray
    prediction: np.ndarray
    confidence: np.ndarray
    counts: np.ndarray


@torch.inference_mode()
def evaluate(
    model: SegmentationModel,
    dataset: SegmentationDataset,
    device: torch.device,
    *,
    views: Views = WHOLE,
    workers: int = 0,
    timeout: float = 0,
    progress: bool = False,
    uncertainty: UncertaintyIoU | None = None,
    on_prediction: Callable[[int, np.ndarray], None] | None = None,
    observer: Callable[[Scored], None] | None = None,
    indices: Sequence[int] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> ConfusionMatrix | None:
    """Segment every image and compare with its label at the label's own size.

    Images enter at the data set's ``size``; logits are resized to the label's size before the argmax. The model is
    left in the mode it came in. Where there are several processes, each takes its share of the images, and all return
    the same sums; all must call this, with the same images and weights.

    Args:
        model: The model; its encoder and head are used, and the night image alone.
        dataset: Labelled images.
        device: Where the model is.
        views: How images are shown to the network.
        workers: Processes that read images.
        timeout: Seconds to wait for an image of the workers; see ``icda.data.loader.batches``.
        progress: Whether to show a progress bar, on a terminal.
        uncertainty: Updated with every image, for a data set with masks of invalid pixels; None leaves it out. For
            one process alone.
        on_prediction: Called with the index of an image and its predicted train ids (h, w) uint8. For one process
            alone.
        observer: Called with each image and what came of it, which takes the probabilities too; None leaves them
            out. For one process alone.
        indices: The images' places in the data set; None takes all of them.
        stop: Asked before each image, and while the workers are waited for in vain, whether to give up, as after a
            signal.

    Returns:
        Pixels by label and prediction; None if it was given up, in any of the processes.

    Raises:
        UserError: If an image or a label cannot be used, or the memory does not suffice.
    """
    classes = dataset.classes
    assert model.num_classes == len(classes), (model.num_classes, len(classes))
    processes = world_size()
    alone = uncertainty is None and on_prediction is None and observer is None
    assert processes == 1 or alone, processes
    confident = uncertainty is not None or observer is not None
    matrix = ConfusionMatrix(len(classes), classes.ignore_index)
    was_training = model.training
    model.eval()
    images = EvaluationImages(dataset, model.mean, model.std)
    order = (range(len(images)) if indices is None else indices)[rank() :: processes]
    done = 0
    for image, label, index in tqdm(
        batches(images, 1, workers, order=order, timeout=timeout, stop=stop),
        total=len(order),
        desc="evaluate",
        unit="image",
        disable=None if progress and is_main() else True,
        leave=False,
    ):
        if stop():
            break
        with views.enough_memory(image, _SMALLER):
            labels, confidences = views.segment(model, image.to(device), tuple(label.shape[1:]), confident)
            before = None if observer is None else matrix.matrix.copy()
            if labels.device.type == "cpu":
                matrix.update(labels[0].numpy(), label[0].numpy())
            else:  # the counts are less to fetch than the labels
                matrix.update_tensors(labels[0], label[0].to(device))
        if uncertainty is not None and confidences is not None:
            invalid = dataset.invalid(int(index))
            uncertainty.update(labels[0].cpu().numpy(), confidences[0].cpu().numpy(), label[0].numpy(), invalid)
        if on_prediction is not None:
            on_prediction(int(index), labels[0].cpu().numpy())
        if observer is not None and confidences is not None and before is not None:
            arrays = label[0].numpy(), labels[0].cpu().numpy(), confidences[0].cpu().numpy()
            observer(Scored(int(index), image[0], *arrays, matrix.matrix - before))
        done += 1
    model.train(was_training)
    if any_over_ranks([stop() or done < len(order)], device)[0]:
        return None
    if processes > 1:
        matrix.matrix = sum_over_ranks(torch.from_numpy(matrix.matrix).to(device)).cpu().numpy()
    return matrix


def predict(model: SegmentationModel, images: Tensor, size: tuple[int, ...], views: Views = WHOLE) -> Tensor:
    """Train ids at ``size`` (h, w) of normalised images (B, 3, H, W): (B, h, w) uint8."""
    return views.segment(model, images, tuple(size))[0]
