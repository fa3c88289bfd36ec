"""The assembled network: sizes, other encoders, refusals, normalisation."""

from __future__ import annotations

import pytest
import timm
import torch

from icda.errors import UserError
from icda.models import build_model, create_encoder

SMALL = {"head_options": {"channels": 16}, "dar_options": {"mlp_ratio": 1}}


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (5, 7), (33, 200)])
@torch.no_grad()
def test_logits_have_the_images_size(size):
    model = build_model("mit_b0", 7, **SMALL).eval()
    logits = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 7, *size)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "convnext_atto", "pvt_v2_b0"])
def test_any_timm_encoder_with_four_strides(name):
    model = build_model(name, 5, **SMALL).eval()
    assert model.encoder.feature_info.reduction() == [4, 8, 16, 32]
    maps = model.encoder(torch.randn(1, 3, 70, 90))
    assert model.head(model.dar(maps, maps)).shape[1] == 5


def test_normalisation_is_the_encoders():
    assert build_model("mit_b0", 5, **SMALL).mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    lite = build_model("tf_efficientnet_lite0", 5, **SMALL)
    config = timm.create_model("tf_efficientnet_lite0").pretrained_cfg
    assert lite.mean.tolist() == pytest.approx(config["mean"])
    assert lite.std.tolist() == pytest.approx(config["std"])
    assert lite.mean.tolist() != pytest.approx([0.485, 0.456, 0.406])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_224", r"3 maps at strides \[16, 16, 16\].*four maps at strides 4, 8, 16 and 32"),
        ("swin_tiny_patch4_window7_224", "does not take images of any size"),
        ("mit_b9", "mit_b9 is not a model that timm knows; near it: .*mit_b5"),
    ],
)
def test_other_encoders_are_refused_in_one_line(name, message):
    with pytest.raises(UserError, match=message) as caught:
        create_encoder(name)
    assert "\n" not in str(caught.value)


def test_weights(tmp_path):
    with pytest.raises(UserError, match="is no file"):
        create_encoder("mit_b0", weights=str(tmp_path / "mit_b0.pth"))
    broken = tmp_path / "broken.pth"
    broken.write_text("<html>")
    with pytest.raises(UserError, match="could not be made"):
        create_encoder("mit_b0", weights=str(broken))
    donor = timm.create_model("mit_b0")
    torch.save(donor.state_dict(), tmp_path / "mit_b0.pth")
    encoder = create_encoder("mit_b0", weights=str(tmp_path / "mit_b0.pth"))
    torch.testing.assert_close(encoder.patch_embed.proj.weight, donor.patch_embed.proj.weight)


def test_without_dar():
    assert build_model("mit_b0", 5, with_dar=False, **SMALL).dar is None
