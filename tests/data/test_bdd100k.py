from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image

from icda.data.bdd100k import BDD100KNight, night_list
from icda.data.classes import CITYSCAPES
from icda.errors import UserError

LISTED = ["train/00aad4a0-ee8135fe", "train/2b2c44c7-958f0ba8", "val/7d06fefd-f7be05a6"]
TAGGED = ["train/00aad4a0-ee8135fe", "train/0a1b2c3d-00000000", "train/3a7896fe-690e31f5", "val/7d06fefd-f7be05a6"]
BRIGHT = "train/3a7896fe-690e31f5"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.write_bdd100k(tmp_path / "bdd100k")


def keys(dataset: BDD100KNight) -> list[str]:
    return [sample.key for sample in dataset.samples]


@pytest.mark.parametrize("layout", ["new", "old"])
@pytest.mark.parametrize("night", ["listed", "tagged"])
def test_both_layouts(tmp_path, layout, night):
    root = trees.write_bdd100k(tmp_path / "train val", layout)
    dataset = BDD100KNight(str(root), size=[32, 64], night=night)
    assert keys(dataset) == (LISTED if night == "listed" else TAGGED)
    assert dataset.image(0).shape == (32, 64, 3) and dataset.label(0).shape == (32, 64)
    masks, ending = ("labels/sem_seg/masks", "") if layout == "new" else ("seg/labels", "_train_id")
    for i, sample in enumerate(dataset.samples):
        assert sample.label == root / masks / f"{sample.key}{ending}.png"
        np.testing.assert_array_equal(dataset.label(i, resized=False), np.array(Image.open(sample.label)))
        assert sample.image.suffix == ".jpg" and sample.reference is None and sample.invalid is None
    assert not dataset.strays and not dataset.missing and not dataset.absent and dataset.classes is CITYSCAPES
    assert pickle.loads(pickle.dumps(dataset)).samples == dataset.samples


def test_published_numbers_belong_to_the_fields_list(root, tmp_path):
    listed = BDD100KNight(str(root))
    assert [(c.what, c.found, c.published) for c in listed.counts()] == [
        ("images", 3, 87), ("images of train", 2, 74), ("images of val", 1, 13), ("labels", 3, None),
    ]  # fmt: skip
    other = tmp_path / "other.txt"
    other.write_text("\n".join(LISTED))
    for dataset in (BDD100KNight(str(root), list_file=str(other)), BDD100KNight(str(root), night="tagged")):
        assert all(count.published is None for count in dataset.counts())
    assert listed.name != BDD100KNight(str(root), night="tagged").name


PACKED = [
    {"images": "bdd100k/images", "labels": "bdd100k/labels", "lists": "lists"},
    {
        "images": "bdd100k_images_10k/bdd100k/images",
        "labels/sem_seg": "bdd100k_sem_seg_labels_trainval/bdd100k/labels/sem_seg",
        "labels/det_20": "bdd100k_det_20_labels_trainval/bdd100k/labels/det_20",
        "lists": "lists",
    },
]


@pytest.mark.parametrize("places", PACKED)
def test_folders_named_after_the_packages(root, tmp_path, places):
    for source, place in places.items():
        (tmp_path / "all" / place).parent.mkdir(parents=True, exist_ok=True)
        (root / source).rename(tmp_path / "all" / place)
    listed = BDD100KNight(str(tmp_path / "all"))
    assert keys(listed) == LISTED and listed.place(listed.samples[0]).as_posix() == f"images/10k/{LISTED[0]}.jpg"
    assert keys(BDD100KNight(str(tmp_path / "all"), night="tagged")) == TAGGED


@pytest.mark.parametrize("folder", [".", "lists", "images/10k"])
def test_list_is_found(root, folder):
    (root / "lists" / trees.BDD100K_LIST_NAME).rename(root / folder / trees.BDD100K_LIST_NAME)
    assert keys(BDD100KNight(str(root))) == LISTED


