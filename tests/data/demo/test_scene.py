"""The demo's scenes: geometry, agreement of image and label, and how day and night differ."""

from __future__ import annotations

import numpy as np
import pytest

from icda.data.classes import CITYSCAPES
from icda.data.demo import scene as scene
from icda.data.demo.canvas import Camera, Canvas, Paint
from icda.data.demo.light import Sensor, develop, geometry, texture_atlas

SIZE = (128, 256)
ROAD, SKY, CAR = (CITYSCAPES.names.index(name) for name in ("road", "sky", "car"))


def camera(yaw: float = 0.0) -> Camera:
    return Camera(position=(0.0, 1.5, 0.0), yaw=yaw, focal=0.8, horizon=0.5, size=SIZE)


def test_projection_of_known_points() -> None:
    view = camera()
    # f = 0.8 * 256 = 204.8 px: 1 m to the right and 0.5 m below the eye at 10 m is 20.48 px right, 10.24 px down.
    at = view.project(view.to_camera(np.array([[1.0, 1.0, 10.0], [0.0, 1.5, 7.0]])))
    assert np.allclose(at, [[128 + 20.48, 64 + 10.24], [128, 64]])


def test_a_camera_turned_to_the_right_sees_things_move_to_the_left() -> None:
    view = camera(yaw=0.1)
    column, _ = view.project(view.to_camera(np.array([0.0, 1.5, 10.0])))
    assert column == pytest.approx(128 - 204.8 * np.tan(0.1))


def test_pixels_know_their_place_in_the_world() -> None:
    canvas = Canvas(camera(yaw=0.2))
    ground = np.array([(-99, 0, 0.1), (99, 0, 0.1), (99, 0, 300), (-99, 0, 300)], float)
    canvas.polygon(ground, Paint(ROAD, (0.5, 0.5, 0.5)))
    wall = np.array([(4, 0, 5), (4, 0, 40), (4, 6, 40), (4, 6, 5)], float)
    canvas.polygon(wall, Paint(CAR, (0.5, 0.5, 0.5)))
    found, label = geometry(canvas), canvas.label()
    near = found.depth < 60
    assert np.allclose(found.place[1][(label == ROAD) & near], 0.0, atol=1e-3)
    assert np.allclose(found.place[0][label == CAR], 4.0, atol=1e-3)
    # The reverse of the projection is the projection's pixel centre.
    rows, columns = np.nonzero((label != SKY) & near)
    points = found.place[:, rows, columns].T.astype(np.float64)
    again = canvas.camera.project(canvas.camera.to_camera(points))
    assert np.allclose(again, np.stack([columns, rows], axis=-1) + 0.5, atol=0.02)


def test_a_polygon_that_passes_the_camera_is_cut_at_the_near_plane() -> None:
    canvas = Canvas(camera())
    canvas.polygon(np.array([(-50, 0, -20), (50, 0, -20), (50, 0, 80), (-50, 0, 80)], float), Paint(ROAD, (0.5,) * 3))
    label = canvas.label()
    # Rows below the picture of (0, 0, 80) show ground, those above the horizon do not.
    far_row = 64 + 204.8 * 1.5 / 80
    assert (label[int(far_row) + 2 :] == ROAD).all()
    assert (label[: int(far_row) - 1] == SKY).all()


def test_texture_tiles_have_mean_near_zero() -> None:
    assert abs(float(texture_atlas().mean())) < 0.25
    assert np.isfinite(texture_atlas()).all()


def test_sensor_follows_srgb_and_its_noise_model() -> None:
    rng = np.random.default_rng(0)
    # IEC 61966-2-1: linear 0.2140 is sRGB byte 127 or 128.
    grey = np.full((3, 64, 64), 0.2140, np.float32)
    clean = develop(grey, Sensor(1.0, (1.0, 1.0, 1.0), shot=0.0, read=0.0, vignette=0.0), rng)
    assert set(np.unique(clean)) <= {127, 128}
    noisy = develop(grey, Sensor(1.0, (1.0, 1.0, 1.0), shot=0.002, read=0.01, vignette=0.0), rng) / 255
    linear = ((noisy + 0.055) / 1.055) ** 2.4
    assert linear.std() == pytest.approx((0.002 * 0.2140 + 0.01**2) ** 0.5, rel=0.05)


