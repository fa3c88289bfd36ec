"""A network prepared for inference gives what the plain one gives."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from icda.inference import prepared
from icda.models import SegmentationModel, build_model
from icda.training.precision import Precision


def trained_model(name: str, **options: object) -> SegmentationModel:
    """A model whose batch norms have seen something, in training mode."""
    torch.manual_seed(0)
    model = build_model(name, 19, head_options={"channels": 16}, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, std=0.3)
    return model


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", ["mit_b0", "resnet18", "efficientnet_lite0", "tf_efficientnet_lite0"])
@torch.no_grad()
def test_logits_are_those_of_the_plain_network(name):
    model = trained_model(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ready = prepared(model)
    assert model.training and not ready.training and ready.dar is None
    assert norms(ready) == 0 < norms(model.encoder) + norms(model.head)
    for size in ((64, 96), (75, 41), (20, 33)):
        images = torch.randn(2, 3, *size)
        expected, logits = model.eval()(images), ready(images)
        assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
        margin = expected.topk(2, dim=1).values
        differing = logits.argmax(1) != expected.argmax(1)
        assert not differing[margin[:, 0] - margin[:, 1] > 1e-5 * expected.abs().max()].any()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_weights_that_stay_are_shared():
    model = trained_model("mit_b0", with_dar=False)
    of_model = {p.data_ptr() for p in model.encoder.parameters()}
    assert {p.data_ptr() for p in prepared(model).encoder.parameters()} == of_model
    assert of_model.isdisjoint(p.data_ptr() for p in prepared(model, torch.bfloat16).encoder.parameters())


class Standardized(nn.Conv2d):
    """Changes its weights itself, so that a factor folded into them is lost."""

    def forward(self, x):
        return self._conv_forward(x, self.weight / self.weight.std(), self.bias)


@torch.no_grad()
def test_what_cannot_be_folded_is_left_as_it_is():
    model = trained_model("resnet18").eval()
    plain = model.encoder.conv1
    own = Standardized(3, plain.out_channels, 7, 2, 3, bias=False)
    own.load_state_dict(plain.state_dict())
    model.encoder.conv1 = own
    ready, images = prepared(model), torch.randn(1, 3, 64, 64)
    assert norms(ready) == norms(model.encoder) + norms(model.head)
    torch.testing.assert_close(ready(images), model(images), rtol=0, atol=0)


class Shared(nn.Module):
    """Two maps through one batch norm: it cannot be a part of both convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.one(x)) + self.norm(self.two(x))


@torch.no_grad()
def test_a_batch_norm_of_two_convolutions_stays():
    model = trained_model("resnet18").eval()
    shared = Shared().eval()
    shared.norm.running_mean += 1
    model.head.dropout = nn.Sequential(nn.Conv2d(16, 3, 1), shared, nn.Conv2d(4, 16, 1))
    ready, images = prepared(model), torch.randn(1, 3, 64, 64)
    assert norms(ready) == 1 and isinstance(ready.head.dropout[1].norm, nn.BatchNorm2d)
    torch.testing.assert_close(ready(images), model(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["mit_b0", "resnet18"])
@torch.inference_mode()
def test_half_precision_is_as_near_as_autocast(name):
    model = trained_model(name).eval()
    ready, images = prepared(model, torch.bfloat16), torch.randn(1, 3, 64, 96)
    exact, logits = model(images), ready(images)
    with Precision("bf16", torch.device("cpu")).autocast():
        cast = model(images).float()
    assert logits.dtype == ready.mean.dtype == torch.float32
    assert {p.dtype for p in ready.parameters()} == {torch.bfloat16}
    assert 0 < (logits - exact).norm() < 2 * (cast - exact).norm()


@torch.no_grad()
def test_it_can_be_pickled_and_prepared_again():
    ready, images = prepared(trained_model("resnet18")), torch.randn(1, 3, 40, 40)
    for again in (pickle.loads(pickle.dumps(ready)), prepared(ready)):
        torch.testing.assert_close(again(images), ready(images), rtol=0, atol=0)
