"""scripts/explain.py: from a checkpoint and two pictures to figures, numbers and a page; mistakes in one line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import CONF, REFERENCE
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from reference import recipe
from test_cli_startup import loaded_by
from torch.nn import functional as F

from icda.cli import run
from icda.data.classes import CITYSCAPES
from icda.data.io import read_image
from icda.data.stream import normalize
from icda.explanation import run as explanation_run
from icda.explanation.dar_view import view_dar
from icda.explanation.look import check_dar, checkpoint_of, look, prototypes_of, similarities
from icda.explanation.points import chosen_points
from icda.explanation.run import explain
from icda.explanation.settings import ExplainConfig
from icda.models import PCA, build_model
from icda.prediction.inputs import InputSize
from icda.training import checkpoint
from icda.training.checkpoint import load_trained
from icda.training.dacs import pseudo_label
from icda.training.mean_teacher import use_batch_statistics

THRESHOLD = 0.06
POINTS = "points=[[0,0],[95,191]]"
EARLIER = ("query9_stage1_local.png", "prototypes.png", "mine.png", "index.html")


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    """A checkpoint of random weights, with prototypes of which the last class was never learnt."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["model.head.channels=8", "model.dar.mlp_ratio=1"])
    torch.manual_seed(0)
    model, count = OmegaConf.to_container(config.model), len(CITYSCAPES)
    network = build_model("mit_b0", count, head_options=model["head"], dar_options=model["dar"], with_dar=True)
    learnt = {name for name, _ in network.named_parameters()}
    student, teacher = (
        {k: v + 0.05 * torch.randn_like(v) if k in learnt else v.clone() for k, v in network.state_dict().items()}
        for _ in range(2)
    )
    pca = PCA(count)
    pca.prototypes[:-1] = torch.randn(count - 1, count)
    classes = {name: getattr(CITYSCAPES, name) for name in ("name", "names", "ignore_index", "things")}
    return {
        "config": {
            "model": model,
            "dataset": {"name": "demo", "val": {"size": [64, 128]}},
            "loss": {"pseudo_label_threshold": THRESHOLD, "pseudo_label_with_dar": True},
        },
        "classes": {**classes, "palette": [list(color) for color in CITYSCAPES.palette]},
        "step": 7,
        "student": student,
        "teacher": teacher,
        "training": {
            "frozen": None,
            "pca": pca.state_dict(),
            "optimizer": {"state": {}, "param_groups": []},
            "best_miou": 0.0,
            "seconds": 0.0,
        },
    }


@pytest.fixture(scope="module")
def write_checkpoint(content) -> Callable[..., Path]:
    """Writes the checkpoint, or a part of it."""

    def write(path: Path, with_dar: bool = True, resumable: bool = True, teacher: bool = True) -> Path:
        kept = {key: value for key, value in content.items() if resumable or key != "training"}
        for role in ("student", "teacher"):
            kept[role] = {k: v for k, v in content[role].items() if with_dar or not k.startswith("dar.")}
        checkpoint.save(path, kept if teacher else {**kept, "teacher": None})
        return path

    return write


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory, write_checkpoint) -> Path:
    """A run's last checkpoint; the best one, which cannot be resumed, lies beside it."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    write_checkpoint(folder / "best.pt", resumable=False)
    return write_checkpoint(folder / "last.pt")


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    """A night picture of 96 x 192, and a day picture of another size and shape."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, size in (("night", (96, 192)), ("day", (150, 200))):
        small = rng.integers(0, 120 if name == "night" else 256, (6, 12, 3), np.uint8)
        cv2.imwrite(str(folder / f"{name}.png"), cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC))
    return folder / "night.png", folder / "day.png"


@pytest.fixture
def here(monkeypatch, tmp_path, ckpt, pair, capsys):
    """Runs the script's work in this process: exit status, standard error, the run's folder."""

    def run_here(*arguments: str) -> tuple[int, str, Path]:
        folder = tmp_path / "run"
        night, day = pair
        given = {"ckpt": ckpt, "night": night, "day": day, "hydra.run.dir": folder, "device": "cpu", "tile": 160}
        given = {k: v for k, v in given.items() if not any(a.startswith(f"{k}=") for a in arguments)}
        monkeypatch.setattr(sys, "argv", ["explain.py", *(f"{k}={v}" for k, v in given.items()), *arguments])
        status = run("explain", explain, CONF)
        return status, capsys.readouterr().err, folder

    return run_here


