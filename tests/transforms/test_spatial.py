"""SpatialCEM: image and label move together, outside follows the method's rule, albumentations' contract."""

from __future__ import annotations

import pickle

import albumentations as A
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icda.errors import UserError
from icda.transforms import WARPS, SpatialCEM, reseed

SIZES = st.tuples(st.integers(1, 48), st.integers(1, 48))


def drawn(transform: SpatialCEM, height: int, width: int, seed: int) -> dict:
    transform.set_random_seed(seed)
    return transform.get_params_dependent_on_data({"shape": (height, width, 3)}, {})


@settings(max_examples=40, deadline=None)
@given(warp=st.sampled_from(WARPS), size=SIZES, seed=st.integers(0, 2**31), wide=st.booleans())
def test_image_and_label_move_together(warp: str, size: tuple[int, int], seed: int, wide: bool) -> None:
    label = np.random.default_rng(seed).integers(0, 19, size).astype(np.int64 if wide else np.uint8)
    image = np.stack([label, label * 2, label + 3], -1).astype(np.float32)
    pipeline = A.Compose([SpatialCEM(warp, fill=-1)], seed=seed)
    out = pipeline(image=image, mask=label)
    outside = out["mask"] == 255
    assert out["mask"].dtype == label.dtype and out["mask"].shape == size
    assert (out["image"][outside] == -1).all()
    inside = out["mask"][~outside].astype(np.float32)
    np.testing.assert_array_equal(out["image"][~outside], np.stack([inside, inside * 2, inside + 3], -1))
    assert set(np.unique(out["mask"])) <= {*np.unique(label), 255}


@pytest.mark.parametrize("warp", WARPS)
@pytest.mark.parametrize("size", [(64, 64), (45, 80), (33, 17)])
def test_nearest_agrees_with_torch_grid_sample(warp: str, size: tuple[int, int]) -> None:
    """Every pixel numbered, so that one wrong index is seen; 0 is torch's value outside."""
    numbers = np.arange(1, size[0] * size[1] + 1, dtype=np.int32).reshape(size)
    for seed in range(10):
        transform = SpatialCEM(warp, fill_mask=0)
        params = drawn(transform, *size, seed)
        grid = torch.from_numpy(transform.grid(params["warp"], params["uniform"], *size))[None]
        image = torch.from_numpy(numbers)[None, None].float()
        expected = torch.nn.functional.grid_sample(image, grid, mode="nearest", align_corners=True)
        np.testing.assert_array_equal(transform.apply_to_mask(numbers, **params), expected[0, 0].numpy())


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_images_of_bytes_are_read_as_masks_are(channels: int) -> None:
    """Pixels of three or four bytes are moved as one number; each channel must come out as if it were alone."""
    image = np.random.default_rng(0).integers(0, 256, (45, 31, channels), np.uint8)
    fill = (200, 0, 255, 128, 3)[:channels]
    transform = SpatialCEM(fill=fill)
    for seed in range(6):
        params = drawn(transform, 45, 31, seed)
        out = transform.apply(image, **params)
        assert out.shape == image.shape and out.dtype == np.uint8
        for channel, value in enumerate(fill):
            alone = SpatialCEM(fill_mask=value).apply_to_mask(image[..., channel].astype(np.int64), **params)
            np.testing.assert_array_equal(out[..., channel], alone)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", [(33, 50), (40, 40), (1, 7)])
def test_alpha_tells_what_is_outside(interpolation: str, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    plain, alpha = (SpatialCEM(interpolation=interpolation, fill=(9, 8, 7), alpha=a) for a in (False, True))
    for seed in range(6):
        params = drawn(plain, *size, seed)
        mask = plain.apply_to_mask(np.zeros(size, np.uint8), **params)
        out = alpha.apply(image, **params)
        np.testing.assert_array_equal(out[..., 3], 255 - mask)
        np.testing.assert_array_equal(out[..., :3], plain.apply(image, **params))
    with pytest.raises(UserError, match="expected an RGB image"):
        alpha.apply(image.astype(np.float32), **params)


@pytest.mark.parametrize("warp", WARPS)
def test_bilinear_reads_between_pixels_and_has_the_same_outside(warp: str) -> None:
    height, width = 40, 56
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    image = np.stack([columns, rows, rows, rows, columns], -1)  # more channels than one cv2 call fills
    transform = SpatialCEM(warp, interpolation="bilinear", fill=-5)
    params = drawn(transform, height, width, 3)
    out = transform.apply(image, **params)
    outside = transform.apply_to_mask(np.zeros((height, width), np.uint8), **params) == 255
    np.testing.assert_array_equal((out == -5).all(-1), outside)
    expected = np.clip(params["position"], 0, (width - 1, height - 1))
    np.testing.assert_allclose(out[~outside][:, [4, 1]], expected[~outside], rtol=0, atol=1 / 32)


def test_no_movement_is_the_identity() -> None:
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (31, 44, 3), np.uint8), rng.integers(0, 19, (31, 44), np.uint8)
    for interpolation in ("nearest", "bilinear"):
        still = SpatialCEM(("homography", "tps"), interpolation, homography_scale=0, tps_scale=0)
        out = A.Compose([still])(image=image, mask=mask)
        np.testing.assert_array_equal(out["image"], image)
        np.testing.assert_array_equal(out["mask"], mask)


