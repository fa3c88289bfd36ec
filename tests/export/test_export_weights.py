"""Weights written in other layouts are read by others, and come back bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from export_models import SMALL, make_trained
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoImageProcessor, SegformerConfig, SegformerModel

from icda.data.classes import CITYSCAPES
from icda.data.stream import normalize
from icda.errors import UserError
from icda.export.weights import FOLDER_FILES, LAYOUTS, encoder_state, huggingface_config, write_weights
from icda.interop import load_encoder, load_published
from icda.models import create_encoder
from icda.weights.files import METADATA_KEY

PUBLISHED = {"dilations": (1, 6, 12, 18), "mlp_ratio": 4}
METADATA = {"step": 7, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}


@pytest.fixture(scope="module")
def mit():
    return make_trained("mit_b0", with_dar=True)


def write(trained, layout, folder):
    path = folder / f"weights{(LAYOUTS[layout].suffixes or ('',))[0]}"
    return path, write_weights(trained, layout, path, METADATA)


def assert_equal_states(got, expected):
    assert set(got) == set(expected)
    assert all(torch.equal(value, expected[name]) for name, value in got.items())


def test_transformers_loads_the_folder(tmp_path, mit):
    folder, sentences = write(mit, "huggingface", tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FOLDER_FILES)
    assert any("eps" in sentence for sentence in sentences)
    model, info = SegformerModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    images = torch.randn(1, 3, 70, 101)
    with torch.no_grad():
        theirs = model.eval()(images, output_hidden_states=True).hidden_states
        ours = load_encoder(folder, eps="huggingface")(images)
    assert len(theirs) == 4
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["mit_b0", "mit_b5"])
def test_the_config_makes_the_same_sizes(variant):
    with torch.device("meta"):
        theirs = SegformerModel(SegformerConfig(**huggingface_config(variant, CITYSCAPES)))
        ours = create_encoder(variant)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    assert theirs.config.id2label[13] == "car" and theirs.config.semantic_loss_ignore_index == 255


@pytest.mark.parametrize(
    ("layout", "count", "name"),
    [
        ("segformer", 176, "patch_embed1.proj.weight"),  # counts of the entries of MiT-B0 in files of these projects
        ("mmseg", 160, "layers.0.0.projection.weight"),
    ],
)
def test_flat_files_come_back_bit_for_bit(tmp_path, mit, layout, count, name):
    path, sentences = write(mit, layout, tmp_path)
    state = torch.load(path, weights_only=True)
    assert len(state) == count and name in state
    assert any("same eps" in s if layout == "segformer" else "1e-06" in s for s in sentences)
    encoder = create_encoder("mit_b0", str(path))
    assert_equal_states(encoder.state_dict(), mit.model.encoder.state_dict())


@pytest.mark.parametrize("with_dar", [True, False])
def test_a_published_checkpoint_is_the_same_network(tmp_path, with_dar):
    trained = make_trained("mit_b0", with_dar=with_dar, **PUBLISHED)
    model = trained.model
    path, sentences = write(trained, "published", tmp_path)
    content = torch.load(path, weights_only=True)
    assert content["global_step"] == 7
    parts = {name.split(".")[0] for name in content["state_dict"]}
    assert parts == ({"backbone", "head", "dat"} if with_dar else {"backbone", "head"})
    assert ("without DAR" in " ".join(sentences)) != with_dar
    assert torch.equal(content["state_dict"]["head.conv_seg.weight"], model.head.classifier.weight)
    assert_equal_states(load_published(path).state_dict(), model.state_dict())
    config = OmegaConf.create({"dataset": trained.config.dataset})  # what is known of a published one
    assert write(replace(trained, config=config), "published", tmp_path / "again")[1] == sentences


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("head", {"dilations": (1, 3, 6)}),
        ("head", {"dilations": (1, 6, 12, 16)}),  # the weights alone would not tell
        ("dar", {"mlp_ratio": 2}),
    ],
)
def test_a_published_checkpoint_of_another_network(tmp_path, part, change):
    trained = make_trained("mit_b0", with_dar=True, **{**PUBLISHED, **change})
    (key,) = change
    with pytest.raises(
        UserError, match=rf"this model has model\.{part}\.{key}=.* instead of .*'s (4|\[1, 6, 12, 18\]);"
    ):
        write(trained, "published", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mit_b0", SMALL, "tf_efficientnet_lite0", "test_convnext"])
def test_timms_names_load_into_the_whole_model(tmp_path, name):
    trained = make_trained(name)
    model = trained.model
    path, sentences = write(trained, "timm", tmp_path)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()[METADATA_KEY]) == METADATA
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
    whole = timm.create_model(name)
    result = whole.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    behind = ("head", "classifier", "fc", "norm", "conv_head", "bn2")
    assert all(key.startswith(behind) for key in result.missing_keys)
    assert len(state) == len(model.encoder.state_dict())
    encoder = create_encoder(name, str(path))
    assert_equal_states(encoder.state_dict(), model.encoder.state_dict())
    assert name in sentences[0]


@pytest.mark.slow
def test_the_recipe_for_timm_works_as_it_is_printed(tmp_path):
    """In another process, where ``icda`` is not imported but for MiT."""
    lines, expected = ["import torch"], {}
    for name in (SMALL, "tf_efficientnet_lite0", "test_convnext", "mit_b0"):
        trained = make_trained(name)
        path = tmp_path / f"Zürich's {name}.safetensors"
        write_weights(trained, "timm", path, METADATA)
        recipe = LAYOUTS["timm"].reader(name, path).partition("and timm: ")[2].partition(" - ")[0]
        imports, _, made = recipe.partition("; ")
        assert ("icda" in imports) == (name == "mit_b0")
        lines += [imports, f"encoder = {made}", f"torch.save(encoder.state_dict(), {str(tmp_path / name)!r})"]
        expected[name] = trained.model.encoder.state_dict()
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, cwd=tmp_path, timeout=300)
    for name, state in expected.items():
        got = torch.load(tmp_path / name, weights_only=True)
        assert set(state) <= set(got)  # timm gives the stem's map as well
        assert all(torch.equal(value, got[key]) for key, value in state.items())


def test_transformers_normalises_as_icda_does(tmp_path):
    trained = make_trained("mit_b0")
    trained.model.mean += 0.03  # else they would be the defaults of transformers
    processor = AutoImageProcessor.from_pretrained(write(trained, "huggingface", tmp_path)[0])
    image = np.random.default_rng(0).integers(0, 256, (37, 51, 3), np.uint8)
    theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    ours = normalize(image, trained.model.mean.numpy(), trained.model.std.numpy())
    torch.testing.assert_close(torch.as_tensor(theirs), ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["huggingface", "mmseg", "segformer", "published"])
def test_a_layout_that_has_no_names_for_an_encoder(tmp_path, layout):
    with pytest.raises(UserError, match="MiT") as caught:
        write(make_trained(SMALL), layout, tmp_path)
    assert str(caught.value).endswith("the model's encoder is test_resnet; give layout=timm")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_written_whole_or_not_at_all(tmp_path, mit, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("icda.export.weights.safetensors_bytes", stop)
    with pytest.raises(KeyboardInterrupt):
        write(mit, "huggingface", tmp_path)
    assert list(tmp_path.iterdir()) == []
    kept = tmp_path / "weights" / "config.json"
    kept.parent.mkdir()
    kept.write_text("of before")
    with pytest.raises(KeyboardInterrupt):
        write(mit, "huggingface", tmp_path)
    assert kept.read_text() == "of before" and list(kept.parent.iterdir()) == [kept]


def test_the_encoders_entries_are_all_there(mit):
    assert len(encoder_state(mit.model)) == len(mit.model.encoder.state_dict()) == 176


def test_the_normalisation_comes_back_with_the_encoder(tmp_path, mit):
    for trained, layout, name in ((make_trained(SMALL), "timm", SMALL), (mit, "huggingface", "mit_b0")):
        path, _ = write(trained, layout, tmp_path)
        encoder = create_encoder(name, weights=str(path))
        assert encoder.pretrained_cfg["mean"] == (0.1, 0.2, 0.3) and encoder.pretrained_cfg["std"] == (0.4, 0.5, 0.6)


@pytest.mark.parametrize(
    "stated", ["{", "[]", "{}", '{"mean": [0, 0, 0], "std": [1, 0, 1]}', '{"mean": [NaN, 0, 0], "std": [1, 1, 1]}']
)
def test_a_damaged_normalisation_is_told(tmp_path, stated):
    state = encoder_state(make_trained(SMALL).model)
    save_file(state, tmp_path / "x.safetensors", {METADATA_KEY: stated})
    with pytest.raises(UserError, match="its normalisation is"):
        create_encoder(SMALL, weights=str(tmp_path / "x.safetensors"))
