"""The training stream: a function of seed and position, with the method's rules for crops and classes."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import pytest
import torch

from icda.config import SamplingConfig
from icda.data.base import Sample, SegmentationDataset
from icda.data.classes import CAMVID
from icda.data.loader import batches, training_order
from icda.data.rare_class import ClassStatistics, RareClassSampler
from icda.data.stream import PairStream, largest_share, normalize
from icda.errors import UserError
from icda.transforms import LiftIllumination, build_cem

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
SAMPLING = SamplingConfig(
    crop=[32, 48],
    max_class_share=0.75,
    rare_classes=False,
    temperature=0.01,
    min_pixels=1,
    min_crop_pixels=20,
    tries=10,
)


class Fake(SegmentationDataset):
    """Images whose first channel is their column, second their row, third their index: crops can be read off."""

    def __init__(self, count: int, height: int = 60, width: int = 90, label=None) -> None:
        super().__init__("fake", CAMVID, "root", [Sample(str(i), Path(f"{i}.png")) for i in range(count)])
        self.shape, self.made = (height, width), label

    def image(self, index):
        rows, columns = np.indices(self.shape)
        return np.stack([columns, rows, np.full(self.shape, index)], -1).astype(np.uint8)

    def reference(self, index):
        return self.image(index) + np.array([0, 0, 100], np.uint8)

    def label(self, index, resized=True):
        return np.indices(self.shape)[1].astype(np.uint8) // 10 if self.made is None else self.made.copy()


def stream(source=None, target=None, sampling=SAMPLING, seed=0, **options) -> PairStream:
    return PairStream(source or Fake(4), target, sampling, MEAN, STD, length=40, seed=seed, **options)


def pixels(image: torch.Tensor) -> np.ndarray:
    return (image.permute(1, 2, 0).numpy() * STD + MEAN) * 255


def same(one: dict, other: dict) -> bool:
    return set(one) == set(other) and all(torch.equal(one[k], other[k]) for k in one)


def test_normalisation():
    image = np.array([[[255, 0, 51]]], np.uint8)
    np.testing.assert_allclose(
        normalize(image, np.array(MEAN), np.array(STD))[:, 0, 0], [2.5, -4 / 3, -0.25], rtol=1e-5
    )


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_normalisation_is_the_arithmetic_bit_for_bit(kind):
    mean, std = np.array(MEAN, kind), np.array(STD, kind)
    levels = np.arange(256, dtype=np.uint8)
    image = np.stack([levels, levels[::-1], np.roll(levels, 7)], -1).reshape(16, 16, 3)
    image.flags.writeable = False  # as it comes from the cache
    for part in (image, image[3:9, 2:11], image[:1, :1], image[:, ::-1]):
        expected = ((part.astype(np.float32) / 255 - mean) / std).astype(np.float32)
        found = normalize(part, mean, std)
        assert found.dtype == torch.float32 and found.is_contiguous()
        np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), expected)


def full(seed=0) -> PairStream:
    cem = build_cem("style", MEAN, STD, CAMVID.ignore_index)
    return stream(target=Fake(3), seed=seed, cem=cem, with_reference=True)


def test_a_sample_is_a_function_of_seed_and_position():
    first, again = full(), full()
    assert set(first[0]) == {"source", "source_label", "enhanced", "enhanced_label", "target", "reference"}
    expected = first[7]
    _ = [again[i] for i in (3, 0, 9)]  # what was read before does not matter
    assert same(again[7], expected)
    assert not same(first[8], expected)
    assert not same(full(seed=1)[7], expected)


def test_shapes_and_types():
    sample = full()[0]
    for name in ("source", "enhanced", "target", "reference"):
        assert sample[name].shape == (3, 32, 48) and sample[name].dtype == torch.float32
    for name in ("source_label", "enhanced_label"):
        assert sample[name].shape == (32, 48) and sample[name].dtype == torch.int64


@pytest.mark.slow
def test_workers_and_resuming_do_not_change_the_batches():
    alone = list(batches(full(), 2, workers=0))
    several = list(batches(full(), 2, workers=2))
    later = list(batches(full(), 2, workers=2, order=training_order(5, 20, 2, 1, 0, 1)))
    assert len(alone) == 20
    assert all(same(a, b) for a, b in zip(alone, several, strict=True))
    assert all(same(a, b) for a, b in zip(alone[5:], later, strict=True))


class Drawing(Fake):
    """Images with noise from all global generators, as a person's own data set may make them."""

    def image(self, index):
        noise = [random.randrange(256), np.random.randint(256), torch.randint(256, ()).item()]  # noqa: NPY002
        return super().image(index) + np.array(noise, np.uint8)


