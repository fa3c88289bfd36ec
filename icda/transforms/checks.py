"""Checks of the transforms' arguments and inputs; each raises a one-line `UserError`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from icda.errors import UserError


def check_number(owner: str, name: str, value: Any, low: float, high: float = math.inf) -> float:
    """`value` if it is a number in low..high (ends included); raises UserError otherwise."""
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:
        raise UserError(f"{owner}: {name} is {value!r}; give a number in {low:g}..{high:g}.")
    return value


def check_range(
    owner: str, name: str, value: Any, low: float, high: float = math.inf, integer: bool = False
) -> tuple[float, float]:
    """The pair (smallest, largest), in order and within low..high; raises UserError otherwise.

    A list is accepted too (configuration files know no tuples); a single number means a fixed value.
    """
    kind = int if integer else Real
    pair = (value, value) if isinstance(value, kind) else value
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise UserError(f"{owner}: {name} is {value!r}; give two numbers, smallest and largest.")
    if not all(isinstance(v, kind) and not isinstance(v, bool) for v in pair):
        raise UserError(f"{owner}: {name} is {value!r}; give two {'whole ' if integer else ''}numbers.")
    if not low <= pair[0] <= pair[1] <= high:
        raise UserError(f"{owner}: {name} is {value!r}; the two must be in order and in {low:g}..{high:g}.")
    return tuple(pair)


def check_rgb(owner: str, name: str, image: Any, shape: tuple[int, int] | None = None) -> np.ndarray:
    """`image` if it is a uint8 RGB image (H, W, 3), of height and width `shape` where given."""
    found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
        raise UserError(
            f"{owner}: {name} is {found}; expected an RGB image (H, W, 3) of type uint8. Put this transform "
            "before any normalisation."
        )
    if 0 in image.shape or (shape is not None and image.shape[:2] != tuple(shape)):
        wanted = "no empty side" if shape is None else f"height and width {tuple(shape)}, as the image"
        raise UserError(f"{owner}: {name} is {found}; expected {wanted}.")
    return image
