"""The loss guard: which terms are found, what is kept of a batch, and that a skipped step leaves no trace."""

from __future__ import annotations

from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from icda.data.classes import CITYSCAPES, ClassSet
from icda.models import build_model
from icda.training.dacs import DacsDraws
from icda.training.guard import Guard, snapshot
from icda.training.step import Batch, Draws, TrainStep

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.5])
DRAWS = Draws(True, DacsDraws((0, 13, 255), (((2, 0, 1, 3), (1.1, 0.9, 1.0, -0.1)),) * 2, (0.5, np.float64(0.7))))
TERMS = {"source": torch.tensor(float("nan")), "mix": torch.tensor(1.25), "enhanced": torch.tensor(float("inf"))}


def make_batch(size: tuple[int, int] = (64, 96)) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(2, 3, *size, generator=generator) for _ in range(4)]
    labels = [torch.randint(0, 19, (2, *size), generator=generator) for _ in range(2)]
    return Batch(images[0], labels[0], images[1], labels[1], images[2], images[3])


def hold(guard: Guard, batch: Batch, classes: ClassSet = CITYSCAPES, step: int = 123, rank: int = 1):
    return guard.hold(batch, DRAWS, TERMS, ["source", "enhanced"], step, rank, MEAN, STD, classes)


def test_terms_that_are_not_finite_are_named(tmp_path):
    guard = Guard(tmp_path, 0)
    assert guard.check(TERMS) == ["source", "enhanced"]
    assert guard.check({"mix": torch.tensor(3e38), "b": torch.tensor(-torch.inf)}) == ["b"]
    assert guard.check({"half": torch.tensor(6e4, dtype=torch.float16)}) == guard.check({}) == []
    assert list(tmp_path.iterdir()) == []


def test_terms_are_looked_at_with_one_synchronisation(tmp_path, monkeypatch):
    calls = []
    for name in ("item", "tolist", "__bool__", "cpu"):  # all that waits for a device
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *a, _o=original, _n=name: calls.append(_n) or _o(self, *a)
        )
    assert Guard(tmp_path, 0).check(dict.fromkeys("abcdef", torch.ones(()))) == []
    assert calls == ["tolist"]


def test_the_batch_can_be_opened_and_put_together_again(tmp_path):
    batch = make_batch()
    path = hold(Guard(tmp_path, 2), batch)
    assert path == tmp_path / "not_finite" / "step_000123_rank1.pt"
    content = torch.load(path, weights_only=True)
    again = Batch(**content["batch"])
    assert all(torch.equal(a, b) for a, b in zip(vars(again).values(), vars(batch).values(), strict=True))
    assert content["draws"]["target_is_reference"] is True
    assert content["draws"]["dacs"]["classes"] == [0, 13, 255] and content["draws"]["dacs"]["blur"] == [0.5, 0.7]
    assert content["draws"].keys() == asdict(DRAWS).keys()
    assert content["terms"] == pytest.approx({"source": np.nan, "mix": 1.25, "enhanced": np.inf}, nan_ok=True)
    assert content["not_finite"] == ["source", "enhanced"] and (content["step"], content["rank"]) == (123, 1)
    assert torch.equal(content["mean"], MEAN) and torch.equal(content["std"], STD)


def test_a_view_of_a_large_tensor_is_saved_without_the_rest(tmp_path):
    large = torch.zeros(200, 3, 64, 96)
    batch = Batch(large[:1], torch.zeros(1, 64, 96, dtype=torch.int64))
    assert hold(Guard(tmp_path, 2), batch).stat().st_size < 2 * (3 * 4 + 8) * 64 * 96


