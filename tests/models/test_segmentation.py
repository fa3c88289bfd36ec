"""The assembled network: sizes, other encoders, refusals, normalisation."""

from __future__ import annotations

import pytest
import timm
import torch

from icda.errors import UserError
from icda.models import build_model, create_encoder

HEAD = {"head_options": {"channels": 16}}
SMALL = {**HEAD, "dar_options": {"mlp_ratio": 1}}


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


def test_normalisation_is_that_of_the_tag():
    """The same network was trained with two normalisations: timm's weights "aa" with ImageNet's, "ap" with 0.5."""
    for tag, mean, std in (("aa", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), ("ap", [0.5] * 3, [0.5] * 3)):
        model = build_model(f"tf_efficientnet_b0.{tag}_in1k", 5, with_dar=False, **HEAD)
        assert model.mean.tolist() == pytest.approx(mean) and model.std.tolist() == pytest.approx(std)


def test_weights_of_a_file(tmp_path):
    donor = timm.create_model("mit_b0")
    torch.save(donor.state_dict(), tmp_path / "mit_b0.pth")
    encoder = create_encoder("mit_b0", weights=str(tmp_path / "mit_b0.pth"))
    torch.testing.assert_close(encoder.patch_embed.proj.weight, donor.patch_embed.proj.weight, rtol=0, atol=0)


def test_files_that_do_not_fit(tmp_path):
    path = tmp_path / "other.pth"
    for content in (
        None,
        "<html>",
        timm.create_model("resnet18").state_dict(),
        timm.create_model("mit_b1").state_dict(),
    ):
        if isinstance(content, str):
            path.write_text(content)
        elif content is not None:
            torch.save(content, path)
        with pytest.raises(UserError, match=rf"model\.encoder\.weights={path}") as caught:
            create_encoder("mit_b0", weights=str(path))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weights", [None, "", "  ", "Timm", "imagenet", 3, "evil\n\x1b[2J"])
def test_words_that_are_no_weights(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^model\.encoder\.weights") as caught:
        create_encoder("mit_b0", weights=weights)
    assert str(caught.value).isprintable()
    for word in ("none for random weights", "timm", "package", "PATH"):
        assert word in str(caught.value)


def test_a_file_without_an_ending_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(timm.create_model("mit_b0").state_dict(), "imagenet")
    create_encoder("mit_b0", weights="imagenet")


def test_random_weights_are_random():
    torch.manual_seed(0)
    first, second = (create_encoder("mit_b0", weights="none").patch_embed.proj.weight for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "tf_efficientnet_lite0"])
def test_weights_of_other_encoders(tmp_path, name):
    donor = timm.create_model(name).eval()
    torch.save({"state_dict": donor.state_dict()}, tmp_path / "weights.pth")
    encoder = create_encoder(name, weights=str(tmp_path / "weights.pth")).eval()
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(encoder(x)[-1], donor.forward_intermediates(x)[1][-1])


def test_an_encoder_without_stochastic_depth_says_so():
    with pytest.raises(UserError, match=r"give model\.encoder\.drop_path_rate=null"):
        create_encoder("densenet121", drop_path_rate=0.1)


def test_without_dar():
    assert build_model("mit_b0", 5, with_dar=False, **SMALL).dar is None
