"""A trained network in two lines: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import doctest
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import CONF, TINY
from hydra import compose, initialize_config_dir
from PIL import Image
from torch.nn import functional as F

import icda
from icda.data.classes import CAMVID, CITYSCAPES, ClassSet
from icda.errors import UserError
from icda.prediction import predict
from icda.prediction.inputs import InputSize
from icda.predictor import Predictor
from icda.training import checkpoint
from icda.training.checkpoint import ModelConfig, Trained, build_student
from icda.typed_config import build_group

VAL_SIZE = (32, 64)


@pytest.fixture(scope="module")
def config():
    """Of a training that was validated at 32 x 64."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [*TINY, "model.encoder.name=mit_b0", f"dataset.val.size={list(VAL_SIZE)}"])


@pytest.fixture(scope="module")
def run(tmp_path_factory, config) -> Path:
    """The folder of a training run: a student and a teacher with random weights."""
    torch.manual_seed(0)
    model = build_group(ModelConfig, config.model, "model")
    student, teacher = (build_student(model, len(CITYSCAPES), with_dar=False) for _ in range(2))
    folder = tmp_path_factory.mktemp("here") / "runs" / "mine"
    content = checkpoint.content_of(config, CITYSCAPES, student, teacher, 7, {}, metrics=None)
    checkpoint.save(folder / "checkpoints" / "best.pt", content)
    return folder


@pytest.fixture(scope="module")
def ckpt(run) -> Path:
    return run / "checkpoints" / "best.pt"


@pytest.fixture(scope="module")
def trained(ckpt) -> Trained:
    return checkpoint.load_trained(ckpt)


@pytest.fixture(scope="module")
def predictor(trained) -> Predictor:
    return Predictor(trained)


def picture(seed: int = 0, size: tuple[int, int] = (48, 80)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (6, 10, 3), np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)