def test_the_picture_shows_every_field_and_marks_what_is_not_finite(tmp_path):
    batch = make_batch((160, 160))
    batch.source[0, 1, 40:80, 40:80] = float("nan")
    picture = cv2.imread(str(hold(Guard(tmp_path, 0), batch).with_suffix(".png")))[:, :, ::-1]
    top, gap = picture.shape[0] - 2 * 163, 3
    assert picture.shape == (top + 2 * (160 + gap), 6 * 160 + 5 * gap, 3)
    assert (picture[top + 40 : top + 80, 40:80] == (255, 0, 255)).all()
    assert (picture[top : top + 160, :160] == (255, 0, 255)).all(2).sum() == 40 * 40
    shown = picture[top + 163 : top + 323, 4 * 163 : 4 * 163 + 160]  # night of the second sample
    expected = batch.target[1].permute(1, 2, 0).numpy() * STD.numpy() + MEAN.numpy()
    np.testing.assert_array_equal(shown, (expected.clip(0, 1) * 255).round())
    label = picture[top : top + 160, 163 : 163 + 160]
    np.testing.assert_array_equal(label, CITYSCAPES.colorize(batch.source_label[0].numpy()))


def test_a_batch_of_the_source_alone(tmp_path):
    batch = Batch(torch.full((1, 3, 32, 32), float("inf")), torch.full((1, 32, 32), CITYSCAPES.ignore_index))
    path = hold(Guard(tmp_path, 0), batch)
    assert set(torch.load(path, weights_only=True)["batch"]) == {"source", "source_label"}
    assert path.with_suffix(".png").exists()


def test_a_disk_that_cannot_be_written_is_an_oserror(tmp_path):
    (tmp_path / "not_finite").write_text("in the way")
    with pytest.raises(OSError):
        hold(Guard(tmp_path, 0), make_batch())


def test_steps_are_counted_and_told(tmp_path):
    guard, path = Guard(tmp_path, 2, skipped=1), tmp_path / "x.pt"
    guard.skip()
    assert not guard.exceeded and guard.skipped == 2
    text = guard.text(["source", "mix"], 7, path)
    assert text.startswith(
        "step 7: the loss source, mix is not finite; the step is skipped, 2 of at most max_skipped=2"
    )
    assert str(path) in text
    guard.skip()
    assert guard.exceeded
    text = guard.text(["source"], 9, path)
    assert text.startswith("step 9: the loss source is not finite and max_skipped=2 such steps were skipped before")
    assert all(hint in text for hint in (str(path), "resume=", "schedule.lr", "schedule.warmup_steps", "precision="))


def test_with_none_to_be_skipped_the_first_ends_the_run(tmp_path):
    guard = Guard(tmp_path, 0)
    assert not guard.exceeded
    guard.skip()
    assert guard.exceeded
    assert guard.text(["source"], 0, tmp_path).startswith(
        f"step 0: the loss source is not finite; its batch lies in {tmp_path}; start again, or from an earlier"
    )


def test_a_step_with_nan_leaves_no_trace_in_the_buffers(loss_config):
    loss = loss_config()
    torch.manual_seed(0)
    student = build_model("resnet18", 19, head_options={"channels": 8}, dar_options={"mlp_ratio": 1}, with_dar=True)
    method = TrainStep(student, CITYSCAPES, loss, border=(2, 2)).train()
    draws = Draws(False, DacsDraws((0, 13)))
    batch = make_batch()
    method(batch, 0, draws)  # prototypes and running statistics are no longer those of the start
    before = {name: buffer.clone() for name, buffer in method.named_buffers()}
    restore = snapshot(method)
    method(replace(batch, source=batch.source * float("nan"), enhanced=batch.enhanced * float("nan")), 1, draws)
    broken = [name for name, buffer in method.named_buffers() if not torch.isfinite(buffer).all()]
    assert "pca.prototypes" in broken and any(n.startswith("student.head") for n in broken)
    assert any(n.startswith("student.encoder") and n.endswith("running_var") for n in broken)
    assert any("num_batches_tracked" in n and not torch.equal(b, before[n]) for n, b in method.named_buffers())
    restore()
    after = dict(method.named_buffers())
    assert after.keys() == before.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_snapshot_holds_more_than_once_and_for_buffers_that_are_set_anew():
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kept", torch.arange(3.0))
            self.register_buffer("hidden", torch.ones(2, dtype=torch.int64), persistent=False)

    part = Part()
    restore = snapshot(part)
    for _ in range(2):
        part.kept = torch.full((3,), float("nan"))
        part.hidden += 5
        restore()
        assert part.kept.tolist() == [0, 1, 2] and part.hidden.tolist() == [1, 1]
