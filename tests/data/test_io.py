from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from icda.data.classes import CAMVID, CITYSCAPES
from icda.data.io import image_size, read_image, read_label, resize_image, resize_label
from icda.errors import UserError


def photo(height: int = 48, width: int = 80) -> np.ndarray:
    """Smooth colours plus noise: JPEG and PNG both need many bytes for it."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, width)[None, :, None] * np.ones((height, 1, 3))
    return (ramp + rng.integers(0, 55, (height, width, 3))).astype(np.uint8)


def encoded(image: np.ndarray, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, form, **options)
    return stream.getvalue()


def save_label(path: Path, label: np.ndarray) -> Path:
    Image.fromarray(label).save(path)
    return path


# ---- images


def test_png_is_read_exactly_as_rgb(tmp_path):
    Image.fromarray(photo()).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.dtype == np.uint8 and read.flags.writeable
    np.testing.assert_array_equal(read, photo())


def test_jpeg_agrees_with_opencv(tmp_path):
    Image.fromarray(photo()).save(tmp_path / "a.jpg", quality=92, subsampling=0)
    expected = cv2.cvtColor(cv2.imread(str(tmp_path / "a.jpg")), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(read_image(str(tmp_path / "a.jpg")), expected)


def test_grey_is_spread_and_alpha_is_dropped(tmp_path):
    grey = photo()[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.stack([grey] * 3, -1))
    rgba = np.dstack([photo(), np.arange(48 * 80, dtype=np.uint8).reshape(48, 80)])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png"), photo())


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_opencv_does(tmp_path, form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{form.lower()}"
    path.write_bytes(encoded(photo(), form, exif=exif))
    read = read_image(path)
    turned = form == "JPEG" and orientation >= 5  # a PNG is never turned
    assert image_size(path) == read.shape[:2] == ((80, 48) if turned else (48, 80))
    if form == "JPEG":  # OpenCV applies the orientation of JPEG files
        np.testing.assert_array_equal(read, cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB))


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 3)])
def test_sixteen_bit_images_are_refused(tmp_path, shape):
    cv2.imwrite(str(tmp_path / "deep.png"), np.full(shape, 700, np.uint16))
    with pytest.raises(UserError, match=r"deep\.png has more than 8 bit.*convert"):
        read_image(tmp_path / "deep.png")


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True})])
def test_every_truncation_is_noticed(tmp_path, form, options):
    whole = encoded(photo(24, 40), form, **options)
    path = tmp_path / "cut.img"
    path.write_bytes(whole)
    assert read_image(path).shape == (24, 40, 3)
    lengths = sorted({*range(40), *range(40, len(whole), 29), *range(len(whole) - 40, len(whole))})
    for length in lengths:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.img"):
            read_image(path)


def test_truncated_label_and_jpeg_with_thumbnail_are_noticed(tmp_path):
    label = encoded(np.zeros((8, 8), np.uint8), "PNG")
    (tmp_path / "label.png").write_bytes(label[:-6])
    with pytest.raises(UserError, match=r"label\.png.*truncated"):
        read_label(tmp_path / "label.png", CITYSCAPES)
    # A thumbnail brings an end-of-image marker of its own in front of the real pixels.
    exif = Image.Exif()
    exif[0x927C] = encoded(photo(8, 8), "JPEG")
    whole = encoded(photo(), "JPEG", exif=exif)
    (tmp_path / "thumb.jpg").write_bytes(whole[: len(whole) // 2 + 300])
    with pytest.raises(UserError, match=r"thumb\.jpg.*truncated"):
        read_image(tmp_path / "thumb.jpg")


@pytest.mark.parametrize("read", [read_image, lambda path: read_label(path, CITYSCAPES)])
def test_errors_name_file_and_mend(tmp_path, read):
    (tmp_path / "empty.png").touch()
    with pytest.raises(UserError, match=r"empty\.png is empty.*again"):
        read(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(UserError, match=r"text\.png cannot be read: not a known image format"):
        read(tmp_path / "text.png")
    with pytest.raises(UserError, match=r"gone\.png does not exist"):
        read(tmp_path / "gone.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=r"folder\.png cannot be opened"):
        read(tmp_path / "folder.png")
    with pytest.raises(UserError, match=r"gone\.png does not exist"):
        image_size(tmp_path / "gone.png")


# ---- labels


def test_label_of_every_one_channel_kind(tmp_path):
    label = np.array([[0, 1, 18], [255, 7, 8]], np.uint8)
    paletted = Image.fromarray(label)
    paletted.putpalette(list(range(255, -1, -1)) * 3)
    assert paletted.mode == "P"
    paletted.save(tmp_path / "palette.png")
    save_label(tmp_path / "grey.png", label)
    save_label(tmp_path / "wide.png", label.astype(np.uint16))
    for name in ("palette.png", "grey.png", "wide.png"):
        read = read_label(tmp_path / name, CITYSCAPES)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, label)


def test_one_bit_label_is_all_ignored_or_road(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read_label(tmp_path / "bit.png", CITYSCAPES), [[255, 0]])


def test_mapping_is_applied(tmp_path):
    mapping = np.arange(256, dtype=np.uint8)
    mapping[11] = CAMVID.ignore_index
    path = save_label(tmp_path / "a.png", np.array([[0, 10, 11, 255]], np.uint8))
    np.testing.assert_array_equal(read_label(path, CAMVID, mapping), [[0, 10, 255, 255]])


@pytest.mark.parametrize("shape", [(4, 4, 3), (4, 4, 4)])
def test_colour_label_is_refused(tmp_path, shape):
    path = save_label(tmp_path / "gt_labelColor.png", np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match=r"gt_labelColor\.png is no label map: mode RGB.*expected one channel"):
        read_label(path, CITYSCAPES)


def test_foreign_ids_are_named(tmp_path):
    path = save_label(tmp_path / "bad.png", np.array([[0, 19, 33], [33, 255, 18]], np.uint8))
    with pytest.raises(UserError, match=r"bad\.png.*: 19, 33 \(3 pixels\); expected the train ids 0 to 18 and 255"):
        read_label(path, CITYSCAPES)
    mapping = np.arange(256, dtype=np.uint8)
    mapping[11] = CAMVID.ignore_index
    path = save_label(tmp_path / "worse.png", np.array([[12, 200]], np.uint8))
    with pytest.raises(UserError, match=r"worse\.png.*: 12, 200 \(2 pixels\); expected the ids 0 to 11, 255\."):
        read_label(path, CAMVID, mapping)
    path = save_label(tmp_path / "wide.png", np.array([[0, 256 + 3]], np.uint16))
    with pytest.raises(UserError, match=r"wide\.png.*: 259 \(1 pixels\)"):
        read_label(path, CITYSCAPES)


# ---- resizing


def test_resize_of_images_is_bilinear_and_of_labels_nearest():
    image = np.dstack([np.array([[0, 100, 200, 40], [20, 120, 220, 60]], np.uint8)] * 3)
    np.testing.assert_array_equal(resize_image(image, (1, 2))[0, :, 0], [60, 130])  # means of 2 x 2 pixels
    label = np.arange(27, dtype=np.uint8).reshape(3, 9)
    np.testing.assert_array_equal(resize_label(label, (1, 3)), [[10, 13, 16]])  # the middle pixel of 3 x 3
    assert resize_image(image, None) is image and resize_label(label, (3, 9)) is label


def test_resized_label_stays_aligned_with_resized_image():
    """The edge of a step must be at the same place in both, whatever the scale."""
    for height, width in ((7, 13), (50, 75), (20, 30), (10, 15)):
        step = np.zeros((20, 30), np.uint8)
        step[:, 15:] = 1
        image = resize_image(np.dstack([step * 200] * 3), (height, width))[..., 0]
        label = resize_label(step, (height, width))
        clear = (image < 90) | (image > 110)
        np.testing.assert_array_equal(label[clear], (image > 100)[clear])


def test_every_flipped_byte_of_a_png_is_noticed(tmp_path):
    """Pillow compares no checksums of pixel data, so a flipped byte could change ids without a word."""
    label = np.kron(np.random.default_rng(0).integers(0, 19, (6, 8)), np.ones((4, 4))).astype(np.uint8)
    whole = encoded(label, "PNG")
    path = tmp_path / "label.png"
    path.write_bytes(whole)
    assert np.array_equal(read_label(path, CITYSCAPES), label)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"label\.png"):
            read_label(path, CITYSCAPES)


def test_size_and_pixels_of_a_png_agree_wherever_its_orientation_stands(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encoded(photo(), "PNG")
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\x00\x00")
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path = tmp_path / "late.png"
    path.write_bytes(whole[:-12] + chunk + whole[-12:])  # between the pixels and the end
    assert read_image(path).shape[:2] == image_size(path) == (48, 80)


def test_too_many_pixels_are_told_as_such(tmp_path):
    path = tmp_path / "huge.png"
    Image.new("1", (14000, 14000)).save(path)
    with pytest.raises(
        UserError, match=r"huge\.png has more than \d+ pixels, the most that are read; make it smaller"
    ):
        read_image(path)
