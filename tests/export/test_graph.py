"""The deployed graph gives what prediction gives, for every kind of input and output."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from export_models import SMALL, batch, make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same
from torch import nn

from icda.export.graph import InferenceGraph, SamePadding


@pytest.mark.parametrize("argmax", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("encoder", [SMALL, "mit_b0", "tf_efficientnet_lite0"])
def test_labels_and_logits_are_those_of_prediction(encoder, normalize, argmax):
    model = make_model(encoder)
    graph = InferenceGraph(model, normalize=normalize, argmax=argmax)
    for count, size in ((1, (32, 32)), (2, (77, 131)), (1, (64, 99))):
        levels, entering, labels = batch(3, count, size, model)
        assert len(np.unique(labels)) > 2  # else agreement would say little
        with torch.no_grad():
            got = graph(levels if normalize else entering)
            logits = model(entering)
        if argmax:
            assert got.dtype == torch.uint8
            np.testing.assert_array_equal(got.numpy(), labels)
        else:
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, logits, rtol=1e-4, atol=1e-5)


def test_it_is_without_dar_dropout_and_gradients_and_leaves_the_model_alone():
    model = make_model("tf_efficientnet_lite0", with_dar=True).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = InferenceGraph(model)
    assert not any(name.startswith("dar") for name, _ in graph.named_modules())
    assert not any(module.training for module in graph.modules())
    assert not any(parameter.requires_grad for parameter in graph.parameters())
    graph.head.classifier.weight.zero_()
    assert any(isinstance(module, Conv2dSame) for module in model.modules())
    assert not any(isinstance(module, Conv2dSame) for module in graph.modules())
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_of_equal_logits_the_first_class_is_taken():
    graph = InferenceGraph(make_model(SMALL))
    nn.init.zeros_(graph.head.classifier.weight)
    graph.head.classifier.bias.zero_()[[5, 3, 11]] = 1.0
    assert (graph(graph.example()) == 3).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 7), st.integers(1, 3), st.integers(1, 3))
def test_padding_is_timms(height, width, kernel, stride, dilation):
    extent = (kernel - 1) * dilation + 1
    stride = min(stride, extent)
    x = torch.rand(1, 2, height, width)
    padded = SamePadding((kernel,) * 2, (stride,) * 2, (dilation,) * 2)(x)
    torch.testing.assert_close(padded, pad_same(x, [kernel] * 2, [stride] * 2, [dilation] * 2), rtol=0, atol=0)
    assert (padded.shape[2] - extent) // stride + 1 == -(-height // stride)
