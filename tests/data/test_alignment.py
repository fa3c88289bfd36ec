"""Image and label stay together, ignored stays ignored and no class appears: from reading to the enhanced branch.

The images are drawn from the labels, a colour for each class and one for ignored pixels, so that a label map can be
read off any image that comes out. Green is a strictly concave function of red: no mixture of colours is a colour.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from icda.config import SamplingConfig
from icda.data.base import Sample, SegmentationDataset
from icda.data.camvid import VOID_ID, CamVid
from icda.data.classes import CAMVID
from icda.data.io import resize_image, resize_label
from icda.data.rare_class import ClassStatistics, RareClassSampler
from icda.data.stream import PairStream
from icda.transforms import WARPS, build_cem, reseed

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
IGNORE = CAMVID.ignore_index
CODES = len(CAMVID) + 1  # the last one is that of ignored pixels
COLOURS = np.array([(20 * k, 8 * k * (CODES - 1 - k)) for k in range(CODES)])
MIXED = 254  # what is read off a pixel that has none of the colours
SOURCE, TARGET, REFERENCE, TRANSLATION = 0, 50, 100, 150  # blue tells picture and index

SEEDS = st.integers(0, 2**31)
SIDES = st.integers(6, 40)


def draw(label: np.ndarray, blue: int) -> np.ndarray:
    """The picture (H, W, 3) uint8 of a label map (H, W)."""
    code = np.where(label == IGNORE, CODES - 1, label)
    return np.dstack([COLOURS[code], np.full(label.shape, blue)]).astype(np.uint8)


def read_off(image: np.ndarray) -> np.ndarray:
    """Label map (H, W) uint8 of a picture (H, W, 3) in 0..255."""
    code = (image[..., 0] / 20).round().astype(int)
    pure = (np.abs(image[..., :2] - COLOURS[code.clip(0, CODES - 1)]) < 0.25).all(-1)
    label = np.where(code == CODES - 1, IGNORE, code)
    return np.where(pure, label, MIXED).astype(np.uint8)


def restored(normalised: np.ndarray | Tensor) -> np.ndarray:
    """The picture (H, W, 3) in 0..255 that was normalised; a tensor has its channels first."""
    if isinstance(normalised, Tensor):
        normalised = normalised.permute(1, 2, 0).numpy()
    return (normalised.astype(np.float64) * STD + MEAN) * 255


def index_of(image: np.ndarray, picture: int) -> int:
    """Index of the sample whose picture this is a part of; the colour of all its pixels must say the same."""
    blue = np.unique(image[..., 2].round())
    assert blue.size == 1 and 0 <= blue[0] - picture < 50, (blue, picture)
    return int(blue[0]) - picture


def random_label(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Blocks and single pixels of a few classes, part of them ignored."""
    ids = np.append(rng.choice(len(CAMVID), rng.integers(1, 6), replace=False), IGNORE)
    side = int(rng.integers(1, 9))
    blocks = rng.choice(ids, (-(-height // side), -(-width // side)))
    label = blocks.repeat(side, 0).repeat(side, 1)[:height, :width]
    return np.where(rng.random(label.shape) < 0.2, rng.choice(ids, label.shape), label).astype(np.uint8)


def places(part: np.ndarray, whole: np.ndarray) -> list[tuple[int, int, bool]]:
    """Every top, left and flip that make the part (h, w) of the whole (H, W), by trying all."""
    windows = np.lib.stride_tricks.sliding_window_view(whole, part.shape)
    found = []
    for flip in (False, True):
        wanted = part[:, ::-1] if flip else part
        found += [(int(y), int(x), flip) for y, x in np.argwhere((windows == wanted).all((2, 3)))]
    return found


class Drawn(SegmentationDataset):
    """Label maps in memory, with the pictures drawn from them."""

    def __init__(self, labels: list[np.ndarray], picture: int = SOURCE) -> None:
        super().__init__("drawn", CAMVID, "root", [Sample(str(i), Path(f"{i}.png")) for i in range(len(labels))])
        self.labels, self.picture = labels, picture

    def image(self, index: int) -> np.ndarray:
        return draw(self.labels[index], self.picture + index)

    def label(self, index: int, resized: bool = True) -> np.ndarray:
        return self.labels[index]

    def reference(self, index: int) -> np.ndarray:
        return draw(self.labels[index], REFERENCE + index)

    def translation(self, index: int) -> np.ndarray:
        return draw(self.labels[index], TRANSLATION + index)

    def sampler(self) -> RareClassSampler:
        counts = np.array([np.bincount(label.ravel(), minlength=256)[: len(CAMVID)] for label in self.labels])
        return RareClassSampler(ClassStatistics(counts), len(CAMVID), temperature=0.1, min_pixels=0)


def plain_cem(illumination: str = "none", **spatial) -> A.Compose:
    """CEM without what changes colours."""
    return build_cem(illumination, MEAN, STD, IGNORE, spatial=spatial or True, jitter_p=0, blur_p=0)


def sampling(crop: tuple[int, int], **changes) -> SamplingConfig:
    defaults = SamplingConfig(
        list(crop),
        max_class_share=0.75,
        rare_classes=False,
        temperature=0.01,
        min_pixels=0,
        min_crop_pixels=2,
        tries=4,
    )
    return replace(defaults, **changes)


def check_warped(image: np.ndarray, label: np.ndarray, before: np.ndarray) -> None:
    """The normalised image (H, W, 3) and label (H, W) of the enhanced branch, and the label before the warp."""
    outside = (image == 0).all(-1)
    assert (label[outside] == IGNORE).all()
    np.testing.assert_array_equal(read_off(restored(image))[~outside], label[~outside])
    assert set(np.unique(label)) <= {*np.unique(before), IGNORE}


# ---- the training stream


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, size=st.tuples(SIDES, SIDES), data=st.data(), rare=st.booleans(), translated=st.booleans())
def test_samples_of_the_stream(seed, size, data, rare, translated):
    rng = np.random.default_rng(seed)
    crop = tuple(data.draw(st.integers(3, side), label="crop") for side in size)
    source = Drawn([random_label(rng, *size) for _ in range(3)])
    target = Drawn([random_label(rng, *size) for _ in range(2)], TARGET)
    stream = PairStream(
        source,
        target,
        sampling(crop, max_class_share=data.draw(st.floats(0.1, 1), label="max_class_share")),
        MEAN,
        STD,
        length=4,
        seed=seed,
        cem=plain_cem("translated" if translated else "none"),
        with_reference=True,
        rare_classes=source.sampler() if rare else None,
    )
    for sample in (stream[i] for i in range(4)):
        image, label = restored(sample["source"]), sample["source_label"].numpy()
        index = index_of(image, SOURCE)
        np.testing.assert_array_equal(read_off(image), label)
        assert label.shape == crop and places(label, source.labels[index])

        night, day = restored(sample["target"]), restored(sample["reference"])
        np.testing.assert_array_equal(read_off(night), read_off(day))
        assert index_of(night, TARGET) == index_of(day, REFERENCE)
        assert places(read_off(night), target.labels[index_of(night, TARGET)])

        warped, warped_label = sample["enhanced"].permute(1, 2, 0).numpy(), sample["enhanced_label"].numpy()
        check_warped(warped, warped_label, label)
        seen = restored(warped)[(warped != 0).any(-1)]
        assert not seen.size or index_of(seen, TRANSLATION if translated else SOURCE) == index


@pytest.mark.parametrize("rare", [False, True])
def test_position_and_flip_read_off_by_trying_all(rare):
    """Each crop is found at one place with one flip; all of these occur, independently for source and target."""
    rng = np.random.default_rng(5)
    source, target = (Drawn([rng.integers(0, len(CAMVID), (12, 14), np.uint8)], p) for p in (SOURCE, TARGET))
    rule = sampling((8, 9), min_crop_pixels=0)
    sampler = source.sampler() if rare else None
    stream = PairStream(source, target, rule, MEAN, STD, 900, 0, with_reference=True, rare_classes=sampler)
    found = []
    for sample in (stream[i] for i in range(900)):
        (s,) = places(sample["source_label"].numpy(), source.labels[0])
        (t,) = places(read_off(restored(sample["target"])), target.labels[0])
        assert places(read_off(restored(sample["source"])), source.labels[0]) == [s]
        assert places(read_off(restored(sample["reference"])), target.labels[0]) == [t]
        found.append((s, t))
    for which in range(2):
        assert {place[which] for place in found} == {(y, x, f) for y in range(5) for x in range(6) for f in (0, 1)}
    flips = np.array([(s[2], t[2]) for s, t in found])
    cells = np.bincount(flips @ (2, 1), minlength=4)
    assert (np.abs(cells - 225) < 4 * np.sqrt(900 * 3 / 16)).all(), cells  # four standard deviations


@pytest.mark.parametrize("size", [None, (20, 30), (33, 47), (60, 90), (40, 61)])
def test_files_resized_at_reading(tmp_path, size):
    """From PNG files to the samples: a pixel with a class's very colour has its label; edges alone are mixed."""
    rng = np.random.default_rng(6)
    for folder in ("train", "trainannot"):
        (tmp_path / folder).mkdir()
    for i in range(2):
        label = rng.choice([0, 3, 4, 8, IGNORE], (5, 8)).astype(np.uint8).repeat(8, 0).repeat(8, 1)[:, :60]
        Image.fromarray(draw(label, i)).save(tmp_path / "train" / f"0006R0_{i}.png")
        Image.fromarray(np.where(label == IGNORE, VOID_ID, label)).save(tmp_path / "trainannot" / f"0006R0_{i}.png")
    source = CamVid(str(tmp_path), ["train"], size=size)
    height, width = size or (40, 60)
    stream = PairStream(source, None, sampling((height - 7, width - 9)), MEAN, STD, 12, 0, cem=plain_cem())
    for sample in (stream[i] for i in range(12)):
        for name in ("source", "enhanced"):
            image, label = sample[name].permute(1, 2, 0).numpy(), sample[f"{name}_label"].numpy()
            seen = read_off(restored(image))
            pure = (seen != MIXED) & (image != 0).any(-1)
            np.testing.assert_array_equal(seen[pure], label[pure])
            assert set(np.unique(label)) <= {0, 3, 4, 8, IGNORE}
            if name == "source":
                assert pure.mean() > (0.99 if size is None else 0.5) and (label[pure] == IGNORE).any()


# ---- CEM's warps


@pytest.mark.parametrize("warp", WARPS)
@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, size=st.tuples(SIDES, st.integers(1, 60)))
def test_warps_of_cem(warp, seed, size):
    label = random_label(np.random.default_rng(seed), *size)
    pipeline = plain_cem(warps=[warp])
    reseed(pipeline, seed)
    out = pipeline(image=draw(label, 0), mask=label)
    assert out["mask"].shape == label.shape and out["mask"].dtype == label.dtype
    check_warped(out["image"], out["mask"], label)


@pytest.mark.parametrize("warp", WARPS)
def test_warps_move_pixels_and_leave_some_inside(warp):
    label = random_label(np.random.default_rng(7), 48, 64)
    pipeline = plain_cem(warps=[warp])
    for seed in range(10):
        reseed(pipeline, seed)
        out = pipeline(image=draw(label, 0), mask=label)
        outside = (out["image"] == 0).all(-1)
        assert 0 < outside.mean() < 0.9
        assert (out["mask"] != label)[~outside].mean() > 0.3


@pytest.mark.parametrize("warp", WARPS)
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_images_read_bilinearly_agree_away_from_edges(warp, seed):
    label = random_label(np.random.default_rng(seed), 30, 40).repeat(3, 0).repeat(3, 1)
    pipeline = plain_cem(warps=[warp], interpolation="bilinear")
    reseed(pipeline, seed)
    out = pipeline(image=draw(label, 0), mask=label)
    seen, outside = read_off(restored(out["image"])), (out["image"] == 0).all(-1)
    assert (out["mask"][outside] == IGNORE).all()
    pure = ~outside & (seen != MIXED)
    np.testing.assert_array_equal(seen[pure], out["mask"][pure])
    assert pure.any() and set(np.unique(out["mask"])) <= {*np.unique(label), IGNORE}


# ---- resizing


def taps(before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixel centres of a resized side lie in the original, (after,), and the two pixels around each."""
    position = ((np.arange(after) + 0.5) * before / after - 0.5).clip(0, before - 1)
    return position, np.stack([np.floor(position), np.ceil(position)]).astype(int)


@settings(max_examples=100, deadline=None)
@given(before=st.tuples(SIDES, SIDES), after=st.tuples(SIDES, SIDES))
def test_resized_labels_and_images_lie_where_the_pixel_centres_are(before, after):
    """Pixels numbered along each side: the image shows its place, a label one at most half a pixel from it."""
    for axis in (0, 1):
        numbers = np.indices(before)[axis].astype(np.uint8)
        position = np.expand_dims(taps(before[axis], after[axis])[0], 1 - axis)  # a column or a row
        label = resize_label(numbers, after)
        image = resize_image(np.dstack([6 * numbers] * 3), after)
        assert label.shape == after and image.shape == (*after, 3)
        assert np.abs(label - position).max() <= 0.501  # OpenCV counts positions in 1/65536 of a pixel
        assert np.abs(image[..., 0] - 6 * position).max() < 1  # OpenCV is less than a level off, a sixth of a pixel


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, before=st.tuples(SIDES, SIDES), after=st.tuples(SIDES, SIDES))
def test_resized_labels_and_images_show_the_same_classes(seed, before, after):
    label = random_label(np.random.default_rng(seed), *before)
    small, seen = resize_label(label, after), read_off(resize_image(draw(label, 0), after))
    rows, columns = (taps(b, a)[1] for b, a in zip(before, after, strict=True))
    around = np.stack([label[np.ix_(r, c)] for r in rows for c in columns])
    assert (small == around).any(0).all()
    alike = (around == around[0]).all(0)
    np.testing.assert_array_equal(small[alike], seen[alike])
    pure = seen != MIXED
    np.testing.assert_array_equal(small[pure], seen[pure])
    assert set(np.unique(small)) <= set(np.unique(label))