def expected(predictor: Predictor, image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities by PyTorch's own resizing, softmax and maximum of all classes at once."""
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    model = predictor.model
    network = (torch.from_numpy(resized).permute(2, 0, 1) / 255 - model.mean[:, None, None]) / model.std[
        :, None, None
    ]
    with torch.no_grad():
        logits = F.interpolate(model(network[None]), image.shape[:2], mode="bilinear", align_corners=False)
    probability, labels = logits.softmax(1).max(1)
    return labels[0].numpy(), probability[0].numpy()


def test_importing_the_package_loads_neither_torch_nor_timm():
    code = (
        "import sys, icda; icda.load, icda.__version__; print(*{'torch', 'timm', 'numpy', 'cv2'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "\n" and found.stderr == ""


def test_the_version_is_the_projects():
    project = (CONF.parent / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.+)"$', project, re.MULTILINE)[1] == icda.__version__


def test_the_example_runs(run, monkeypatch):
    monkeypatch.chdir(run.parents[1])
    Image.fromarray(picture()).save("photo.jpg")
    (example,) = (found for found in doctest.DocTestFinder().find(icda.load, globs={}) if found.examples)
    runner = doctest.DocTestRunner()
    runner.run(example)
    assert runner.tries >= 7 and runner.failures == 0


def test_labels_and_confidence_are_those_of_plain_pytorch(predictor):
    image = picture(1, (50, 83))
    entering = InputSize(area=32 * 64).of((50, 83))
    assert entering == (35, 58)
    labels, confidence = predictor.predict_with_confidence(image)
    assert labels.dtype == np.uint8 and confidence.dtype == np.float32
    wanted_labels, wanted_confidence = expected(predictor, image, entering)
    np.testing.assert_array_equal(labels, wanted_labels)
    np.testing.assert_allclose(confidence, wanted_confidence, atol=1e-6)
    np.testing.assert_array_equal(predictor.predict(image), labels)
    assert len(np.unique(labels)) > 1


@pytest.mark.parametrize("size", ["auto", "original", (40, 40)])
@pytest.mark.parametrize("teacher", [False, True])
def test_labels_are_those_that_the_script_writes(tmp_path, ckpt, size, teacher):
    Image.fromarray(picture(2, (60, 100))).save(tmp_path / "a.png")
    given = size if isinstance(size, str) else list(size)
    overrides = [f"ckpt={ckpt}", f"input={tmp_path / 'a.png'}", f"size={given}", f"teacher={teacher}", "opacity=0.3"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("predict", [*overrides, "device=cpu", "workers=0", "colors=true", "progress=false"])
    written = tmp_path / "out"
    predict(cfg, written)
    predictor = icda.load(ckpt, "cpu", teacher=teacher, size=size)
    labels = predictor.predict(picture(2, (60, 100)))
    np.testing.assert_array_equal(np.asarray(Image.open(written / "labels" / "a.png")), labels)
    np.testing.assert_array_equal(np.asarray(Image.open(written / "colors" / "a.png")), predictor.color(labels))
    assert (labels != icda.load(ckpt, "cpu", teacher=not teacher, size=size).predict(picture(2, (60, 100)))).any()


def test_a_run_folder_is_its_best_checkpoint(run, predictor):
    np.testing.assert_array_equal(icda.load(str(run), "cpu").predict(picture()), predictor.predict(picture()))


def test_a_published_checkpoint(tmp_path, published_b1):
    torch.save({"state_dict": published_b1}, tmp_path / "icda.ckpt")
    predictor = icda.load(tmp_path / "icda.ckpt", "cpu", size=(32, 64))
    assert predictor.classes == CITYSCAPES and predictor.size == InputSize(fixed=(32, 64))
    np.testing.assert_array_equal(predictor.predict(picture()), expected(predictor, picture(), (32, 64))[0])


def test_what_a_predictor_tells(predictor, trained, ckpt):
    assert predictor.classes == CITYSCAPES and predictor.device == torch.device("cpu")
    assert predictor.size == InputSize(area=32 * 64) and not predictor.model.training
    assert repr(predictor) == "Predictor(19 cityscapes classes, entering at an area of 2048 pixels, on cpu)"
    for size, wanted in (
        (None, InputSize(area=2048)),
        ("auto", InputSize(area=2048)),
        ("original", InputSize()),
        ([40, 50], InputSize(fixed=(40, 50))),
        (torch.Size([40, 50]), InputSize(fixed=(40, 50))),
        (np.array([40, 50]), InputSize(fixed=(40, 50))),
    ):
        assert Predictor(trained, size).size == wanted
    assert icda.load(ckpt, torch.device("cpu")).device.type == "cpu"


@pytest.mark.parametrize(
    "size", ["big", "", 512, (512,), (0, 8), (8, -1), (8.0, 8.0), (True, True), (1, 2, 3), ("8", "8"), {"height": 8}]
)
def test_sizes_that_are_none(trained, size):
    with pytest.raises(UserError, match=r"^size=.* is not known; give auto, original, or \(height, width\) in"):
        Predictor(trained, size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "nowhere/best.pt"}, "there is no .*nowhere"),
        ({"device": "gpu"}, "device=gpu is not known; choose one of auto, cpu"),
        ({"device": "cuda:99"}, "device=cuda:99, but PyTorch"),
    ],
)
def test_what_cannot_be_loaded(ckpt, arguments, message):
    with pytest.raises(UserError, match=message):
        icda.load(**{"path": ckpt, **arguments})


