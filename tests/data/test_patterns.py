"""Patterns of file names: what they match, and what their wildcards stand for, against fnmatch and glob."""

from __future__ import annotations

import fnmatch
import glob
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icda.data.patterns import Pattern


def matches(pattern: list[str], path: list[str]) -> bool:
    """Whether folders and name match, part by part, by fnmatch; ``**`` stands for any number of folders."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(matches(pattern[1:], path[skipped:]) for skipped in range(len(path)))
    escaped = pattern[0].replace("[", "[[]")
    return bool(path) and fnmatch.fnmatchcase(path[0], escaped) and matches(pattern[1:], path[1:])


# Few letters, so that random patterns and names meet.
PART = st.text("ab_[] é.", min_size=1, max_size=4).filter(lambda t: t.strip(".") and not t.startswith("."))
NAME = st.builds(lambda stem, ending: stem + ending, PART, st.sampled_from([".png", ".jpg"]))
PATH = st.builds(lambda folders, name: [*folders, name], st.lists(PART, max_size=3), NAME)


@st.composite
def pattern_and_path(draw):
    """A path, and a pattern made from it by putting wildcards in the place of pieces, or from another path."""
    path = draw(PATH)
    parts = []
    for part in draw(st.one_of(st.just(path), PATH))[:-1]:
        kind = draw(st.sampled_from(["as it is", "part", "**"]))
        parts.append("**" if kind == "**" else part if kind == "as it is" else draw(wild(part)))
    name = draw(st.one_of(st.just(path[-1]), NAME))
    stem, ending = name[:-4], name[-4:]
    return "/".join([*parts, draw(wild(stem)) + ending]), path


@st.composite
def wild(draw, text: str) -> str:
    start, end = sorted(draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
    return text[:start] + draw(st.sampled_from(["*", "?", "*_*", "a*", "", "?*"])) + text[end:] or "*"


@given(pattern_and_path())
def test_a_pattern_matches_what_fnmatch_matches(drawn):
    text, path = drawn
    pattern = Pattern("images", text, Path())
    start = len(pattern.base.parts)
    below = "/".join(path[start:])
    parts = text.split("/")
    same_base = path[:start] == parts[:start]
    texts = pattern.match(below) if same_base and below else None
    assert (texts is not None) == matches(parts, path)
    if texts is not None:
        assert len(texts) == pattern.wildcards and pattern.fill(texts) == Path(*path)


@given(pattern_and_path(), st.data())
def test_label_patterns_give_the_same_text(drawn, data):
    """A label whose name is the image's with other fixed text has its wildcards stand for the same."""
    text, path = drawn
    own = Pattern("images", text, Path())
    texts = own.match("/".join(path[len(own.base.parts) :]))
    if texts is not None and own.wildcards:
        other = Pattern("labels", f"gt x/{own.tail[:-4]}_label.png", Path())
        place = other.fill(texts)
        again = other.match(place.relative_to("gt x").as_posix())
        # More than one reading is possible where wildcards follow each other; both readings give the same file.
        assert again is not None and other.fill(again) == place


TREE = ["a.png", "b c/a.PNG", "b c/d[1]/x_1.jpg", "b c/d[1]/x_1.txt", "é/x_2.jpeg", "é/.hidden.png", ".git/x.png"]


@pytest.mark.parametrize(
    "text",
    ["*", "*/*", "**/*", "**/*.jpg", "b c/**/x_*.jpg", "*/d[[]1]/*.jpg", "?/*.jpeg", "**/d*/*_?.jpg", "**/**/*.*"],
)
def test_files_are_those_that_glob_finds(tmp_path, text):
    for name in TREE:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = Pattern("images", text.replace("[[]", "["), tmp_path).find("x")
    # Path.glob finds hidden files, too.
    expected = {tmp_path / p for p in glob.glob(text, root_dir=tmp_path, recursive=True)}  # noqa: PTH207
    expected = [p for p in expected if p.suffix.lower() in (".png", ".jpg", ".jpeg") and p.is_file()]
    assert expected and list(found) == sorted(expected)


@pytest.mark.parametrize(
    ("text", "path", "texts"),
    [
        ("*", "x.y.PNG", ("x.y",)),
        ("*.*", "x.y.jpeg", ("x.y",)),
        ("*.*", "x.txt", None),
        ("x*", "x.jpg", ("",)),
        ("*.png", "x.PNG", ("x",)),
        ("*_a.png", "x_A.png", None),
        ("**/*", "x.png", ("", "x")),
        ("**", "a/b/x.png", ("a/b", "x")),
        ("**/c/*.png", "a/b/c/x.png", ("a/b", "x")),
        ("*_*.png", "a_b_c.png", ("a_b", "c")),
        ("a***b.png", "a12b.png", ("12",)),
        ("*.jp?g", "x.jpeg", ("x", "e")),
        ("*é*.png", "xe\u0301y.png", ("x", "y")),  # the file name is in Unicode's decomposed form, as on macOS
        ("?.png", "/.png", None),
        ("*\n.png", "x\n.png", ("x",)),
    ],
)
def test_what_wildcards_stand_for(text, path, texts):
    assert Pattern("images", text, Path()).match(path) == texts