def drawing() -> PairStream:
    return stream(Drawing(4), Drawing(3))


def test_a_sample_is_a_function_of_seed_and_position_where_a_data_set_draws_from_global_generators():
    def states() -> list:
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # noqa: NPY002

    expected = [drawing()[i] for i in range(4)]
    before = states()
    random.seed(1), np.random.seed(2), torch.manual_seed(3)  # noqa: NPY002
    changed = states()
    other = drawing()
    assert all(same(other[i], expected[i]) for i in (2, 0, 3))
    assert states() == changed != before
    assert not same(stream(Drawing(4), Drawing(3), seed=1)[2], expected[2])
    noise = {int(pixels(stream(Drawing(1))[i]["source"])[0, 0, 2].round()) for i in range(20)}
    assert len(noise) > 10  # and not the same at all positions


def test_the_generators_are_put_back_after_an_error():
    state = torch.get_rng_state()
    with pytest.raises(UserError):
        stream(Fake(2, height=20))[0]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_ranks_passes_and_workers_share_out_the_same_samples():
    whole = [drawing()[i] for i in range(24)]
    for workers, accumulate, world_size in ((0, 1, 1), (1, 3, 2), (3, 2, 3)):
        steps = 24 // (2 * accumulate * world_size)
        seen = []
        for rank in range(world_size):
            order = training_order(0, steps, 2, accumulate, rank, world_size)
            found = list(batches(drawing(), 2, workers, order=order))
            for place, position in enumerate(order):
                batch, index = found[place // 2], place % 2
                assert same({name: values[index] for name, values in batch.items()}, whole[position])
                seen.append(position)
        assert sorted(seen) == list(range(24))


def test_source_and_target_tell_what_they_read(tmp_path):
    images = [Path(tmp_path, f"{name}.png") for name in ("day", "night")]
    for path in images:
        cv2.imwrite(str(path), np.zeros((40, 60, 3), np.uint8))
    label = tmp_path / "label.png"
    cv2.imwrite(str(label), np.zeros((40, 60), np.uint8))
    source, target = (SegmentationDataset("s", CAMVID, tmp_path, [Sample("s", path, label)]) for path in images)
    both, read = stream(source, target), []
    both.on_read = read.append
    both[0]
    assert [path.name for path in read] == ["night.png", "day.png", "label.png", "day.png"]  # the last for its size
    both.on_read = None
    both[0]
    assert len(read) == 4


def test_label_and_image_are_cropped_and_flipped_together():
    flips = 0
    for i in range(20):
        sample = stream()[i]
        columns = pixels(sample["source"])[..., 0].round()
        np.testing.assert_array_equal(columns.astype(int) // 10, sample["source_label"].numpy())
        flips += columns[0, 0] > columns[0, -1]
    assert 4 < flips < 16


def test_night_and_reference_share_crop_and_flip_and_every_image_comes_once_an_epoch():
    seen = []
    for i in range(6):
        sample = stream(target=Fake(3), with_reference=True)[i]
        night, day = pixels(sample["target"]), pixels(sample["reference"])
        np.testing.assert_allclose(day - night, np.broadcast_to([0, 0, 100], night.shape), atol=0.01)
        seen.append(int(night[0, 0, 2].round()))
    assert sorted(seen[:3]) == sorted(seen[3:]) == [0, 1, 2]


def test_crops_reach_every_place():
    lefts = {int(pixels(stream()[i]["source"])[0, :, 0].min().round()) for i in range(200)}
    assert min(lefts) == 0 and max(lefts) == 90 - 48 and len(lefts) > 35


def test_crops_with_one_dominant_class_are_redrawn():
    label = np.zeros((60, 90), np.uint8)
    label[:, 45:] = 1
    label[:, 60:] = CAMVID.ignore_index
    for tries, most in ((10, 6), (1, 200)):
        sampling = replace(SAMPLING, tries=tries)
        labels = [stream(Fake(2, label=label), sampling=sampling)[i]["source_label"].numpy() for i in range(40)]
        dominated = sum(largest_share(crop, CAMVID.ignore_index) > 0.75 for crop in labels)
        assert (dominated <= most) if tries == 10 else (dominated > 10)


def test_largest_share_by_hand():
    assert largest_share(np.array([[0, 0, 1, 255]], np.uint8), 255) == pytest.approx(2 / 3)
    assert largest_share(np.array([[255]], np.uint8), 255) == 1


@pytest.mark.parametrize("classes", [1, 3, 256])
def test_largest_share_is_that_of_a_count(classes):
    label = np.random.default_rng(0).integers(0, classes, (50, 70)).astype(np.uint8)
    label.flags.writeable = False
    counts = np.bincount(label[5:40, 8:60][label[5:40, 8:60] != 2].ravel())
    assert largest_share(label[5:40, 8:60], 2) == counts.max() / counts.sum()


def test_images_that_must_not_be_written_to():
    """As they come from the cache, also where the crop is the whole image."""

    class Mapped(Fake):
        def image(self, index):
            array = super().image(index)
            array.flags.writeable = False
            return array

        def label(self, index, resized=True):
            array = super().label(index)
            array.flags.writeable = False
            return array

    for sampling in (SAMPLING, replace(SAMPLING, crop=[60, 90])):
        for illumination in ("style", "relight"):
            cem = build_cem(illumination, MEAN, STD, CAMVID.ignore_index)
            options = {"sampling": sampling, "cem": cem}
            one = stream(Mapped(4), Mapped(3), **options)
            other = stream(Fake(4), Fake(3), **options)
            assert all(same(one[i], other[i]) for i in range(6))


def test_a_rare_class_is_in_the_crop():
    label = np.zeros((60, 90), np.uint8)
    label[1::2] = 1
    label[:8, 40:60] = 8  # at the upper edge: a random crop shows enough of it about every fifth time
    counts = np.array([np.bincount(label.ravel(), minlength=len(CAMVID))] * 2)
    sampler = RareClassSampler(ClassStatistics(counts), len(CAMVID), min_pixels=10)
    sampler.class_probabilities[:] = np.eye(len(CAMVID))[8]
    sampling = replace(SAMPLING, tries=50)
    source = Fake(2, label=label)
    with_rule = [stream(source, sampling=sampling, rare_classes=sampler)[i] for i in range(20)]
    without = [stream(source, sampling=sampling)[i] for i in range(20)]
    found = [sum((s["source_label"] == 8).sum().item() > 20 for s in samples) for samples in (with_rule, without)]
    assert found[0] == 20 and found[1] < 10


def test_made_references_are_lifted_before_the_crop():
    lifted = stream(target=Fake(3), with_reference=True, lift=A.Compose([LiftIllumination(p=1.0)]))[0]
    assert pixels(lifted["reference"]).mean() > pixels(lifted["target"]).mean()


def test_references_are_made_only_for_images_without_one():
    target = Fake(3)
    target.samples = tuple(replace(s, reference=s.image if s.key != "1" else None) for s in target.samples)
    mixed = stream(target=target, with_reference=True, lift=A.Compose([LiftIllumination(p=1.0)]))
    read = stream(target=target, with_reference=True)
    for i in range(6):
        is_made = pixels(mixed[i]["target"])[..., 2].round().max() == 1
        assert torch.equal(mixed[i]["reference"], read[i]["reference"]) != is_made


def test_pixels_outside_a_warp_are_zero_and_ignored():
    cem = build_cem("none", MEAN, STD, CAMVID.ignore_index)
    outside = 0
    for i in range(10):
        sample = stream(cem=cem)[i]
        zero = (sample["enhanced"] == 0).all(0)
        assert (sample["enhanced_label"][zero] == CAMVID.ignore_index).all()
        outside += zero.sum().item()
    assert outside > 100


def test_translations_follow_crop_and_flip():
    class Translated(Fake):
        def translation(self, index):
            return self.image(index)

    cem = build_cem("translated", MEAN, STD, CAMVID.ignore_index, spatial=False, jitter_p=0, blur_p=0)
    for i in range(6):
        sample = stream(Translated(3), cem=cem)[i]
        torch.testing.assert_close(sample["enhanced"], sample["source"], atol=1e-4, rtol=0)


def test_images_smaller_than_the_crop():
    with pytest.raises(UserError, match=r"an image is 20 x 90 .* smaller than dataset.sampling.crop=\[32, 48\]"):
        stream(Fake(2, height=20))[0]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_mistake_in_a_worker_arrives_as_it_was(workers):
    with pytest.raises(UserError, match=r"^an image is 20 x 90") as caught:
        list(batches(stream(Fake(2, height=20)), 2, workers))
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
