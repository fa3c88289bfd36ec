from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icda.data.pairs import (
    EARTH_RADIUS,
    UNPAIRED,
    Match,
    Positions,
    apply_unpaired,
    compare_pairs,
    describe_distances,
    nearest,
    read_pairs,
    read_positions,
    references_from_lists,
    write_pairs,
)
from icda.errors import UserError


def positions(rows):
    keys, latitude, longitude = zip(*rows, strict=True)
    return Positions(tuple(keys), np.array(latitude, float), np.array(longitude, float))


def great_circle(a, b):
    """Metres by the spherical law of cosines in vector form, which shares nothing with the haversine formula."""
    vectors = []
    for latitude, longitude in (a, b):
        phi, theta = math.radians(latitude), math.radians(longitude)
        vectors.append((math.cos(phi) * math.cos(theta), math.cos(phi) * math.sin(theta), math.sin(phi)))
    (ax, ay, az), (bx, by, bz) = vectors
    cross = math.hypot(ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx)
    return EARTH_RADIUS * math.atan2(cross, ax * bx + ay * by + az * bz)


def brute_force(night, day, max_distance):
    matches = []
    for key, *place in night:
        distances = [(great_circle(place, other), day_key) for day_key, *other in day]
        least = min(distances)[0]
        chosen = min(day_key for distance, day_key in distances if distance <= least + 1e-3)
        matches.append((key, chosen if least <= max_distance else None, least))
    return matches


def test_nearest_agrees_with_brute_force():
    """2,000 positions in a square of 1.1 x 1.1 km; every tenth day image stands where another one stands."""
    draw = random.Random(3)

    def places(prefix, count):
        return [(f"{prefix}{i:04d}", 47.37 + draw.random() / 100, 8.54 + draw.random() / 68) for i in range(count)]

    night, day = places("night", 1200), places("day", 720)
    day += [(f"again{i:03d}", *day[9 * i][1:]) for i in range(80)]
    draw.shuffle(day)
    reach = 25.0
    expected = brute_force(night, day, reach)
    found = nearest(positions(night), positions(day), reach)
    assert [(m.night, m.day) for m in found] == [(key, chosen) for key, chosen, _ in expected]
    np.testing.assert_allclose([m.distance for m in found], [distance for *_, distance in expected], atol=1e-6)
    beyond, tied = sum(m.day is None for m in found), sum(str(m.day).startswith("again") for m in found)
    assert beyond > 50 and tied > 50  # both kinds are among what was compared


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=1, max_size=12),
)
def test_ties_on_a_grid_go_to_the_smaller_key(night, day):
    """Around 0, 0 a grid has equally near places in four directions."""
    night = [(f"n{i:02d}", a / 1000, b / 1000) for i, (a, b) in enumerate(night)]
    day = [(f"d{i:02d}", a / 1000, b / 1000) for i, (a, b) in enumerate(day)][::-1]
    found = nearest(positions(night), positions(day), 300)
    assert [(m.night, m.day) for m in found] == [(key, chosen) for key, chosen, _ in brute_force(night, day, 300)]


def test_distances_that_are_known():
    equator = positions([("a", 0.0, 0.0)])
    quarter = math.pi * EARTH_RADIUS / 2
    for place, distance in (((90.0, 77.0), quarter), ((0.0, 180.0), 2 * quarter), ((0.0, -90.0), quarter)):
        (match,) = nearest(equator, positions([("b", *place)]))
        assert match.day == "b" and match.distance == pytest.approx(distance, rel=1e-9)
    # Over a kilometre the earth is flat: metres per degree, times the cosine of the latitude for the longitude.
    degree = 2 * math.pi * EARTH_RADIUS / 360
    plane = degree * math.hypot(47.3779 - 47.3697, (8.5403 - 8.5389) * math.cos(math.radians(47.3738)))
    (match,) = nearest(positions([("a", 47.3779, 8.5403)]), positions([("b", 47.3697, 8.5389)]), 920)
    assert match.day == "b" and match.distance == pytest.approx(plane, abs=0.01) == pytest.approx(917.9, abs=0.1)


