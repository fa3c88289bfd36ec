"""Evaluation: scores at the label's own size, independent of how images are read."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from icda.data.base import Sample, SegmentationDataset
from icda.data.classes import CAMVID
from icda.data.loader import batches
from icda.evaluation import evaluate, predict
from icda.models import build_model
from icda.scores import percent, scores, table


class Files(SegmentationDataset):
    def __init__(self, folder: Path, size=None) -> None:
        samples = [Sample(p.stem, p, folder / f"{p.stem}_label.png") for p in sorted(folder.glob("?.png"))]
        super().__init__("files", CAMVID, folder, samples, size)


class Oracle(nn.Module):
    """Names the class that the red channel says, so that its score is known."""

    num_classes = len(CAMVID)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))

    def forward(self, images):
        classes = (images[:, 0] * 255 / 20).round().long()
        return nn.functional.one_hot(classes, self.num_classes).permute(0, 3, 1, 2).float()

    upsample = staticmethod(lambda logits, size: nn.functional.interpolate(logits, tuple(size), mode="bilinear"))


def write_files(tmp_path: Path, names: str) -> Path:
    for name in names:
        label = np.kron(np.random.default_rng(ord(name)).integers(0, 11, (4, 6)), np.ones((16, 16))).astype(np.uint8)
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.repeat(label[..., None] * 20, 3, 2))
        label[:5] = 255
        cv2.imwrite(str(tmp_path / f"{name}_label.png"), label)
    return tmp_path


@pytest.fixture
def files(tmp_path) -> Path:
    return write_files(tmp_path, "ab")


def test_a_perfect_model_scores_one(files):
    matrix = evaluate(Oracle(), Files(files), torch.device("cpu"))
    assert matrix.miou() == 1
    assert matrix.matrix.sum() == 2 * (64 - 5) * 96


def test_labels_keep_their_size_when_images_are_resized(files):
    seen = {}
    matrix = evaluate(
        Oracle(),
        Files(files, size=(32, 48)),
        torch.device("cpu"),
        on_prediction=lambda i, p: seen.update({i: p.shape}),
    )
    assert matrix.matrix.sum() == 2 * (64 - 5) * 96
    assert seen == {0: (64, 96), 1: (64, 96)}


@pytest.mark.slow
def test_workers_do_not_change_the_score(files):
    model = build_model("mit_b0", len(CAMVID), head_options={"channels": 8}, with_dar=False)
    matrices = [evaluate(model, Files(files), torch.device("cpu"), workers=w).matrix for w in (0, 2)]
    np.testing.assert_array_equal(*matrices)


class Halved(Oracle):
    """Wrong on half of what an oracle knows, so that the matrix has more than a diagonal."""

    def forward(self, images):
        logits = super().forward(images)
        return torch.where(torch.arange(logits.shape[-1]) % 2 == 0, logits, logits.roll(1, dims=1))


@pytest.mark.parametrize(("count", "processes"), [(5, 1), (5, 2), (5, 3), (2, 4)])
def test_processes_share_the_images_and_return_the_sum(count, processes, tmp_path, monkeypatch):
    data, cpu = Files(write_files(tmp_path, "abcde"[:count])), torch.device("cpu")
    whole = evaluate(Halved(), data, cpu).matrix
    monkeypatch.setattr("icda.evaluation.world_size", lambda: processes)
    parts, read = [], []
    original = Files.image
    monkeypatch.setattr(Files, "image", lambda self, index: read.append(index) or original(self, index))

    def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
        assert tensor.dtype == torch.int64
        parts.append(tensor.numpy().copy())
        return 0 * tensor + sum(torch.from_numpy(part) for part in parts)

    monkeypatch.setattr("icda.evaluation.sum_over_ranks", sum_over_ranks)
    for rank in range(processes):
        monkeypatch.setattr("icda.evaluation.rank", lambda rank=rank: rank)
        result = evaluate(Halved(), data, cpu)
    np.testing.assert_array_equal(result.matrix, whole)
    assert result.matrix.dtype == np.int64 and result.miou() < 1
    assert sorted(read) == list(range(count))


def _given_up_by(monkeypatch, others: list[bool]) -> list[list[bool]]:
    """Stand for the other processes; what this one says to them is kept."""
    said = []
    monkeypatch.setattr(
        "icda.evaluation.any_over_ranks", lambda flags, device: said.append(flags) or [any([*flags, *others])]
    )
    return said


@pytest.mark.parametrize("others", [[], [False], [True]])
def test_images_that_end_early_give_up_in_all_processes(others, files, monkeypatch):
    said = _given_up_by(monkeypatch, others)
    model = Oracle().train()
    assert (evaluate(model, Files(files), torch.device("cpu")) is None) == any(others)
    monkeypatch.setattr("icda.evaluation.batches", lambda *args, **options: itertools.islice(batches(*args), 1))
    assert evaluate(model, Files(files), torch.device("cpu")) is None
    assert said == [[False], [True]] and model.training


@pytest.mark.slow
def test_an_image_that_hangs_does_not_keep_from_giving_up(files):
    os.mkfifo(files / "c.png")
    (files / "c_label.png").symlink_to(files / "a_label.png")
    seen = []
    assert (
        evaluate(
            Oracle(),
            Files(files),
            torch.device("cpu"),
            workers=1,
            on_prediction=lambda index, prediction: seen.append(index),
            stop=lambda: len(seen) == 2,
        )
        is None
    )
    assert seen == [0, 1] and not multiprocessing.active_children()


def test_what_is_kept_image_by_image_is_for_one_process(files, monkeypatch):
    monkeypatch.setattr("icda.evaluation.world_size", lambda: 2)
    with pytest.raises(AssertionError):
        evaluate(Oracle(), Files(files), torch.device("cpu"), on_prediction=lambda index, prediction: None)
    with pytest.raises(AssertionError):
        evaluate(Oracle(), Files(files), torch.device("cpu"), observer=lambda scored: None)


def test_an_observer_sees_each_image_and_what_came_of_it(files):
    data, cpu, seen = Files(files), torch.device("cpu"), []
    matrix = evaluate(Halved(), data, cpu, observer=seen.append)
    np.testing.assert_array_equal(matrix.matrix, evaluate(Halved(), data, cpu).matrix)
    assert [scored.index for scored in seen] == [0, 1]
    np.testing.assert_array_equal(sum(scored.counts for scored in seen), matrix.matrix)
    for scored in seen:
        label, image = data.label(scored.index, resized=False), data.image(scored.index)
        np.testing.assert_array_equal(scored.label, label)
        np.testing.assert_allclose(scored.image.permute(1, 2, 0).numpy(), image / 255, atol=1e-6)
        logits = Halved()(scored.image[None])[0]
        np.testing.assert_array_equal(scored.prediction, logits.argmax(0).numpy())
        np.testing.assert_allclose(scored.confidence, logits.softmax(0).amax(0).numpy(), rtol=1e-6)


def test_some_images_alone(files):
    seen = []
    matrix = evaluate(Halved(), Files(files), torch.device("cpu"), observer=seen.append, indices=[1])
    assert [scored.index for scored in seen] == [1] and matrix.matrix.sum() == (64 - 5) * 96


def _evaluate_as(rank: int, processes: int, folders: list[str], store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=processes)
    for folder in folders:
        matrix = evaluate(Halved(), Files(Path(folder)), torch.device("cpu"), workers=rank).matrix
        np.save(f"{folder}_{rank}.npy", matrix)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_score_as_one(tmp_path):
    folders = [tmp_path / names for names in ("abcde", "a")]
    for folder in folders:
        folder.mkdir()
        write_files(folder, folder.name)
    torch.multiprocessing.spawn(_evaluate_as, (2, [str(f) for f in folders], str(tmp_path / "store")), nprocs=2)
    for folder in folders:
        whole = evaluate(Halved(), Files(folder), torch.device("cpu")).matrix
        for rank in range(2):
            np.testing.assert_array_equal(np.load(f"{folder}_{rank}.npy"), whole)


def test_the_mode_is_restored_and_the_model_unchanged(files):
    model = build_model("mit_b0", len(CAMVID), head_options={"channels": 8}, with_dar=False).train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    evaluate(model, Files(files), torch.device("cpu"))
    assert model.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_prediction_is_the_argmax_of_resized_logits():
    model = build_model("mit_b0", 5, head_options={"channels": 8}, with_dar=False).eval()
    x = torch.randn(1, 3, 40, 70)
    with torch.no_grad():
        logits = nn.functional.interpolate(model(x), (80, 141), mode="bilinear", align_corners=False)
        assert torch.equal(predict(model, x, (80, 141)), logits.argmax(1).to(torch.uint8))


def test_scores_are_plain_values_and_the_table_shows_them(files):
    matrix = evaluate(Oracle(), Files(files), torch.device("cpu"))
    matrix.matrix[3] = 0
    matrix.matrix[:, 3] = 0
    result = scores(matrix, CAMVID)
    assert result["iou"]["road"] is None and result["pixels"]["road"] == 0
    assert sum(result["pixels"].values()) == result["labelled_pixels"]
    text = table(result)
    assert "mIoU" in text and "not in the mean, since neither labelled nor predicted: road" in text
    assert percent(0.125) == "12.50" and percent(None) == "-"