@pytest.mark.parametrize(
    "form",
    [
        "seg/images/{split}/{name}.jpg",
        "images/10k/{split}/{name}.jpg",
        "bdd100k/images/10k/{split}/{name}.JPG",
        "seg\\images\\{split}\\{name}.jpg",
        "{split}/{name}.jpg",
        "{split}/{name}",
        "{name}.jpg",
        "{name}",
        "/data/seg/labels/{split}/{name}_train_id.png",
    ],
)
@pytest.mark.parametrize("layout", ["new", "old"])
def test_every_form_of_a_line(tmp_path, form, layout):
    root = trees.write_bdd100k(tmp_path / "bdd100k", layout, night_list=False)
    lines = [form.format(split=key.split("/")[0], name=key.split("/")[1]) for key in reversed(LISTED)]
    file = tmp_path / "my list.txt"
    file.write_text("\ufeff# night\r\n\r\n" + "\r\n".join([*lines, lines[0]]) + "\r\n", encoding="utf-8")
    assert keys(BDD100KNight(str(root), list_file=str(file))) == LISTED


def test_listed_images_that_are_not_there(root, tmp_path):
    file = tmp_path / "list.txt"
    file.write_text(f"{LISTED[0]}\nseg/images/train/ffffffff-00000000.jpg\nseg/images/test/aa00bb11-cc22dd33.jpg\n")
    with pytest.raises(
        UserError, match=r"2 of 3 images of .*list\.txt are not there, the first is seg/images/train/ffffffff"
    ):
        BDD100KNight(str(root), list_file=str(file))
    dataset = BDD100KNight(str(root), list_file=str(file), check=False)
    assert keys(dataset) == LISTED[:1]
    assert [line.rsplit("/", 1)[-1] for line in dataset.absent] == ["ffffffff-00000000.jpg", "aa00bb11-cc22dd33.jpg"]


def test_a_name_in_both_splits_needs_its_split(root, tmp_path):
    name = LISTED[0].split("/")[1]
    for folder, ending in (("images/10k", ".jpg"), ("labels/sem_seg/masks", ".png")):
        (root / folder / "val" / f"{name}{ending}").write_bytes(
            (root / folder / "train" / f"{name}{ending}").read_bytes()
        )
    file = tmp_path / "list.txt"
    file.write_text(f"{name}.jpg\n")
    with pytest.raises(UserError, match=rf"{name}\.jpg names two images, .*train/{name}\.jpg and .*val/{name}\.jpg"):
        BDD100KNight(str(root), list_file=str(file))
    file.write_text(f"val/{name}.jpg\n")
    assert keys(BDD100KNight(str(root), list_file=str(file))) == [f"val/{name}"]


def test_lists_that_cannot_be_used(root, tmp_path):
    with pytest.raises(UserError, match=r"list of night images .*gone\.txt does not exist"):
        BDD100KNight(str(root), list_file=str(tmp_path / "gone.txt"))
    file = tmp_path / "list.txt"
    file.write_text("# nothing\n\n")
    with pytest.raises(UserError, match=r"list\.txt is empty; expected one image a line"):
        BDD100KNight(str(root), list_file=str(file))
    file.write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(UserError, match=r"cannot read the list of night images .*list\.txt"):
        BDD100KNight(str(root), list_file=str(file))
    (root / "lists" / trees.BDD100K_LIST_NAME).unlink()
    with pytest.raises(
        UserError, match=r"no list of night images: no images_trainval_night.*list_file=.*night=tagged"
    ):
        BDD100KNight(str(root))


@pytest.mark.parametrize("attributes", ["det_20", "bdd100k_labels_images"])
def test_tags_of_both_forms(tmp_path, attributes):
    root = trees.write_bdd100k(tmp_path, attributes=attributes, night_list=False)
    dataset = BDD100KNight(str(root), night="tagged")
    # By hand from trees.BDD100K: of train and val together two have no tag.
    assert keys(dataset) == TAGGED and dataset.untagged == 2 and dataset.bright == 0