RGB = "expected an RGB picture, a NumPy array (H, W, 3) of uint8; OpenCV's are BGR: image[:, :, ::-1]; "
GREY = "repeat a grey-level picture with np.dstack([image] * 3)"
ALPHA = "drop the transparency of RGBA with image[:, :, :3]"
LAST, ONE = "put the channels last with image.transpose(1, 2, 0)", "[predictor.predict(image) for image in images]"
BYTES, FLOAT = "make it 8-bit with image.astype(np.uint8)", "(image * 255).round().astype(np.uint8) if its values"
HOSTILE = {
    "grey": (np.zeros((8, 9), np.uint8), "an array (8, 9) of uint8", GREY),
    "grey plane": (np.zeros((8, 9, 1), np.uint8), "an array (8, 9, 1) of uint8", GREY),
    "rgba": (np.zeros((8, 9, 4), np.uint8), "an array (8, 9, 4) of uint8", ALPHA),
    "two channels": (np.zeros((8, 9, 2), np.uint8), "an array (8, 9, 2) of uint8", "width and three channels"),
    "planes": (np.zeros((3, 8, 9), np.uint8), "an array (3, 8, 9) of uint8", LAST),
    "float": (np.zeros((8, 9, 3)), "an array (8, 9, 3) of float64", FLOAT),
    "float planes": (np.zeros((3, 8, 9), np.float32), "an array (3, 8, 9) of float32", f"{LAST}, then make it 8-bit"),
    "int64": (np.zeros((8, 9, 3), np.int64), "an array (8, 9, 3) of int64", BYTES),
    "int8": (np.zeros((8, 9, 3), np.int8), "an array (8, 9, 3) of int8", BYTES),
    "bool": (np.zeros((8, 9, 3), bool), "an array (8, 9, 3) of bool", BYTES),
    "uint16": (np.zeros((8, 9, 3), np.uint16), "an array (8, 9, 3) of uint16", "(image // 257).astype(np.uint8)"),
    "batch": (np.zeros((2, 8, 9, 3), np.uint8), "an array (2, 8, 9, 3) of uint8", ONE),
    "batch of planes": (np.zeros((2, 3, 8, 9), np.uint8), "(2, 3, 8, 9)", "predict(image.transpose(1, 2, 0)) for"),
    "no rows": (np.zeros((0, 9, 3), np.uint8), "an array (0, 9, 3) of uint8", "it holds no pixel"),
    "empty": (np.zeros(0), "an array (0,) of float64", "it holds no pixel"),
    "number": (np.uint8(3), "of type uint8", "convert it with np.asarray"),
    "scalar": (np.array(3, np.uint8), "an array () of uint8", "height, width and three channels"),
    "objects": (np.full((8, 9, 3), None), "an array (8, 9, 3) of object", BYTES),
    "tensor": (torch.zeros(3, 8, 9), "a tensor (3, 8, 9) of float32", f".cpu().float().numpy(), then {LAST}, then"),
    "byte tensor": (torch.zeros(8, 9, 3, dtype=torch.uint8), "a tensor (8, 9, 3) of uint8", ".cpu().numpy()"),
    "bfloat tensor": (torch.zeros(8, 9, 3, dtype=torch.bfloat16), "of bfloat16", FLOAT),
    "batch of tensors": (torch.zeros(2, 3, 8, 9), "a tensor (2, 3, 8, 9) of float32", "one picture at a time"),
    "pil": (Image.new("RGB", (9, 8)), "a PIL image 9 x 8 (width x height) of mode", 'give np.asarray(image.'),
    "text": ("a.png", "the path 'a.png'", "icda.data.io.read_image(path)"),
    "path": (Path("b.png"), "the path 'b.png'", "icda.data.io.read_image(path)"),
    "none": (None, "None", "cv2.imread gives None for a file that it cannot read"),
    "list": ([np.zeros((8, 9, 3), np.uint8)], "of type list", ONE),
    "bytes": (b"\x89PNG", "of type bytes", "convert it with np.asarray"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_picture_is_refused_with_the_mend(predictor, name):
    image, got, mend = HOSTILE[name]
    for call in (predictor.predict, predictor.predict_with_confidence, predictor.overlay):
        with pytest.raises(UserError) as caught:
            call(image)
        message = str(caught.value)
        assert message.startswith("the image is ") and got in message and "\n" not in message
        assert RGB in message and mend in message.partition(RGB)[2]


@pytest.mark.parametrize(
    "name",
    [
        "grey",
        "grey plane",
        "rgba",
        "planes",
        "float",
        "float planes",
        "int64",
        "uint16",
        "tensor",
        "bfloat tensor",
        "pil",
    ],
)
def test_the_mends_work(predictor, name):
    """What the message says, run as it stands, makes a picture of the input."""
    image = HOSTILE[name][0]
    with pytest.raises(UserError) as caught:
        predictor.predict(image)
    mends = str(caught.value).partition(RGB)[2]
    steps = re.findall(r"(?:with|give) ((?:np|image|\(image).*?)(?=, then| if |,? with image|$)", mends)
    assert steps, mends
    for step in steps:
        image = eval(step, {"image": image, "np": np})
    assert predictor.predict(image).shape == (8, 9)


def awkward(kind: str) -> np.ndarray:
    """``picture()`` with other strides or flags."""
    image = picture()
    if kind == "read-only":
        image.flags.writeable = False
    elif kind == "BGR turned":
        image = np.ascontiguousarray(image[:, :, ::-1])[:, :, ::-1]
    elif kind == "mirrored twice":
        image = np.ascontiguousarray(image[::-1, ::-1])[::-1, ::-1]
    elif kind == "Fortran":
        image = np.asfortranarray(image)
    elif kind == "part":
        image = np.pad(image, ((3, 4), (5, 6), (0, 1)))[3:-4, 5:-6, :3]
    elif kind == "every second":
        image = np.repeat(np.repeat(image, 2, 0), 2, 1)[::2, ::2]
    elif kind == "planes turned":
        image = np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0)
    elif kind == "subclass":
        image = np.ma.asarray(image)
    return image


@pytest.mark.parametrize("size", ["auto", "original"])
@pytest.mark.parametrize(
    "kind",
    ["read-only", "BGR turned", "mirrored twice", "Fortran", "part", "every second", "planes turned", "subclass"],
)
def test_strides_and_flags_do_not_matter(trained, kind, size):
    predictor, image = Predictor(trained, size), awkward(kind)
    np.testing.assert_array_equal(image, picture())
    labels = predictor.predict(picture())
    np.testing.assert_array_equal(predictor.predict(image), labels)
    np.testing.assert_array_equal(predictor.overlay(image, labels[::-1][::-1]), predictor.overlay(picture()))
    np.testing.assert_array_equal(image, picture())


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (33, 31)])
@pytest.mark.parametrize("size", ["auto", "original", (1, 1)])
def test_small_and_narrow_pictures(trained, shape, size):
    predictor = Predictor(trained, size)
    labels, confidence = predictor.predict_with_confidence(np.full((*shape, 3), 90, np.uint8))
    assert labels.shape == confidence.shape == shape and labels.max() < 19
    assert 1 / 19 <= confidence.min() <= confidence.max() <= 1