def one_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


@pytest.fixture(scope="module")
def explained(tmp_path_factory, ckpt, pair) -> Path:
    """The folder of a run with the mean teacher of a run's folder, where figures of an earlier run lay; read only."""
    folder = tmp_path_factory.mktemp("explained")
    for name in EARLIER:
        (folder / name).write_bytes(b"old")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = {"ckpt": ckpt.parent.parent, "night": pair[0], "day": pair[1], "device": "cpu", "tile": 160}
        cfg = compose("explain", [*(f"{k}={v}" for k, v in settings.items()), POINTS])
    explain(cfg, folder)
    return folder


def coupled_by_hand(trained, pair, size, teacher: bool) -> torch.Tensor:
    """Logits of the night picture coupled to the day picture, as the step of a training makes them."""
    model = trained.model
    if teacher:
        use_batch_statistics(model)
    mean, std = model.mean.numpy(), model.std.numpy()
    resized = [cv2.resize(read_image(path), size[::-1], interpolation=cv2.INTER_LINEAR) for path in pair]
    night, day = (model.encoder(normalize(picture, mean, std)[None]) for picture in resized)
    return F.interpolate(model.head(model.dar(night, day)), size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("teacher", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_figures_page_and_numbers(request, here, ckpt, pair, teacher):
    if teacher:
        folder = request.getfixturevalue("explained")
    else:
        status, err, folder = here(POINTS, "teacher=false")
        assert status == 0, err
    names = {path.stem for path in folder.glob("*.png")} - {"mine"}
    expected = {"overview", "prototypes", "pseudo_labels", "stage1_offsets", "stage2_offsets"}
    kinds = ("deformable", "local")
    assert names == expected | {f"query{q}_stage{s}_{kind}" for q in (1, 2) for s in (1, 2) for kind in kinds}
    assert all(cv2.imread(str(folder / f"{name}.png")) is not None for name in names)
    found = json.loads((folder / "explain.json").read_text())
    with torch.no_grad():
        logits = coupled_by_hand(load_trained(ckpt, teacher=teacher), pair, (64, 128), teacher)
    pseudo = pseudo_label(logits, THRESHOLD, (0, 0))
    assert found["size"] == [64, 128] and found["threshold"] == THRESHOLD and found["step"] == 7
    assert found["share_above_threshold"] == pytest.approx(float(pseudo.share), abs=2e-4)
    assert found["mean_confidence"] == pytest.approx(float(pseudo.confidence), rel=1e-4)
    corners = [CITYSCAPES.names[pseudo.labels[0, y, x]] for y, x in ((0, 0), (-1, -1))]
    assert [query["coupled"] for query in found["queries"]] == corners
    assert found["grids"] == [[4, 8], [2, 4]] and found["prototypes"] == len(CITYSCAPES) - 1
    page = (folder / "index.html").read_text()
    assert page.count("<img ") == len(names) and "Query 2" in page and 'src="data:' in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing is fetched


def test_points_are_chosen_where_none_are_given(here, ckpt, pair):
    status, err, folder = here("count=3")
    assert status == 0, err
    found = json.loads((folder / "explain.json").read_text())
    with torch.no_grad():
        labels = coupled_by_hand(load_trained(ckpt, teacher=True), pair, (64, 128), True).argmax(1)[0].numpy()
    labels = cv2.resize(labels.astype(np.uint8), (192, 96), interpolation=cv2.INTER_NEAREST_EXACT)
    assert [query["point"] for query in found["queries"]] == chosen_points(labels, 3).tolist()
    assert "the day picture is distorted" in (folder / "explain.log").read_text()


def test_a_checkpoint_without_prototypes_is_told_in_one_line(here, tmp_path, write_checkpoint):
    path = write_checkpoint(tmp_path / "best.pt", resumable=False)
    assert prototypes_of(path) is None
    status, err, folder = here(f"ckpt={path}", "count=1", "day=enhanced")
    assert status == 0, err
    lines = [line for line in (folder / "explain.log").read_text().splitlines() if "prototypes" in line]
    assert len(lines) == 1 and lines[0].startswith(f"{path} holds no prototypes")
    assert not (folder / "prototypes.png").exists()
    assert "The checkpoint holds none" in (folder / "index.html").read_text()


def test_of_a_runs_folder_the_checkpoint_with_prototypes_is_taken(explained, ckpt, tmp_path, write_checkpoint):
    found = json.loads((explained / "explain.json").read_text())
    assert found["prototypes"] == len(CITYSCAPES) - 1 and found["checkpoint"] == str(ckpt)
    best = write_checkpoint(tmp_path / "mine" / "checkpoints" / "best.pt", resumable=False)
    assert checkpoint_of(str(tmp_path / "mine")) == best


def test_figures_of_an_earlier_run_do_not_stay(here, explained, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in EARLIER:
        (folder / name).write_bytes(b"old")

    def interrupted(path: Path, picture: np.ndarray) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(explanation_run, "write_picture", interrupted)
    assert here("count=1")[0] == 130
    assert sorted(path.name for path in folder.glob("*.*") if path.suffix != ".log") == ["mine.png"]
    assert not (explained / "query9_stage1_local.png").exists() and (explained / "mine.png").read_bytes() == b"old"
    assert (explained / "prototypes.png").read_bytes() != b"old"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["night=nowhere.png"], "night=nowhere.png does not exist; give a PNG or a JPEG"),
        (["day=."], "day=. is no file; give a PNG or a JPEG"),
        (["points=[[96,0]]"], "[96, 0] lies outside of the night picture, which is 96 x 192"),
        (["points=[[1.5,0]]"], "points[0][0]=1.5 has the wrong type; expected int"),
        (["points=[[1]]"], "[1] is no point"),
        (["count=0"], "count=0 is out of range; expected from 1 to 20"),
        (["size=[16,32]"], "enters at 16 x 32 (height x width), too small for DAR, which needs 32 a side"),
        (["size=small"], "size=small is out of range; expected auto, original, or [height,width]"),
        (["threshold=2"], "threshold=2.0 is out of range; expected from 0 to 1, or null"),
        (["tile=5"], "tile=5 is out of range"),
        (["opacity=2"], "opacity=2.0 is out of range"),
        (["nigth=x.png"], "nigth is not a setting; choose one of"),
    ],
)
def test_mistakes(here, arguments, expected):
    status, err, _ = here(*arguments)
    assert status == 1 and expected in one_line(err)


