"""Label spaces read from YAML files."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icda.data.classes import CAMVID, CITYSCAPES, ClassSet, id_table, read_classes
from icda.errors import UserError

YARD = """
name: yard
ignore_index: 200
classes:
  - {name: road, color: [128, 64, 128], ids: [7, 14]}
  - {name: Straße mit Bäumen, thing: false, ids: 2}
  - name: car
    thing: true
    ids: [0]
ignore_ids: [1, 3]
"""
PLAIN = "name: n\nclasses: [a, b, c]\n"


def write(folder, text):
    path = folder / "my classes.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_whole_file(tmp_path):
    classes, mapping = read_classes(write(tmp_path, YARD))
    assert classes.names == ("road", "Straße mit Bäumen", "car") and classes.name == "yard"
    assert classes.palette[0] == (128, 64, 128) and classes.ignore_index == 200 and classes.things == (2,)
    assert mapping.shape == (256,) and mapping.dtype == np.uint8
    expected = {7: 0, 14: 0, 2: 1, 0: 2, 1: 200, 3: 200, 200: 200}
    assert {i: int(mapping[i]) for i in expected} == expected
    others = np.delete(mapping, list(expected))
    assert not np.isin(others, [0, 1, 2, 200]).any()  # refused when a label file is read


def test_without_ids_files_hold_train_ids(tmp_path):
    classes, mapping = read_classes(write(tmp_path, PLAIN))
    assert classes.names == ("a", "b", "c") and classes.ignore_index == 255 and mapping is None
    assert classes == read_classes(write(tmp_path, "\ufeff" + PLAIN))[0]  # Windows editors begin a file so
    _, mapping = read_classes(write(tmp_path, PLAIN + "ignore_ids: [3]"))
    assert (
        mapping[[0, 1, 2, 3, 255]].tolist() == [0, 1, 2, 255, 255]
        and not np.isin(mapping[4:255], [0, 1, 2, 255]).any()
    )


def test_the_rest_is_ignored(tmp_path):
    _, mapping = read_classes(
        write(tmp_path, "name: n\nclasses: [{name: a, ids: [9]}, {name: b, ids: []}]\nignore_ids: rest")
    )
    assert mapping[9] == 0 and set(np.delete(mapping, 9)) == {255}


def test_the_published_label_space_from_a_file(tmp_path):
    """CITYSCAPES written down, with its official label ids, gives CITYSCAPES and the official table."""
    from cityscapesscripts.helpers.labels import labels

    used = sorted((label for label in labels if 0 <= label.trainId < 255), key=lambda label: label.trainId)
    things = {label.name for label in used if label.hasInstances} | {"traffic light", "traffic sign"}
    lines = [
        f"  - {{name: {x.name}, color: {list(x.color)}, thing: {x.name in things}, ids: [{x.id}]}}" for x in used
    ]
    ignored = [label.id for label in labels if label.trainId == 255]
    classes, mapping = read_classes(
        write(tmp_path, "\n".join(["name: cityscapes", "classes:", *lines, f"ignore_ids: {ignored}"]))
    )
    assert classes == CITYSCAPES
    assert [mapping[label.id] for label in labels if label.id >= 0] == [x.trainId for x in labels if x.id >= 0]


def test_made_colours_are_distinct_and_stable(tmp_path):
    def palette(count, first=""):
        names = ", ".join(f"c{i}" for i in range(count))
        return read_classes(write(tmp_path, f"name: n\nclasses: [{first}{names}]"))[0].palette

    many = palette(255)
    assert len({*many, (0, 0, 0)}) == 256 and palette(255) == many and palette(7) == many[:7]
    few = np.array(palette(19), float)
    apart = np.linalg.norm(few[:, None] - few[None], axis=-1)[~np.eye(19, dtype=bool)]
    assert apart.min() > 60
    given_color = many[0]
    assert given_color not in palette(20, f"{{name: given, color: {list(given_color)}}}, ")[1:]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not a YAML file that can be read"),
        ("name: n\nname: m\nclasses: [a, b]", "is not a YAML file.*duplicate key"),
        ("!!python/object:os.system {}", "is not a YAML file"),
        ("3", "cannot be read: it holds no keys name and classes"),
        ("road", "the file has the unknown key road; known are name, classes"),
        ("- road\n- car", "it holds a list; expected the keys name and classes"),
        ("", "the file has no name"),
        ("classes: [a, b]", "the file has no name; it needs name and classes"),
        ("name: n", "the file has no classes"),
        ("name: n\nclases: [a, b]", "the file has the unknown key clases; did you mean classes"),
        ("name: n\nclasses: {a: 1, b: 2}", "classes is .*, expected a list of classes"),
        ("name: n\nclasses: [a]", "there are 1 classes, expected 2 to 255"),
        ("name: n\nclasses: []", "there are 0 classes"),
        (f"name: n\nclasses: [{', '.join(f'c{i}' for i in range(256))}]", "there are 256 classes"),
        ("name: n\nclasses: [a, 3]", r"classes\[1\] is 3, expected a class"),
        ("name: n\nclasses: [a, {color: [1, 2, 3]}]", r"classes\[1\] has no name"),
        (
            "name: n\nclasses: [a, {name: b, colour: [1, 2, 3]}]",
            r"classes\[1\] has the unknown key colour; did you mean color",
        ),
        ("name: n\nclasses: [a, {name: true}]", r"classes\[1\]\.name is True, expected a text; put it in quotes"),
        ("name: n\nclasses: [a, ' a ']", "two classes have the name a"),
        ("name: n\nclasses: [a, {name: b, color: [1, 2]}]", r"b: color is \[1, 2\], expected \[red, green, blue\]"),
        (
            "name: n\nclasses: [a, {name: b, color: [1, 2, 256]}]",
            "b: a part of color is 256, expected a whole number from 0",
        ),
        ("name: n\nclasses: [a, {name: b, thing: maybe}]", "b: thing is 'maybe', expected true or false"),
        ("name: n\nclasses: [a, {name: b, ids: [256]}]", "b: an id is 256, expected a whole number from 0 to 255"),
        ("name: n\nclasses: [a, {name: b, ids: [-1]}]", "an id is -1"),
        ("name: n\nclasses: [a, {name: b, ids: [1.5]}]", "an id is 1.5"),
        ("name: n\nclasses: [{name: a, ids: [7]}, {name: b, ids: [7]}]", "the id 7 is given twice, to a and to b$"),
        (
            "name: n\nclasses: [a, {name: b, ids: [0]}]",
            r"the id 0 is given twice, to a and to b \(a class without ids has",
        ),
        ("name: n\nclasses: [a, b]\nignore_ids: [1]", "the id 1 is given twice, to b and to ignore_ids"),
        ("name: n\nclasses: [a, b]\nignore_ids: all", "ignore_ids is 'all', expected a list of ids, or rest"),
        (
            "name: n\nclasses: [a, b]\nignore_index: 1",
            "ignore_index is 1, the train id of a class; expected 2 or more",
        ),
        ("name: n\nclasses: [a, b]\nignore_index: 256", "ignore_index is 256, expected a whole number"),
        ("name: n\nclasses: [a, '${nowhere}']", "is not a YAML file that can be read"),
    ],
)
def test_mistakes(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_classes(write(tmp_path, text))
    assert str(caught.value).startswith(f"class list {tmp_path}/my classes.yaml: ") and "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.yaml: there is no such file"):
        read_classes(tmp_path / "nothing.yaml")
    with pytest.raises(UserError, match="it cannot be read: Is a directory"):
        read_classes(tmp_path)
    (tmp_path / "image.yaml").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    with pytest.raises(UserError, match="is not a YAML file"):
        read_classes(tmp_path / "image.yaml")


@given(
    st.integers(2, 255).flatmap(
        lambda count: st.tuples(
            st.just(count), st.integers(count, 255), st.dictionaries(st.integers(0, 255), st.integers(0, count - 1))
        )
    ),
    st.booleans(),
)
def test_id_table(drawn, ignore_rest):
    count, ignore_index, train_ids = drawn
    classes = ClassSet("n", tuple(map(str, range(count))), ((0, 0, 0),) * count, ignore_index, ())
    table = id_table(classes, train_ids, ignore_rest)
    full = count == 255  # all values are taken, so nothing is left that could be refused
    for file_id in range(256):
        if file_id in train_ids:
            assert table[file_id] == train_ids[file_id]
        elif file_id == ignore_index or ignore_rest or full:
            assert table[file_id] == ignore_index
        else:
            assert table[file_id] >= count and table[file_id] != ignore_index


def test_built_in_label_spaces_are_whole():
    for classes, count in ((CITYSCAPES, 19), (CAMVID, 11)):
        assert len(classes) == count == len(set(classes.names)) == len(set(classes.palette))
        label = np.arange(256, dtype=np.uint8).reshape(16, 16)
        colors = classes.colorize(label).reshape(256, 3)
        assert colors[:count].tolist() == [list(c) for c in classes.palette] and not colors[count:].any()