def test_reach_is_inclusive_and_need_not_be():
    here, there = positions([("n", 47.0, 8.0)]), positions([("d", 47.001, 8.0)])
    (match,) = nearest(here, there)
    assert match.day == "d" and match.distance == pytest.approx(math.radians(0.001) * EARTH_RADIUS)
    assert nearest(here, there, match.distance)[0].day == "d"
    assert nearest(here, there, match.distance * 0.999)[0] == Match("n", None, match.distance)
    assert nearest(here, Positions((), np.empty(0), np.empty(0)), 5) == [Match("n", None, math.inf)]
    for wrong in (0, -1, "20", True, math.nan):
        with pytest.raises(UserError, match=r"max_distance is .*; expected metres above 0, or null"):
            nearest(here, there, wrong)
    with pytest.raises(UserError, match=r"position of d has latitude 147\.0; expected columns key,latitude"):
        nearest(here, positions([("d", 147.0, 8.0)]))


def test_description_of_distances():
    distances = [4.0, 1.0, 9.0, 2.5, 30.0]
    matches = [Match(f"n{d}", None if d > 20 else "d", d) for d in distances]
    ninety = statistics.quantiles(distances, n=10, method="inclusive")[-1]
    assert ninety == pytest.approx(21.6)
    assert describe_distances(matches) == (
        "5 positions, nearest day image at 1.0 to 30.0 m, median 4.0 m, 90 % within 21.6 m, 1 beyond reach"
    )
    assert describe_distances([Match("n", None, math.inf)]).startswith("1 positions, none with a day position")


def test_positions_from_real_files(tmp_path):
    """A byte order mark, a header, further columns, gaps, semicolons nobody asked for, an empty file."""
    first, second = tmp_path / "a.csv", tmp_path / "b c.csv"
    first.write_bytes(
        "\ufeffname,latitude,longitude\r\n"
        "train/night/S/S_frame_000001_rgb_anon.png,47.1,8.5,431.2,2017-11-05 21:03\r\n"
        "train\\night\\S\\S_frame_000002_RGB_ANON.PNG , 47.2 , 8.6\r\n"
        "S_frame_000003,,\r\nS_frame_000004,nan,8.5\r\nS_frame_000005,inf,8.5\r\nS_frame_000006,999,8.5\r\n"
        "S_frame_000007\r\n\r\n,47.0,8.5\r\nS_frame_000008;47.1;8.5\r\n".encode()
    )
    second.write_text("./train/night/S/S_frame_000009.jpg,4.73e1,+8.5\n")
    (tmp_path / "empty.csv").write_text("")
    found = read_positions("D", [first, second, tmp_path / "empty.csv"], ("_rgb_anon.png",))
    assert found.keys == tuple(f"train/night/S/S_frame_00000{i}" for i in (1, 2, 9))
    np.testing.assert_array_equal(found.latitude, [47.1, 47.2, 47.3])
    np.testing.assert_array_equal(found.longitude, [8.5, 8.6, 8.5])
    assert found.skipped == 8 and len(found) == 3
    assert len(read_positions("D", [tmp_path / "empty.csv"])) == 0
    with pytest.raises(UserError, match=r"D: cannot read the file of positions .*gone\.csv: .*No such file"):
        read_positions("D", [tmp_path / "gone.csv"])


def test_positions_of_keys():
    read = positions([("a/x", 1, 10), ("b/x", 2, 20), ("y", 3, 30), ("a/x", 4, 40), ("c/z", 5, 50)])
    found = read.of(["other/z", "b/x", "b/y", "q", "q/x", "a/x"])
    # Two are called x, so q/x is neither; of a/x, which comes twice, the first counts.
    assert found.keys == ("other/z", "b/x", "b/y", "a/x")
    assert found.latitude.tolist() == [5, 2, 3, 1] and found.longitude.tolist() == [50, 20, 30, 10]
    assert len(read.of([])) == 0


