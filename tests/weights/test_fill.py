"""Filling by name: all entries or none, under the names that timm's feature extractors give them."""

from __future__ import annotations

import re

import pytest
import timm
import torch

from icda.errors import UserError
from icda.weights.fill import fill, misfits, set_normalisation

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
        number = (
            f"1 missing such as {name}" if value is None else f"1 of another size such as {name} with (3,) instead"
        )
        with pytest.raises(UserError, match=rf"^a file: of 120 entries {re.escape(number)}.*; do this$"):
            fill(encoder, state, "a file", "do this")
        assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_normalisation_is_set_for_one_model_alone():
    first, second = timm.create_model("resnet18"), timm.create_model("resnet18")
    before = second.pretrained_cfg["mean"]
    set_normalisation(first, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert first.pretrained_cfg["mean"] == first.default_cfg["mean"] == (0.1, 0.2, 0.3)
    assert first.pretrained_cfg["std"] == (0.4, 0.5, 0.6)
    assert second.pretrained_cfg["mean"] == before


def test_misfits_are_counted_by_kind_with_the_first_example_of_each():
    shapes = {"a": (2, 3), "b": torch.zeros(4), "bn.num_batches_tracked": ()}
    fits = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    assert misfits(fits, shapes) == "" and misfits({**fits, "bn.num_batches_tracked": torch.tensor(0)}, shapes) == ""
    assert misfits(fits, shapes, counters=True) == "of 3 entries 1 missing such as bn.num_batches_tracked"
    state = {"a": torch.zeros(3, 2), "c\n\x1b[31m" + "x" * 500: torch.zeros(1)}
    said = misfits(state, shapes)
    assert said.startswith("of 3 entries 1 missing such as b, 1 unknown such as c [31mxxx")
    assert said.endswith("..., 1 of another size such as a with (3, 2) instead of (2, 3)")
    assert said.isprintable() and len(said) < 300


def test_what_a_whole_file_lacks_is_named_as_the_file_would():
    encoder = timm.create_model("convnext_atto", features_only=True)
    for given, expected in ((timm.create_model("convnext_atto"), "stages.1."), (encoder, "stages_1.")):
        state = {n: t for n, t in given.state_dict().items() if not n.startswith(expected)}
        with pytest.raises(UserError, match=rf"missing such as {re.escape(expected)}"):
            fill(encoder, state, "a file", "do this")


def test_what_is_not_taken_is_told():
    whole = timm.create_model("resnet18").state_dict()
    assert fill(timm.create_model("resnet18", features_only=True), whole, "a", "b") == ("fc.weight", "fc.bias")
