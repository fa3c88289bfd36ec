"""The step of training that is measured: the real one, with what was asked for."""

from __future__ import annotations

import json

import pytest
import torch
from benchmark_runs import COMMON, composed, run_benchmark

from icda.benchmark import train
from icda.benchmark.flops import count_gflop
from icda.benchmark.settings import read_settings, train_settings
from icda.benchmark.train import build_engine, dearest, random_batch
from icda.data.classes import CITYSCAPES
from icda.errors import UserError
from icda.training.engine import Engine
from icda.training.precision import DTYPES

CPU = torch.device("cpu")


def engine_of(folder, *overrides):
    return build_engine(train_settings(read_settings(composed(*overrides))), CITYSCAPES, CPU, folder)


def test_a_step_as_a_training_takes_it(tmp_path):
    summary, lines = run_benchmark(tmp_path, "what=train", "steps=1")
    assert json.loads(lines[-1]) == summary and set(summary) >= COMMON and summary["what"] == "train"
    assert all(summary[name] > 0 for name in ("peak_memory_gb", "gflop", "peak_gflops", "images_per_second"))
    seconds = summary["seconds"]["median"]
    assert summary["images_per_second"] == pytest.approx(2 / seconds)
    assert summary["seconds_times_peak"] == pytest.approx(seconds * summary["peak_gflops"])
    assert summary["share_of_peak"] == pytest.approx(summary["gflop"] / seconds / summary["peak_gflops"])
    beside = {"draws", "guard check", "gradient norms", "optimiser step", "teacher update"}
    assert set(summary["rows"]) == {"step", *beside} and summary["rows"]["step"] == seconds
    share = sum(summary["rows"][name] for name in beside) / seconds
    assert summary["between_steps_share"] == pytest.approx(share)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Runs the benchmark with a stand-in for the engine's step; returns what reached it, and the summary."""

    def run(*overrides):
        seen = {"batches": [], "steps": [], "peak": []}

        def step(self, batches, number):
            seen["engine"] = self
            seen["batches"] += [next(batches) for _ in range(self.schedule.accumulate)]
            seen["steps"].append(number)
            return {"source": torch.zeros(())}

        monkeypatch.setattr(Engine, "step", step)
        monkeypatch.setattr(train, "peak_gflops", lambda *args: (seen["peak"].append(args), 100.0)[1])
        seen["threads"] = []
        monkeypatch.setattr(train, "compile_parts", lambda method: seen.setdefault("compiled", method))
        seen["summary"] = run_benchmark(tmp_path, "what=train", *overrides)[0]
        return seen

    return run


def test_all_settings_reach_the_engine(measured):
    seen = measured(
        "precision=bf16", "memory=low", "crop=[64,96]", "batch=3", "schedule.accumulate=2", "schedule.lr=0.5",
        "steps=4", "warmup=2", "seed=9", "loss=dacs", "threads=1", "schedule.clip_grad_norm=1.0",
    )  # fmt: skip
    engine = seen["engine"]
    assert (engine.precision.name, engine.precision.dtype, engine.seed) == ("bf16", torch.bfloat16, 9)
    assert engine.method.low_memory and engine.method.pca is None and engine.method.teacher is not None
    assert {group["base_lr"] for group in engine.optimizer.param_groups} == {0.5, 0.05}
    assert {tuple(b["source"].shape) for b in seen["batches"]} == {(3, 3, 64, 96)}
    assert {tuple(b["source_label"].shape) for b in seen["batches"]} == {(3, 64, 96)}
    # Counted once, which stands for one of two calls before; measured; and once more for its terms.
    assert seen["steps"] == list(range(1 + 1 + 4 + 1))
    assert seen["peak"] == [(CPU, torch.bfloat16)]
    assert seen["summary"]["threads"] == 1 and "gradient clipping" in seen["summary"]["rows"]
    images = 2 * 3 * 2
    assert seen["summary"]["images_per_second"] == pytest.approx(images / seen["summary"]["seconds"]["median"])