def test_a_file_of_tags_alone_is_not_enough(root):
    tags = root / "labels/det_20/det_val.json"
    frames = json.loads(tags.read_text())
    for frame in frames:
        frame["attributes"]["timeofday"] = "daytime"
    tags.unlink()
    with pytest.raises(UserError, match=r"needs both attribute files labels/det_20/det_\{train,val\}\.json or"):
        BDD100KNight(str(root), night="tagged")
    for split in ("train", "val"):  # the complete pair of the older package is taken instead
        (root / f"labels/bdd100k_labels_images_{split}.json").write_text(json.dumps(frames))
    with pytest.raises(UserError, match=r"of 9 images 0 are tagged as night"):
        BDD100KNight(str(root), night="tagged")


def test_tags_without_a_time_of_day(root):
    for split in ("train", "val"):
        frames = [
            {"name": f"{key.split('/')[1]}.jpg", "labels": None, "attributes": attributes}
            for key, attributes in zip(
                TAGGED, ({"timeofday": "night"}, {"timeofday": "undefined"}, {}, None), strict=True
            )
        ]
        written = {"config": {"categories": [{"name": "car"}]}, "frames": frames}
        (root / f"labels/det_20/det_{split}.json").write_text(json.dumps(written))
    dataset = BDD100KNight(str(root), night="tagged")
    assert keys(dataset) == TAGGED[:1] and dataset.untagged == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", r"cannot read .*det_train\.json"),
        ("[1, 2]", r"det_train\.json is no list of images"),
        ('{"a": 1}', r"det_train\.json is no list of images"),
        ('[{"name": "a.jpg", "labels": []}]', r"no image in .*det_train\.json and .*det_val\.json has the attribute"),
    ],
)
def test_attribute_files_that_cannot_be_used(root, text, message):
    (root / "labels/det_20/det_train.json").write_text(text)
    (root / "labels/det_20/det_val.json").write_text("[]")
    with pytest.raises(UserError, match=message):
        BDD100KNight(str(root), night="tagged")


def test_bright_images_are_left_out(root):
    dataset = BDD100KNight(str(root), night="tagged", max_brightness=60)
    assert keys(dataset) == [key for key in TAGGED if key != BRIGHT] and dataset.bright == 1
    # The threshold is the mean of Pillow's own grey conversion, to its rounding.
    grey = np.mean(Image.open(root / f"images/10k/{BRIGHT}.jpg").convert("L"))
    assert keys(BDD100KNight(str(root), night="tagged", max_brightness=grey + 0.6)) == TAGGED
    assert BDD100KNight(str(root), night="tagged", max_brightness=grey - 0.6).bright == 1
    with pytest.raises(UserError, match=r"4 are tagged as night and 0 of these are dark enough \(max_brightness 1\)"):
        BDD100KNight(str(root), night="tagged", max_brightness=1)


@pytest.mark.parametrize("max_brightness", [None, 60])
@pytest.mark.parametrize("layout", ["new", "old"])
def test_a_list_made_of_the_tags_gives_the_same_images(tmp_path, layout, max_brightness):
    root = trees.write_bdd100k(tmp_path / "bdd100k", layout, night_list=False)
    made = night_list(root, max_brightness)
    assert made.lines[0] == "seg/images/train/00aad4a0-ee8135fe.jpg"
    assert (made.untagged, made.bright) == (2, 0 if max_brightness is None else 1)
    file = tmp_path / "bdd100k_night.txt"
    file.write_text("\n".join(made.lines) + "\n")
    tagged = BDD100KNight(str(root), night="tagged", max_brightness=max_brightness)
    assert BDD100KNight(str(root), list_file=str(file)).samples == tagged.samples
    assert (tagged.untagged, tagged.bright) == (made.untagged, made.bright)


def test_a_list_needs_no_masks(root):
    for mask in (root / "labels/sem_seg/masks").rglob("*.png"):
        mask.unlink()
    assert len(night_list(root).lines) == 4


