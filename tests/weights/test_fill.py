"""Filling by name: all entries or none, under the names that timm's feature extractors give them."""

from __future__ import annotations

import pytest
import timm
import torch

from icda.errors import UserError
from icda.weights.fill import fill, set_normalisation

NAMES = (
    "resnet18",  # the names of the whole model
    "convnext_atto",  # stages_0 for stages.0
    "pvt_v2_b0",
    "efficientvit_b0",
    "vit_tiny_patch16_224",  # a getter: everything below "model."
    "legacy_xception",  # hooks: everything below "body."
)


@pytest.mark.parametrize("name", NAMES)
def test_the_extractor_gets_the_whole_models_weights(name):
    torch.manual_seed(0)
    donor = timm.create_model(name)
    encoder = timm.create_model(name, features_only=True)
    fill(encoder, donor.state_dict(), name, "choose another")
    theirs = [value.double().sum() for value in donor.state_dict().values()]
    for value in encoder.state_dict().values():
        assert any(value.double().sum() == total for total in theirs)
    own = dict(encoder.named_parameters())
    assert sum(p.numel() for p in own.values()) <= sum(p.numel() for p in donor.parameters())


def test_all_or_nothing():
    encoder = timm.create_model("resnet18", features_only=True)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    for name, value in (("layer4.0.conv1.weight", None), ("layer1.0.bn1.bias", torch.zeros(3))):
        state = timm.create_model("resnet18").state_dict()
        state.pop(name)
        if value is not None:
            state[name] = value
        number = "1 of 120 entries are missing and 0" if value is None else "0 of 120 entries are missing and 1"
        with pytest.raises(UserError, match=rf"^a file: {number} have another shape, the first is {name}; do this$"):
            fill(encoder, state, "a file", "do this")
        assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_normalisation_is_set_for_one_model_alone():
    first, second = timm.create_model("resnet18"), timm.create_model("resnet18")
    before = second.pretrained_cfg["mean"]
    set_normalisation(first, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert first.pretrained_cfg["mean"] == first.default_cfg["mean"] == (0.1, 0.2, 0.3)
    assert first.pretrained_cfg["std"] == (0.4, 0.5, 0.6)
    assert second.pretrained_cfg["mean"] == before