def test_too_little_memory_is_told(trained):
    with pytest.raises(UserError, match="the memory does not suffice for a picture"):
        Predictor(trained, (2**31 - 1, 2**31 - 1)).predict(picture())


def test_overlay_and_colors(predictor):
    image, labels = picture(3), np.zeros((48, 80), np.uint8)
    labels[:, 40:], labels[:, 60:] = 10, 255
    sky = np.array(CITYSCAPES.palette[10])
    colors = predictor.color(labels)
    assert (colors[:, 40:60] == sky).all() and (colors[:, 60:] == 0).all()
    blended = predictor.overlay(image, labels, opacity=0.25)
    assert np.abs(blended[:, 40:60] - (0.25 * sky + 0.75 * image[:, 40:60])).max() <= 0.5 + 1e-6
    np.testing.assert_array_equal(blended[:, 60:], image[:, 60:])
    np.testing.assert_array_equal(predictor.overlay(image, opacity=1), predictor.color(predictor.predict(image)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.overlay(picture(), opacity=2), "the opacity is 2, expected a number from 0 to 1"),
        (lambda p: p.overlay(picture(), opacity=float("nan")), "the opacity is nan"),
        (lambda p: p.overlay(picture(), opacity="much"), "the opacity is 'much', expected"),
        (lambda p: p.overlay(picture(), np.zeros((80, 48), np.uint8)), "labels are 80 x 48 .* image is 48 x 80"),
        (lambda p: p.overlay(picture(), np.zeros((48, 80), np.int64)), r"labels are an array \(48, 80\) of int64"),
        (lambda p: p.color(np.zeros((48, 80, 3), np.uint8)), r"labels are an array \(48, 80, 3\) of uint8, expected"),
        (lambda p: p.color(torch.zeros(4, 4)), r"labels are a tensor \(4, 4\) of float32, expected train ids"),
        (lambda p: p.color(None), "the labels are None, expected train ids"),
    ],
)
def test_labels_and_opacities_that_are_none(predictor, call, message):
    with pytest.raises(UserError, match=message):
        call(predictor)


