"""Linear layers through oneDNN, against PyTorch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from icda.models import build_model
from icda.models.linear import Linear, linear, linear_backward, through_onednn


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def convolutions(monkeypatch):
    """Counts the calls of ``F.conv2d``."""
    calls, convolve = [], F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *args, **options: calls.append(args) or convolve(*args, **options))
    return calls


def leaves(shape=(2, 32, 3, 6), out=4):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(out, shape[-1]) / shape[-1] ** 0.5, torch.randn(out)
    return [t.requires_grad_() for t in (x, weight, bias)]


def agree(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


# Rows: 192, which 16 divides; 510, which 17 does; 262, a prime number's double, with many values and few; few rows.
@pytest.mark.parametrize(
    "shape", [(2, 32, 3, 6), (2, 255, 6), (2, 131, 96), (2, 131, 6), (6,), (1, 6), (0, 6), (1, 160, 1)]
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_layer_and_its_gradients_are_pytorchs(shape, with_bias, threads):
    inputs = leaves(shape)[: 3 if with_bias else 2]
    results = []
    for layer in (linear, F.linear):
        y = layer(*inputs)
        results.append([y, *torch.autograd.grad(y.sin().sum(), inputs)])
        layer(*(t.detach() for t in inputs)).add_(y)  # no view
    agree(*results)


@pytest.mark.parametrize(
    "strided", [lambda x: x.transpose(1, 3), lambda x: x[:, ::2], lambda x: x[:1].expand(8, -1, -1, -1)]
)
def test_rows_that_do_not_lie_in_turn(strided, threads):
    x = strided(torch.randn(20, 6, 8, 6))
    weight, bias = torch.randn(5, 6), torch.randn(5)
    agree([linear(x, weight, bias)], [F.linear(x, weight, bias)])


@pytest.mark.parametrize(
    "wanted", [(True, True, True), (False, True, False), (True, False, False), (False, False, True)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_that_are_not_wanted_are_not_there(wanted, dtype, threads):
    inputs = [t.detach().to(dtype).requires_grad_() for t in leaves()]
    y = F.linear(*inputs)
    gradient = torch.randn_like(y)
    expected = torch.autograd.grad(y, inputs, gradient)
    found = linear_backward(gradient, *inputs[:2], wanted)
    assert [g is not None for g in found] == list(wanted)
    agree([g for g in found if g is not None], [g for g, w in zip(expected, wanted, strict=True) if w])


@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")  # of a switch's setter
def test_where_onednn_is_asked(convolutions, threads, monkeypatch):
    x, weight, bias = torch.randn(4, 128, 64), torch.randn(32, 64), torch.randn(32)
    for rows in (512, 510, 128):
        linear(x.flatten(0, 1)[:rows], weight, bias)
    assert len(convolutions) == 3
    linear(x.flatten(0, 1)[:509], weight, bias)  # a prime number: one image, which on one thread is MKL's
    assert len(convolutions) == 2 + threads
    convolutions.clear()
    linear(x[0, :112], weight, bias)
    linear(x.flatten(0, 1)[:262], weight, bias)  # one image, of too few values
    linear(x.double(), weight.double(), bias.double())
    linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        linear(x, weight, bias)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(torch.backends.mkl, "is_available", lambda: False)
        linear(x, weight, bias)
    assert not convolutions


def test_a_compiled_layer_is_one_graph():
    torch.compiler.reset()
    layer, x = Linear(6, 4), torch.randn(2, 128, 6)
    found = torch.compile(layer, fullgraph=True, backend="eager")(x)
    assert torch.equal(found, F.linear(x, layer.weight, layer.bias))
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated:FutureWarning")
def test_a_traced_layer_is_pytorchs():
    layer = Linear(6, 4)
    exported = torch.export.export(layer, (torch.randn(2, 128, 6),))
    targets = {node.target for node in exported.graph.nodes if node.op == "call_function"}
    assert targets == {torch.ops.aten.linear.default}
    assert "conv" not in str(torch.jit.trace(layer, torch.randn(2, 128, 6)).inlined_graph)


def test_every_plain_layer_becomes_one():
    class Other(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3)), Other(3, 3))
    names = list(model.state_dict())
    through_onednn(model)
    assert [type(m) for m in (model[0], model[1][0], model[2])] == [Linear, Linear, Other]
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("encoder", ["mit_b0", "pvt_v2_b0", "convnext_atto"])
def test_networks_of_layers_through_onednn_give_the_same_gradients(encoder, convolutions):
    torch.manual_seed(0)
    model = build_model(encoder, 5, head_options={"channels": 16}, dar_options={"mlp_ratio": 1}).eval()
    assert not [name for name, module in model.named_modules() if type(module) is nn.Linear]
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if type(module) is Linear:
            module.__class__ = nn.Linear
    image = torch.randn(2, 3, 64, 96)
    results, calls = [], []
    for network in (model, plain):
        convolutions.clear()
        maps = network.encoder(image)
        logits = network.head(network.dar(maps, [m.flip(0) for m in maps]))
        logits.square().mean().backward()
        results.append([logits, *(p.grad for p in network.parameters() if p.grad is not None)])
        calls.append(len(convolutions))
    assert calls[0] > calls[1]
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-7
