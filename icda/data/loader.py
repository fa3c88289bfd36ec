"""Data loaders whose workers report a person's mistake as it is, instead of wrapping it in a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from icda.data.base import SegmentationDataset
from icda.data.stream import normalize
from icda.errors import UserError


class _Guarded(Dataset):
    """Hands a ``UserError`` on as a value: what a worker raises reaches the caller as one long traceback."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except UserError as error:
            return error


def _collate(samples: list[Any]) -> Any:
    return next((s for s in samples if isinstance(s, UserError)), None) or default_collate(samples)


def _one_thread(_worker: int) -> None:
    """One thread a worker: OpenCV's own would fight with the training step for the cores."""
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def batches(
    dataset: Dataset, batch_size: int, workers: int, *, start: int = 0, pin_memory: bool = False
) -> Iterator[Any]:
    """Batches in the data set's order.

    Args:
        dataset: Samples by index.
        batch_size: Samples a batch; the last may be smaller.
        workers: Processes that read; 0 reads in this one. The batches are the same for any number.
        start: First sample.
        pin_memory: Whether tensors come in page-locked memory, from which copies to a GPU are fast.

    Yields:
        What ``default_collate`` makes of a batch.

    Raises:
        UserError: If reading a sample raised it.
    """
    remaining = Subset(_Guarded(dataset), range(start, len(dataset)))
    loader = DataLoader(
        remaining,
        batch_size,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        worker_init_fn=_one_thread,
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


class EvaluationImages(Dataset):
    """Images of a labelled data set as the network sees them, with labels at their own size.

    Args:
        dataset: Labelled images.
        mean: (3,) of the encoder's normalisation.
        std: (3,) of the encoder's normalisation.
    """

    def __init__(self, dataset: SegmentationDataset, mean: Tensor, std: Tensor) -> None:
        self.dataset = dataset
        self.mean = mean.cpu().numpy()
        self.std = std.cpu().numpy()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        """Image (3, H, W) float32, label (h, w) uint8 at its own size, and the index."""
        image = normalize(self.dataset.image(index), self.mean, self.std)
        return image, torch.from_numpy(self.dataset.label(index, resized=False)), index