def test_lists_of_pairs(tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_bytes(b"\xef\xbb\xbfNight, Day\r\n\r\nn/1_rgb_anon.png , d/1\r\n,\r\nn\\2.PNG,./d/1.jpg\r\n")
    assert read_pairs("D", file, ("_rgb_anon.png",)) == [(3, "n/1", "d/1"), (5, "n/2", "d/1")]
    for text, message in (
        ("n/1,d/1\nn/2\n", r"line 2 is 'n/2'; expected two columns night,day"),
        ("n/1,d/1,0.4\n", r"line 1 is 'n/1,d/1,0\.4'"),
        ("n/1,d/1\nnight,\n", "line 2 is 'night,'"),
        ("n/1;d/1\n", "line 1 is 'n/1;d/1'"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=rf"D: .*pairs\.csv, {message}"):
            read_pairs("D", file)
    with pytest.raises(UserError, match=r"cannot read the list of pairs .*: .*directory"):
        read_pairs("D", tmp_path)


KEYS = st.lists(
    st.text(st.characters(exclude_characters="\\", exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1).filter(
        lambda key: key == key.strip() and not key.startswith(("/", "./", "\ufeff")) and "." not in key
    ),
    min_size=2,
    max_size=2,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(KEYS.map(tuple), max_size=5).filter(lambda rows: not rows or rows[0][0].lower() != "night"))
def test_written_pairs_are_read_back(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("pairs") / "x.csv"
    write_pairs(file, rows)
    assert [row[1:] for row in read_pairs("D", file)] == rows


def test_written_pairs_are_plain_lines(tmp_path, monkeypatch):
    file = tmp_path / "new" / "pairs.csv"
    write_pairs(file, {"train/night/a": "train/day/b", "train/night/ä ö": "train/day/b"}.items())
    assert file.read_bytes() == "train/night/a,train/day/b\ntrain/night/ä ö,train/day/b\n".encode()
    write_pairs(file, [("n/\udce4", "d,1")])  # a name on disk that is not UTF-8, a comma in a name
    assert file.read_bytes() == b'n/\xe4,"d,1"\n'
    assert [row[1:] for row in read_pairs("D", file)] == [("n/\udce4", "d,1")]
    with pytest.raises(UserError, match="cannot stand in a list of pairs"):
        write_pairs(file, [("n", "d"), ("n\n2", "d")])

    def full_disk(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(file), "replace", full_disk)
    with pytest.raises(UserError, match=r"cannot write the list of pairs .*No space left"):
        write_pairs(file, [("n", "d")])
    assert file.read_bytes() == b'n/\xe4,"d,1"\n' and list(file.parent.iterdir()) == [file]


def test_references_from_lists(tmp_path):
    night = {key: tmp_path / f"{key}.png" for key in ("n1", "n2", "n3")}
    day = {key: tmp_path / f"{key}.png" for key in ("d1", "d2")}
    first, second = tmp_path / "1.csv", tmp_path / "2.csv"
    first.write_text("n1,d1\nn1,d1\n")
    second.write_text("n2,d1\n")
    assert references_from_lists("D", [first, second], night, day) == ({"n1": day["d1"], "n2": day["d1"]}, 0)
    for text, message in (
        ("n1,d2\n", r"2\.csv, line 1 pairs n1 a second time, with another day image: d2 and .*d1\.png"),
        ("n9,d2\n", r"2\.csv, line 1 names a night image that is missing: n9"),
        ("n3,d2\nn2,d9\n", r"2\.csv, line 2 names a day image that is missing: d9"),
    ):
        second.write_text(text)
        with pytest.raises(UserError, match=message):
            references_from_lists("D", [first, second], night, day)
    assert references_from_lists("D", [first, second], night, day, check=False) == (
        {"n1": day["d1"], "n3": day["d2"]},
        1,
    )


def test_images_without_reference(tmp_path):
    images = {key: tmp_path / f"{key}.png" for key in "abc"}
    assert UNPAIRED == ("drop", "keep", "error")
    kept, without = apply_unpaired("D", images, {"b": tmp_path}, "drop")
    assert list(kept) == ["b"] and without == 2
    assert apply_unpaired("D", images, {"b": tmp_path}, "keep") == (images, 2)
    assert apply_unpaired("D", images, {}, "keep") == (images, 3)
    everything = dict.fromkeys(images, tmp_path)
    assert all(apply_unpaired("D", images, everything, setting) == (images, 0) for setting in UNPAIRED)
    with pytest.raises(UserError, match=r"D: 2 of 3 images have no day reference, the first is .*a\.png; .*drop"):
        apply_unpaired("D", images, {"b": tmp_path}, "error")
    with pytest.raises(UserError, match="D: none of the 3 images has a day reference"):
        apply_unpaired("D", images, {}, "drop")
    with pytest.raises(UserError, match="unpaired is 'skip'; choose one of drop, keep, error"):
        apply_unpaired("D", images, everything, "skip")


def test_comparison_of_pairings():
    first = {"n1": "d1", "n2": "d2", "n3": "d3", "n4": "d4"}
    second = {"n2": "d2", "n4": "d9", "n3": "d8", "n5": "d5", "n6": "d5"}
    assert compare_pairs(first, second, ("corresp", "gps")) == (
        "1 night images have the same day image in both, 2 another, 1 are only in corresp, 2 only in gps; such as n3:"
        " d3 in corresp, d8 in gps"
    )
    assert compare_pairs(first, first).startswith("4 night images have the same day image in both, 0 another, 0 are")