def test_known_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    """All control points move by +0.2 in x: on 41 pixels that is 4 pixels, read from the right."""
    transform = SpatialCEM("tps", tps_scale=0.2, fill=7)
    uniform = np.concatenate([np.ones(9), np.full(9, 0.5)])
    grid = transform.grid("tps", uniform, 21, 41)
    monkeypatch.setattr(transform, "grid", lambda *_: grid.copy())
    image = np.random.default_rng(0).integers(0, 256, (21, 41, 3), np.uint8)
    out = A.Compose([transform])(image=image, mask=image[..., 0])
    np.testing.assert_array_equal(out["image"][:, :-4], image[:, 4:])
    np.testing.assert_array_equal(out["mask"][:, :-4], image[:, 4:, 0])
    assert (out["image"][:, -4:] == 7).all() and (out["mask"][:, -4:] == 255).all()


def test_outside_begins_half_a_pixel_beyond_the_last_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    transform = SpatialCEM("tps")
    pixels = np.array([-1e12, -0.51, -0.49, 0.0, 7.49, 7.51, 1e12, np.inf], np.float32)
    grid = np.stack([pixels / 3.5 - 1, np.zeros_like(pixels)], -1)[None]
    monkeypatch.setattr(transform, "grid", lambda *_: grid.copy())
    mask = np.arange(8, dtype=np.uint8)[None]
    out = A.Compose([transform])(image=mask, mask=mask)
    np.testing.assert_array_equal(out["mask"], [[255, 255, 0, 0, 7, 255, 255, 255]])
    np.testing.assert_array_equal(out["image"], [[0, 0, 0, 0, 7, 0, 0, 0]])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.int64])
def test_masks_of_any_integer_type(dtype: type) -> None:
    mask = np.random.default_rng(0).integers(0, 19, (30, 40, 2)).astype(dtype)
    transform = SpatialCEM()
    params = drawn(transform, 30, 40, 5)
    expected = transform.apply_to_mask(mask[..., 1].astype(np.float64), **params)
    out = transform.apply_to_mask(mask, **params)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out[..., 1], expected)


def test_several_images_and_masks_move_together() -> None:
    rng = np.random.default_rng(2)
    mask = rng.integers(0, 19, (26, 38), np.uint8)
    pipeline = A.Compose([SpatialCEM()], additional_targets={"second": "image", "depth": "mask"}, seed=1)
    out = pipeline(image=mask[..., None].repeat(3, 2), second=mask, mask=mask, depth=mask, masks=[mask, mask])
    for key in ("depth", "second"):
        inside = out["mask"] != 255
        np.testing.assert_array_equal(out[key][inside], out["mask"][inside])
    np.testing.assert_array_equal(out["masks"][1], out["mask"])
    assert (out["second"][out["mask"] == 255] == 0).all()


def test_all_warps_are_drawn_about_equally_often() -> None:
    transform = SpatialCEM()
    transform.set_random_seed(0)
    names = [transform.get_params_dependent_on_data({"shape": (2, 2)}, {})["warp"] for _ in range(900)]
    assert all(240 < names.count(name) < 360 for name in WARPS)  # 300 +- 4 standard deviations


def test_boxes_and_key_points_are_refused() -> None:
    box = A.BboxParams(format="pascal_voc", label_fields=["ids"])
    with pytest.raises(UserError, match="bboxes"):
        A.Compose([SpatialCEM()], bbox_params=box)
    with pytest.raises(UserError, match="keypoints"):
        A.Compose([A.OneOf([SpatialCEM()])], keypoint_params=A.KeypointParams(format="xy"))
    with pytest.raises(UserError, match="bboxes"):
        SpatialCEM()(image=np.zeros((4, 4, 3), np.uint8), bboxes=np.zeros((1, 4)))


@pytest.mark.parametrize(
    "arguments",
    [
        {"warps": ()},
        {"warps": ("affine",)},
        {"warps": ("tps", "tps")},
        {"interpolation": "cubic"},
        {"fill_mask": 0.5},
        {"fill_mask": None},
        {"fill": "black"},
        {"homography_scale": 0.5},
        {"tps_scale": -0.1},
        {"zoom": 1.0},
        {"rotation": 4},
        {"translation": float("nan")},
        {"p": 1.5},
    ],
)
def test_wrong_arguments_are_reported_at_construction(arguments: dict) -> None:
    with pytest.raises(UserError) as error:
        SpatialCEM(**arguments)
    assert "\n" not in str(error.value) and next(iter(arguments)) in str(error.value)


def test_mask_that_cannot_hold_the_fill_or_differs_in_size_is_reported() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(UserError, match="fill_mask 255"):
        SpatialCEM()(image=image, mask=np.zeros((8, 8), np.int8))
    with pytest.raises(UserError, match="differ in size"):
        SpatialCEM()(image=image, mask=np.zeros((8, 9), np.uint8))
    with pytest.raises(UserError, match="channels"):
        SpatialCEM(fill=(0, 0))(image=image)


def test_round_trips_give_the_same_output() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    pipeline = A.Compose([SpatialCEM(("tps", "affine_tps"), "bilinear", fill=(1, 2, 3), zoom=0.3, p=0.9)])
    pipeline(image=image)  # fills the cache, which must not travel
    copies = [pickle.loads(pickle.dumps(pipeline)), A.from_dict(A.to_dict(pipeline))]
    assert len(pickle.dumps(pipeline)) < 20_000
    for seed in range(4):
        results = []
        for candidate in (pipeline, *copies):
            reseed(candidate, seed)
            results.append(candidate(image=image, mask=image[..., 0]))
        for result in results[1:]:
            np.testing.assert_array_equal(result["image"], results[0]["image"])
            np.testing.assert_array_equal(result["mask"], results[0]["mask"])


def test_cache_is_bounded() -> None:
    transform = SpatialCEM("tps")
    for width in range(4, 12):
        drawn(transform, 6, width, 0)
    assert len(transform._basis) == 2