def test_other_classes_and_sizes_follow_the_training(config):
    model = build_student(build_group(ModelConfig, config.model, "model"), len(CAMVID), with_dar=False).eval()
    own = config.copy()
    own.dataset.val.size = None
    predictor = Predictor(Trained(model, CAMVID, own, 0, {}))
    assert isinstance(predictor.classes, ClassSet) and predictor.classes.names[0] == "sky"
    assert predictor.size == InputSize()
    np.testing.assert_array_equal(predictor.predict(picture()), expected(predictor, picture(), (48, 80))[0])


def test_threads_may_share_a_predictor(predictor):
    images = [picture(seed, (40 + seed, 60 + 3 * seed)) for seed in range(12)]
    before = {name: value.clone() for name, value in predictor.model.state_dict().items()}
    alone = [predictor.predict_with_confidence(image) for image in images]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(predictor.predict_with_confidence, images * 2))
    for (labels, confidence), (wanted, sure) in zip(together, alone * 2, strict=True):
        np.testing.assert_array_equal(labels, wanted)
        np.testing.assert_allclose(confidence, sure, atol=1e-6)
    assert torch.is_grad_enabled() and not predictor.model.training
    for name, value in predictor.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_predictor_can_be_pickled(predictor):
    again = pickle.loads(pickle.dumps(predictor))
    assert (again.classes, again.size, again.device) == (predictor.classes, predictor.size, predictor.device)
    np.testing.assert_array_equal(again.predict(picture()), predictor.predict(picture()))


def test_windows_and_the_mirror_image(trained, predictor):
    image = picture(4, (64, 96))
    plain = Predictor(trained, "original")
    assert (Predictor(trained, "original", window=(64, 96)).predict(image) == plain.predict(image)).all()
    windows = Predictor(trained, "original", window=(32, 48), stride=[32, 48]).predict(image)
    for y, x in ((0, 0), (0, 48), (32, 0), (32, 48)):
        part = np.s_[y : y + 32, x : x + 48]
        np.testing.assert_array_equal(windows[part], plain.predict(image[part]))
    both = Predictor(trained, "original", flip=True)
    labels, sure = both.predict_with_confidence(image)
    mirrored, as_sure = both.predict_with_confidence(image[:, ::-1])
    np.testing.assert_array_equal(mirrored[:, ::-1], labels)
    np.testing.assert_allclose(as_sure[:, ::-1], sure, atol=1e-6)
    assert (labels != plain.predict(image)).any()


def test_precisions(trained, predictor):
    half = Predictor(trained, precision="bf16")
    labels, confidence = half.predict_with_confidence(picture())
    exact = predictor.predict_with_confidence(picture())
    assert confidence.dtype == np.float32 and (confidence != exact[1]).any()
    np.testing.assert_allclose(confidence, exact[1], rtol=0.05)
    assert (labels == exact[0]).mean() > 0.9
    with pytest.raises(UserError, match="precision=fp16 needs a GPU"):
        Predictor(trained, precision="fp16")
    with pytest.raises(UserError, match="precision=half is not known"):
        Predictor(trained, precision="half")
    with pytest.raises(UserError, match=r"^stride=.* is given, but no window"):
        Predictor(trained, stride=(8, 8))
