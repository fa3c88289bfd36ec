"""What the settings of a benchmark become, and what is refused."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from benchmark_runs import composed
from conftest import CONF
from omegaconf import OmegaConf

from icda.benchmark.settings import CALLS, BenchmarkConfig, only, read_settings, train_settings
from icda.config import TrainConfig
from icda.errors import UserError

PACKAGE = Path(__file__).parents[2] / "icda" / "benchmark"


@pytest.mark.parametrize(("given", "crop"), [("64", [64, 64]), ("[64,96]", [64, 96])])
def test_a_crop_is_a_side_or_two(given, crop):
    config = read_settings(composed(f"crop={given}"))
    assert config.crop == config.dataset.sampling.crop == crop


def test_without_a_crop_it_is_the_data_sets():
    assert read_settings(composed("dataset.sampling.crop=[32,96]")).crop == [32, 96]


def test_numbers_of_calls_depend_on_what_is_measured_unless_they_are_given():
    config = read_settings(composed("what=all", "steps=null", "warmup=null"))
    assert {what: (only(config, what).warmup, only(config, what).steps) for what in CALLS} == CALLS
    config = read_settings(composed("what=all", "steps=7", "warmup=0"))
    assert {(only(config, what).warmup, only(config, what).steps) for what in CALLS} == {(0, 7)}


def test_a_training_has_the_settings_of_the_benchmark():
    given = ("crop=[64,96]", "batch=3", "precision=bf16", "memory=low", "compile=true", "seed=5", "loss=dacs")
    config = read_settings(composed(*given))
    training = train_settings(config)
    assert training.dataset.sampling.crop == [64, 96] and training.schedule.batch_size == 3
    shared = {f.name for f in fields(BenchmarkConfig)} & {f.name for f in fields(TrainConfig)} - {"data_dir"}
    assert shared >= {"model", "loss", "precision", "memory", "compile", "seed", "device"}
    assert {name: getattr(training, name) for name in shared} == {name: getattr(config, name) for name in shared}
    assert (training.init, training.resume, training.logger) == (None, None, "none")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("what=speed", r"^what=speed is out of range; expected one of train, infer, .*, all$"),
        ("precision=int8", r"^precision=int8 is out of range; expected fp32, bf16 or fp16"),
        ("no_grad_precision=fp16", r"auto, bf16 or same"),
        ("memory=none", r"normal or low"),
        ("steps=0", r"null, or 1 or more"),
        ("warmup=-1", r"null, or 0 or more"),
        ("threads=0", r"null, or 1 or more"),
        ("batch=0", r"1 or more"),
        ("batch=two", r"batch=two has the wrong type"),
        ("crop=16", r"^crop=16 is out of range; expected a number or \[height, width\], each 32 or more$"),
        ("crop=[64]", r"\[height, width\]"),
        ("crop=[64,16]", r"each 32 or more"),
        ("crop=small", r"a number or"),
        ("size=[0,64]", r"each 1 or more"),
        ("output=[64,64,64]", r"\[height, width\]"),
        ("what=data profile=true", r"what=data is nothing to profile.* give what=train, infer, metric or all"),
        ("loss.source=-1", r"loss.source=-1.0 is out of range"),
        ("schedule.accumulate=0", r"1 or more"),
    ],
)
def test_mistakes_end_in_one_line(override, message):
    with pytest.raises(UserError, match=message) as error:
        read_settings(composed(*override.split(" ")))
    assert "\n" not in str(error.value)


def test_keys_are_documented_and_read():
    text = (CONF / "benchmark.yaml").read_text().split("hydra:")[0]
    lines = text.splitlines()
    keys = {i: m[1] for i, line in enumerate(lines) if (m := re.match(r"([a-z_]+):", line)) and m[1] != "defaults"}
    assert [key for i, key in keys.items() if "#" not in lines[i] and not lines[i - 1].startswith("#")] == []
    names = [key for key in OmegaConf.load(CONF / "benchmark.yaml") if key not in ("defaults", "hydra")]
    assert names == list(keys.values())
    code = "".join(path.read_text() for path in PACKAGE.glob("*.py"))
    training = {f.name for f in fields(TrainConfig)} | {"no_grad_precision"}
    assert [name for name in names if f"config.{name}" not in code and name not in training] == []


def test_every_benchmark_is_documented():
    text = " ".join(line.lstrip("# ") for line in (CONF / "benchmark.yaml").read_text().splitlines())
    assert [name for name in CALLS if not re.search(rf"\b{name}: \w", text)] == []