def test_options_that_contradict_each_other(root):
    with pytest.raises(UserError, match=r"night is 'dark'; choose one of listed, tagged"):
        BDD100KNight(str(root), night="dark")
    with pytest.raises(UserError, match=r"list_file is for night=listed, but night is tagged"):
        BDD100KNight(str(root), night="tagged", list_file="list.txt")
    with pytest.raises(UserError, match=r"max_brightness is for night=tagged, but night is listed"):
        BDD100KNight(str(root), max_brightness=50)


def test_missing_and_stray_masks(root):
    (root / "images/10k/train/1f2e3d4c-5b6a7988.jpg").unlink()
    (root / f"labels/sem_seg/masks/{LISTED[1]}.png").unlink()
    with pytest.raises(
        UserError, match=r"BDD100K night: 1 of 3 images have no label, .*2b2c44c7.*masks/<split>/<id>\.png"
    ):
        BDD100KNight(str(root))
    dataset = BDD100KNight(str(root), check=False)
    assert [sample.key for sample in dataset.missing["label"]] == [LISTED[1]]
    assert [path.name for path in dataset.strays] == ["1f2e3d4c-5b6a7988.png"]


def test_colour_maps_are_never_read(root):
    (root / "labels/sem_seg/masks").rename(root / "elsewhere")
    with pytest.raises(UserError, match=r"no folder .*labels/sem_seg/masks; .*Colour maps cannot be used"):
        BDD100KNight(str(root))
    dataset = BDD100KNight(str(root), labelled=False)
    assert keys(dataset) == LISTED and "label" not in dataset.expected
    with pytest.raises(UserError, match="no label for"):
        dataset.label(0)
    (root / "elsewhere").rename(root / "labels/sem_seg/masks")
    color = root / f"labels/sem_seg/colormaps/{LISTED[0]}.png"
    (root / f"labels/sem_seg/masks/{LISTED[0]}.png").write_bytes(color.read_bytes())
    with pytest.raises(UserError, match=r"masks/train/00aad4a0-ee8135fe\.png is no label map: mode RGB"):
        BDD100KNight(str(root)).label(0)


def test_raw_ids_are_refused(root):
    raw = np.full(trees.SIZE, 10, np.uint8)  # building in BDD100K's own numbers, sky as a train id
    raw[:20] = 40
    Image.fromarray(raw).save(root / f"labels/sem_seg/masks/{LISTED[0]}.png")
    with pytest.raises(
        UserError, match=r"00aad4a0-ee8135fe\.png holds ids .*: 40 \(2560 pixels\); expected the train ids"
    ):
        BDD100KNight(str(root)).label(0)


def test_missing_images(root, tmp_path):
    with pytest.raises(UserError, match=r"no folder .*nowhere; check data_dir"):
        BDD100KNight(str(tmp_path / "nowhere"))
    (root / "images/10k/val").rename(root / "images/10k/validation")
    with pytest.raises(UserError, match=r"1 of 3 images of .* are not there, the first is seg/images/val/7d06fefd"):
        BDD100KNight(str(root))
    (root / "images").rename(root / "pictures")
    with pytest.raises(UserError, match=r"no folder .*images/10k; expected images/10k/<split>/<id>\.jpg"):
        BDD100KNight(str(root))
    (root / "images/10k").mkdir(parents=True)
    for night in ("listed", "tagged"):
        with pytest.raises(UserError, match=r"are not there|no images found"):
            BDD100KNight(str(root), night=night)


def test_broken_image_and_rotated_mask(root):
    image, mask = root / f"images/10k/{LISTED[0]}.jpg", root / f"labels/sem_seg/masks/{LISTED[0]}.png"
    dataset = BDD100KNight(str(root))
    Image.fromarray(np.zeros((128, 64), np.uint8)).save(mask)
    with pytest.raises(UserError, match=r"00aad4a0-ee8135fe\.png is 128 x 64, its image .* is 64 x 128"):
        dataset.label(0)
    image.write_bytes(image.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"00aad4a0-ee8135fe\.jpg cannot be read"):
        dataset.image(0)
    with pytest.raises(UserError, match=r"00aad4a0-ee8135fe\.jpg cannot be read"):
        BDD100KNight(str(root), night="tagged", max_brightness=100)