@pytest.fixture(scope="module")
def targets() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    return [scene.target_sample(np.random.default_rng([0, index]), SIZE) for index in range(12)]


@pytest.fixture(scope="module")
def sources() -> list[tuple[np.ndarray, np.ndarray]]:
    return [scene.source_sample(np.random.default_rng([1, index]), SIZE) for index in range(24)]


def test_samples_have_the_documented_form(targets: list, sources: list) -> None:
    allowed = {*range(len(CITYSCAPES)), CITYSCAPES.ignore_index}
    for night, label, day in targets:
        assert night.shape == day.shape == (*SIZE, 3) and night.dtype == day.dtype == np.uint8
        assert label.shape == SIZE and label.dtype == np.uint8 and set(np.unique(label)) <= allowed
    for image, label in sources:
        assert image.shape == (*SIZE, 3) and image.dtype == np.uint8
        assert label.shape == SIZE and label.dtype == np.uint8 and set(np.unique(label)) <= allowed


def test_every_class_occurs_often_enough_to_be_learnt(sources: list) -> None:
    share = {
        name: np.mean([(label == index).sum() > 30 for _, label in sources])
        for index, name in enumerate(CITYSCAPES.names)
    }
    assert min(share.values()) >= 0.12, share
    assert any((label == CITYSCAPES.ignore_index).any() for _, label in sources)


def test_night_is_darker_than_day_and_its_sky_most_of_all(targets: list) -> None:
    night_sky, day_sky, night_mean, day_mean = [], [], [], []
    for night, label, day in targets:
        night_mean.append(night.mean())
        day_mean.append(day.mean())
        if (label == SKY).sum() > 200:
            night_sky.append(night[label == SKY].mean())
            day_sky.append(day[label == SKY].mean())
    assert np.mean(night_mean) < 0.6 * np.mean(day_mean)
    assert np.mean(night_sky) < 0.4 * np.mean(day_sky)


def test_what_is_dark_by_night_is_not_black(targets: list) -> None:
    """A person, and so a network, can still tell the regions: little is lost in black or in white."""
    for night, label, _ in targets:
        luma = night.mean(axis=-1)[label != SKY]
        assert np.mean(luma < 3) < 0.15
        assert np.mean(luma > 250) < 0.15


def test_the_same_place_keeps_its_static_things() -> None:
    rng = np.random.default_rng(3)
    place = scene.make_place(rng, scene.TARGET_STYLE)
    view = scene.aim_camera(rng, scene.TARGET_STYLE, SIZE)
    empty = scene.Traffic((), ())
    first, second = (scene.draw(place, empty, view, False).label() for _ in range(2))
    assert np.array_equal(first, second)
    busy = scene.draw(place, scene.make_traffic(rng, place), view, False).label()
    things = np.isin(busy, CITYSCAPES.things)
    assert things.any() and np.array_equal(first[~things], busy[~things])


def test_the_reference_is_near_but_not_the_same_view() -> None:
    """The picture moves by a few per cent of its width: more than nothing, less than a fifth, at 15 m."""
    point = np.array([0.0, 1.5, 15.0])
    moves = []
    for index in range(50):
        rng = np.random.default_rng(index)
        view = scene.aim_camera(rng, scene.TARGET_STYLE, SIZE)
        other = scene.move_camera(rng, view)
        before, after = (c.project(c.to_camera(point)) for c in (view, other))
        moves.append(np.abs(after - before).max() / SIZE[1])
    assert 0.01 < np.median(moves) < 0.06 and max(moves) < 0.12


def test_a_generator_gives_the_same_picture_again() -> None:
    one, two = (scene.target_sample(np.random.default_rng(9), SIZE) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