@pytest.mark.parametrize(("given", "dtype"), [("bf16", torch.bfloat16), ("same", None)])
def test_the_precision_without_gradients_reaches_the_step(tmp_path, given, dtype):
    engine = engine_of(tmp_path, f"no_grad_precision={given}")
    assert engine.method.no_grad_dtype is engine.precision.no_grad_dtype is dtype


def test_compiling_gets_all_calls_before_the_measurement(measured):
    seen = measured("compile=true", "steps=1", "warmup=2")
    assert seen["compiled"] is seen["engine"].method
    assert seen["steps"] == list(range(1 + 2 + 1 + 1))


@pytest.mark.parametrize("name", ["icda", "dacs", "source_only"])
def test_the_batch_has_what_the_loss_needs(tmp_path, name):
    training = train_settings(read_settings(composed(f"loss={name}", "crop=[64,96]")))
    batch = random_batch(torch_rng(), training, CITYSCAPES)
    expected = {
        "icda": {"source", "source_label", "enhanced", "enhanced_label", "reference", "target"},
        "dacs": {"source", "source_label", "target"},
        "source_only": {"source", "source_label"},
    }
    assert set(batch) == expected[name]
    assert batch["source"].dtype == torch.float32 and batch["source_label"].dtype == torch.int64
    ids = set(batch["source_label"].unique().tolist())
    assert len(ids) > 1 and ids <= {*range(len(CITYSCAPES)), CITYSCAPES.ignore_index}


def torch_rng():
    import numpy as np

    return np.random.default_rng(0)


def test_every_step_draws_the_dearest_pass(loss_config, tmp_path):
    loss = dearest(loss_config())
    assert (loss.reference_probability, loss.mix_jitter_probability, loss.mix_blur_probability) == (0, 1, 1)
    fixed = dict(reference_probability=1.0, mix_jitter_probability=0.0, mix_blur_probability=0.0)
    assert dearest(loss_config(**fixed)) == loss_config(**fixed)


def test_the_frozen_encoder_is_there_though_weights_are_random(tmp_path):
    method = engine_of(tmp_path).method
    assert method.frozen is not None and method.pca is not None and method.student.dar is not None
    assert engine_of(tmp_path, "loss=source_only").method.frozen is None


def test_operations_of_a_step_are_the_sum_of_its_passes(tmp_path, monkeypatch):
    """Only the labelled source: a forward pass and its backward pass, counted by themselves."""
    import itertools

    overrides = ("loss=source_only", "crop=64")
    engine = engine_of(tmp_path, *overrides)
    engine.method.train()
    batch = random_batch(torch_rng(), train_settings(read_settings(composed(*overrides))), CITYSCAPES)
    student = engine.method.student
    student.head.recompute = None
    whole = count_gflop(lambda: engine.step(itertools.repeat(batch), 0))
    assert whole == pytest.approx(count_gflop(lambda: student(batch["source"]).sum().backward()), rel=1e-9)
    forward = count_gflop(lambda: student(batch["source"]))
    first = student.encoder.patch_embed.proj  # whose input, the picture, takes no gradient
    without = 2 * first.weight.numel() * (64 // 4) ** 2 / 1e9
    attention = 3 * forward - without
    assert whole == pytest.approx(attention, rel=2e-3)  # attention's backward pass has 5 products for its 2


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="precision=fp16 needs a GPU"):
        run_benchmark(tmp_path, "what=train", "precision=fp16")
    with pytest.raises(UserError, match="device=tpu is not known"):
        run_benchmark(tmp_path, "what=train", "device=tpu")


def test_too_little_memory_ends_in_one_line(tmp_path, monkeypatch):
    def step(self, batches, number):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(Engine, "step", step)
    with pytest.raises(UserError, match=r"memory does not suffice .* smaller crop= or batch=, or memory=low"):
        run_benchmark(tmp_path, "what=train")


def test_precisions_are_those_of_training():
    assert set(DTYPES) == {"fp32", "bf16", "fp16"}
