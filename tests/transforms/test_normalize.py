"""Normalisation after the warp: the numbers of albumentations' own, and exactly 0 outside."""

from __future__ import annotations

import albumentations as A
import numpy as np
import pytest

from icda.errors import UserError
from icda.transforms import NormalizeInside

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def levels() -> np.ndarray:
    """Every level in every channel, (70, 11, 3) uint8; more rows than are cleared at a time."""
    image = np.arange(70 * 11).reshape(70, 11)
    return np.stack([image, image[::-1], image + 100], -1).astype(np.uint8)


def test_rgb_is_normalised_as_by_albumentations() -> None:
    expected = A.Normalize(mean=MEAN, std=STD)(image=levels())["image"]
    found = NormalizeInside(MEAN, STD)(image=levels())["image"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    by_hand = (levels() / 255 - MEAN) / STD
    np.testing.assert_allclose(found, by_hand, rtol=0, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_outside_is_zero_and_the_rest_as_without_a_fourth_channel(share: float) -> None:
    outside = np.random.default_rng(0).random((70, 11)) < share
    image = np.dstack([levels(), np.where(outside, 0, 255).astype(np.uint8)])
    image[outside, :3] = 77  # whatever is there
    found = NormalizeInside(MEAN, STD)(image=image)["image"]
    expected = np.where(outside[..., None], 0, NormalizeInside(MEAN, STD)(image=levels())["image"])
    np.testing.assert_array_equal(found, expected)
    assert not np.signbit(found[outside]).any()


def test_several_images() -> None:
    images = np.stack([levels(), 255 - levels()])
    found = A.Compose([NormalizeInside(MEAN, STD)])(images=images)["images"]
    np.testing.assert_array_equal(found[1], NormalizeInside(MEAN, STD)(image=images[1])["image"])


def test_round_trip() -> None:
    pipeline = A.Compose([NormalizeInside(MEAN, STD)])
    copy = A.from_dict(A.to_dict(pipeline))
    np.testing.assert_array_equal(copy(image=levels())["image"], pipeline(image=levels())["image"])


@pytest.mark.parametrize("wrong", [{"mean": (0.5, 0.5)}, {"mean": "abc"}, {"std": (0.2, 0, 0.2)}, {"p": 2}])
def test_wrong_arguments_are_reported(wrong: dict) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))) as error:
        NormalizeInside(**{"mean": MEAN, "std": STD, **wrong})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_images_that_are_no_rgb_are_reported(image: np.ndarray) -> None:
    with pytest.raises(UserError, match="expected an RGB image"):
        NormalizeInside(MEAN, STD)(image=image)
