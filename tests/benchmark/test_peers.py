"""The comparison with other libraries: that all do the same work, in turns, and what is told of it."""

from __future__ import annotations

import json
import statistics
import sys
import time

import pytest
import torch
from benchmark_runs import COMMON, composed, run_benchmark

from icda.benchmark import peers
from icda.benchmark.flops import count_gflop
from icda.benchmark.peers import OURS, SMP, TRANSFORMERS, build_networks, measure_in_turns
from icda.benchmark.settings import read_settings
from icda.data.classes import CITYSCAPES
from icda.errors import UserError
from icda.weights.encoder import fill_encoder

CPU = torch.device("cpu")
NAMES = (OURS, TRANSFORMERS, SMP)


@pytest.fixture(scope="module")
def networks():
    return build_networks(read_settings(composed("what=peers", "crop=64")), CPU)


def test_summary(tmp_path):
    summary, lines = run_benchmark(tmp_path, "what=peers", "crop=64")
    assert json.loads(lines[-1]) == summary and set(summary) >= COMMON and summary["what"] == "peers"
    rows = {f"{kind} {name}" for kind in ("infer", "train") for name in NAMES}
    assert set(summary["rows"]) == set(summary["gflop_of"]) == set(summary["gflops"]) == rows
    assert summary["rows"][f"train {OURS}"] == summary["seconds"]["median"]
    assert summary["gflop"] == summary["gflop_of"][f"train {OURS}"]
    for row in rows:
        assert summary["gflops"][row] == pytest.approx(summary["gflop_of"][row] / summary["rows"][row])
        assert summary["peak_memory_gb_of"][row] > 0
    assert set(summary["ratio"]) == {row for row in rows if OURS not in row}
    for row, ratio in summary["ratio"].items():
        ours = f"{row.split()[0]} {OURS}"
        expected = summary["gflop_of"][ours] / summary["rows"][ours]
        assert ratio == pytest.approx(expected / (summary["gflop_of"][row] / summary["rows"][row]))
        assert f"{ratio:.2f} x {row}" in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_all_have_the_same_encoder_and_as_many_channels_and_classes(networks, tmp_path):
    encoders = {
        OURS: networks[OURS].model.encoder,
        TRANSFORMERS: networks[TRANSFORMERS].model.segformer,
        SMP: networks[SMP].model.encoder,
    }
    sizes = {name: sum(p.numel() for p in encoder.parameters()) for name, encoder in encoders.items()}
    assert set(sizes.values()) == {sizes[OURS]}
    # Their weights fill ours, and give the same maps: it is the same network.
    images = torch.randn(1, 3, 64, 96)
    ours = encoders[OURS].eval()
    for name in (TRANSFORMERS, SMP):
        torch.save(networks[name].model.state_dict(), tmp_path / "theirs.pth")
        fill_encoder(ours, "mit_b0", tmp_path / "theirs.pth")
        theirs = encoders[name].eval()
        with torch.inference_mode():
            out = theirs(images, output_hidden_states=True).hidden_states if name == TRANSFORMERS else theirs(images)
            for a, b in zip(ours(images), out[-4:], strict=True):
                torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    channels = networks[OURS].model.head.classifier.in_channels
    assert networks[TRANSFORMERS].model.config.decoder_hidden_size == channels
    assert networks[SMP].model.segmentation_head[0].in_channels == channels


@pytest.mark.parametrize("size", [(64, 96), (60, 90)])
def test_logits_and_labels_have_the_sizes_asked_for(networks, size):
    images = torch.randn(1, 3, *size)
    for network in networks.values():
        network.model.eval()
        with torch.inference_mode():
            assert network.logits(images).shape == (1, len(CITYSCAPES), *size)
            labels = torch.as_tensor(network.labels(images, (70, 100)))
            assert labels.shape == (1, 70, 100) and labels.min() >= 0 and labels.max() < len(CITYSCAPES)
            # At the pictures' own size, labels are the best of the logits, up to ties.
            logits = network.logits(images)[0]
            at = torch.as_tensor(network.labels(images, size))[0].long()
            torch.testing.assert_close(logits.gather(0, at[None])[0], logits.max(0).values, atol=1e-5, rtol=0)


def test_a_step_moves_every_network(networks):
    config = read_settings(composed("what=peers", "crop=64"))
    steps = peers._steps(networks, config, peers.Precision("fp32", CPU))
    for name, step in steps.items():
        model = networks[name].model
        before = [p.detach().clone() for p in model.parameters()]
        forward = count_gflop(lambda name=name: networks[name].logits(torch.randn(1, 3, 64, 64)))
        # The backward pass costs twice the forward pass, but for the pictures' own gradient, which nobody needs.
        assert 2.7 * forward < count_gflop(step) < 3.1 * forward
        assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_calls_are_made_in_turns():
    made = []
    calls = {"a": lambda: made.append("a"), "b": lambda: (made.append("b"), time.sleep(0.02))}
    timings = measure_in_turns(calls, 3, CPU)
    assert made == ["a", "b"] * 3
    assert all(len(t.wall) == len(t.cpu) == 3 for t in timings.values())
    assert statistics.median(timings["b"].wall) >= 0.02 > statistics.median(timings["b"].cpu)


def test_mistakes(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"resnet50 is not in transformers' SegFormer.*mit_b0, .*mit_b5$"):
        run_benchmark(tmp_path, "what=peers", "model.encoder.name=resnet50", "model.encoder.drop_path_rate=null")
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[test\]"') as error:
        run_benchmark(tmp_path, "what=peers")
    assert "\n" not in str(error.value)