@pytest.mark.parametrize(("key", "value"), [("ckpt", "???"), ("night", ""), ("day", "null")])
def test_what_must_be_given(here, key, value):
    status, err, _ = here(f"{key}={value}")
    assert status == 1 and f"{key} is missing; give it as {key}=" in one_line(err)


@pytest.mark.parametrize("owner", ["InputSize.resize", "view_dar"])
def test_too_little_memory_is_told_in_one_line(here, monkeypatch, owner):
    def full(*_args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(f"icda.explanation.look.{owner}", full)
    status, err, _ = here("size=[64,96]")
    expected = "the memory does not suffice for a picture that enters the network at 64 x 96"
    assert status == 1 and expected in one_line(err)


def test_a_model_without_dar_is_told(here, tmp_path, write_checkpoint):
    path = write_checkpoint(tmp_path / "source_only.pt", with_dar=False)
    status, err, _ = here(f"ckpt={path}")
    expected = f"{path} holds no DAR: its training needed none (loss=source_only"
    assert status == 1 and expected in one_line(err)
    without = write_checkpoint(tmp_path / "without.pt", with_dar=False, teacher=False)
    assert expected.replace(str(path), str(without)) in one_line(here(f"ckpt={without}")[1])


def test_a_checkpoint_without_a_teacher_is_told(here, tmp_path, write_checkpoint):
    path = write_checkpoint(tmp_path / "a.pt", teacher=False)
    status, err, _ = here(f"ckpt={path}")
    assert status == 1 and "holds no mean teacher, since none was trained; use teacher=false" in one_line(err)


def test_a_teacher_without_dar_beside_a_student_with_one_is_told(here, ckpt, tmp_path):
    content = checkpoint.read_file(ckpt)
    content["teacher"] = {name: value for name, value in content["teacher"].items() if not name.startswith("dar.")}
    path = tmp_path / "teacher.pt"
    checkpoint.save(path, {key: content[key] for key in content if key not in ("format", "checksums")})
    status, err, _ = here(f"ckpt={path}")
    assert status == 1 and "none of the mean teacher; give teacher=false" in one_line(err)


@pytest.mark.slow
def test_a_published_checkpoint_will_do(here, tmp_path, published_b1):
    path = tmp_path / "published.pth"
    torch.save({"state_dict": dict(published_b1)}, path)
    status, err, folder = here(f"ckpt={path}", "teacher=false", "count=1", "size=[64,128]")
    assert status == 0, err
    found = json.loads((folder / "explain.json").read_text())
    assert found["threshold"] == 0.968 and found["prototypes"] is None and found["step"] is None


def test_positions_are_those_of_the_published_implementation(reference_model):
    pictures = [recipe.image(f"pub.{kind}", (1, 3, 128, 256)) for kind in ("night", "day")]
    with torch.no_grad():
        maps = [reference_model.encoder(picture) for picture in pictures]
    _, views = view_dar(reference_model.dar, *maps, np.array([[0.5, 0.5]]))
    with np.load(REFERENCE / "forward_mit_b1.npz") as reference:
        for view, name in zip(views, ("pos_stage3", "pos_stage4"), strict=True):
            last = np.array(view.size) - 1
            np.testing.assert_allclose(
                view.deformable.positions, (reference[name][0] + 1) / 2 * last, atol=2e-5 * last.max()
            )


def test_similarities_are_cosines_and_unknown_where_nothing_was_learnt():
    prototypes = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    prototypes[3] = 0
    found = similarities(prototypes.numpy())
    expected = F.cosine_similarity(prototypes[:, None], prototypes[None], dim=-1).numpy()
    known = [0, 1, 2, 4]
    np.testing.assert_allclose(found[np.ix_(known, known)], expected[np.ix_(known, known)], atol=1e-6)
    assert np.isnan(found[3]).all() and np.isnan(found[:, 3]).all()


def test_pseudo_labels_without_dar_are_those_of_the_night_picture_alone(ckpt, pair):
    trained = load_trained(ckpt, teacher=True)
    trained.config.loss.pseudo_label_with_dar = False
    check_dar(trained, "x")
    seen = look(trained, *map(read_image, pair), InputSize(fixed=(64, 128)), lambda labels: np.array([[0, 0]]), True)
    assert seen.pseudo is seen.alone and (seen.alone.confidence != seen.coupled.confidence).any()


def test_every_setting_is_read():
    source = "".join(path.read_text() for path in (CONF.parent / "icda" / "explanation").glob("*.py"))
    keys = [key for key in OmegaConf.load(CONF / "explain.yaml") if key not in ("defaults", "hydra")]
    assert keys == list(ExplainConfig.__dataclass_fields__)
    assert [key for key in keys if f"config.{key}" not in source] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("explain", ["ckpt=a.pt", "night=a.png", "day=b.png", "count=0"], "count=0 is out of range"),
        ("explain", ["ckpt=a.pt", "night=a.png"], "day is missing; give it as day=day.png, or day=enhanced"),
        ("show_cem", ["seed=-1"], "seed=-1 is out of range"),
        ("show_cem", ["dataset=nope"], "dataset=nope is not known"),
    ],
)
def test_a_mistake_in_the_settings_is_told_before_anything_is_loaded(tmp_path, script, arguments, expected):
    names, said = loaded_by(script, f"hydra.run.dir={tmp_path}", *arguments)
    assert names == set() and said.startswith(f"error: {expected}") and "\n" not in said.strip()
