"""Tensors that are a function of a name and a shape alone, so that no weights need to be shipped.

The figures beside this file were made by the published implementation with these tensors: every weight from its
published name and shape, every input from a tag and a shape.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def _normal(tag: str, shape: Sequence[int]) -> np.ndarray:
    generator = np.random.default_rng(zlib.crc32(tag.encode()))
    return generator.standard_normal(tuple(shape)).astype(np.float32)


def weight(name: str, shape: Sequence[int]) -> Tensor:
    """The value of the floating-point parameter or buffer of this published name."""
    value, leaf = _normal(name, shape), name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        value = 1 + 0.1 * np.abs(value)
    elif leaf == "running_mean":
        value = 0.05 * value
    elif leaf == "bias":
        value = 0.02 * value
    elif len(shape) == 1:
        value = 1 + 0.1 * value
    else:
        value = value / np.sqrt(np.prod(shape[1:]))
    return torch.as_tensor(np.asarray(value, dtype=np.float32))


def image(tag: str, shape: Sequence[int]) -> Tensor:
    """A normalised batch of images, B x 3 x H x W."""
    return torch.as_tensor(_normal(tag, shape))


def labels(tag: str, batch: int, height: int, width: int) -> Tensor:
    """A batch of label maps, B x H x W int64: cells of 40 pixels with ids 0..18, the first four rows 255."""
    cell = 40
    generator = np.random.default_rng(zlib.crc32(tag.encode()))
    grid = generator.integers(0, 19, (batch, -(-height // cell), -(-width // cell)))
    out = np.repeat(np.repeat(grid, cell, 1), cell, 2)[:, :height, :width].copy()
    out[:, :4] = 255
    return torch.as_tensor(out.astype(np.int64))


def published_shapes(keys_b5: dict[str, list[int]], depths: Sequence[int] = (2, 2, 2, 2)) -> dict[str, list[int]]:
    """Names and shapes of a published checkpoint with another depth of MiT (b1 to b5 share their widths)."""

    def kept(name: str) -> bool:
        if not name.startswith("backbone.block"):
            return True
        stage, block = name.removeprefix("backbone.block").split(".")[:2]
        return int(block) < depths[int(stage) - 1]

    return {name: shape for name, shape in keys_b5.items() if kept(name)}


def state_dict(shapes: dict[str, list[int]], prefix: tuple[str, str] = ("", "")) -> dict[str, Tensor]:
    """A published state dict filled by the recipe.

    Args:
        shapes: Published names and shapes; integer buffers are filled with zeros.
        prefix: (old, new): the beginning of the name that the recipe sees.
    """
    integers = ("num_batches_tracked", "relative_position_index")
    return {
        name: torch.zeros(shape, dtype=torch.int64)
        if name.endswith(integers)
        else weight(name.replace(*prefix, 1) if prefix[0] else name, shape)
        for name, shape in shapes.items()
    }
