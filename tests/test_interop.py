"""Reading the published checkpoint: every name has its place, and what does not fit is said."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import REFERENCE
from reference import recipe

from icda.errors import UserError
from icda.interop import UNUSED, load_published, rename

KEYS = json.loads((REFERENCE / "checkpoint_keys_mit_b5.json").read_text())


def test_every_published_name_of_b5_has_its_place():
    from icda.models import build_model

    with torch.device("meta"):
        ours = {
            n: list(t.shape) for n, t in build_model("mit_b5", 19).state_dict().items() if n not in ("mean", "std")
        }
    renamed = {rename(n): s for n, s in KEYS.items() if not UNUSED.match(n)}
    assert renamed == ours
    assert len(KEYS) - len(renamed) == 8  # per stage: position table, its index, and a norm of two tensors


@pytest.mark.parametrize("depths", [(2, 2, 2, 2), (3, 4, 6, 3)])
def test_size_is_read_off_and_values_arrive(depths):
    state = recipe.state_dict(recipe.published_shapes(KEYS, depths))
    model = load_published({"state_dict": {**state, "m_head.x": torch.zeros(1), "epoch": torch.zeros(1)}})
    assert len(model.encoder.stages_2.blocks) == depths[2]
    torch.testing.assert_close(model.head.classifier.bias, recipe.weight("head.conv_seg.bias", (19,)))
    assert not model.training


def test_lightning_file_and_model_without_dar(tmp_path, published_b1):
    state = {n: t for n, t in published_b1.items() if not n.startswith("dat.")}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "icda.ckpt")
    assert load_published(tmp_path / "icda.ckpt").dar is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("head.conv_seg.bias"), "missing 1 .*head.classifier.bias"),
        (lambda s: s.update({"dat.stages.0.extra": torch.zeros(1)}), "unknown 1 .*dat.stages.0.extra"),
        (lambda s: s.update({"dat.down_projs.0.0.bias": torch.zeros(3)}), "does not fit mit_b1: .*size mismatch"),
        (lambda s: s.pop("backbone.patch_embed1.proj.weight"), "not a published ICDA checkpoint"),
        (lambda s: [s.pop(n) for n in list(s) if "block3.1" in n], "no MiT has"),
    ],
)
def test_what_does_not_fit_is_named(published_b1, change, message):
    state = dict(published_b1)
    change(state)
    with pytest.raises(UserError, match=message):
        load_published(state)


def test_other_numbers_of_classes_and_other_files(published_b1, tmp_path):
    with pytest.raises(UserError, match="head of 19 classes, expected num_classes=11"):
        load_published(published_b1, num_classes=11)
    (tmp_path / "page.ckpt").write_text("<html>not a checkpoint</html>")
    with pytest.raises(UserError, match="could not be read"):
        load_published(tmp_path / "page.ckpt")
    with pytest.raises(UserError, match="there is no file"):
        load_published(tmp_path / "none.ckpt")
