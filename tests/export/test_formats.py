"""Files of every format give prediction's labels at sizes other than the one they were traced with."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_models import SMALL, batch, make_model

from icda.errors import UserError
from icda.export.formats import FORMATS, METADATA_FILE, METADATA_KEY, OPSET
from icda.export.graph import EXAMPLE_SIZE, InferenceGraph

METADATA = {"classes": {"names": ["Straße", "b"]}, "mean": [0.1, 0.2, 0.3], "step": None}
BOTH = [True, False]


def write(folder: Path, name: str, encoder: str, **options: bool) -> Path:
    path = folder / f"model{FORMATS[name].suffixes[0]}"
    with path.open("wb") as file:
        FORMATS[name].write(InferenceGraph(make_model(encoder), **options), METADATA, file)
    return path


def check(path: Path, name: str, encoder: str, normalize: bool, argmax: bool) -> None:
    model, smallest = make_model(encoder), FORMATS[name].smallest_side
    run, metadata = FORMATS[name].load(path)
    assert metadata == METADATA
    for count, size in ((1, (smallest, smallest)), (3, (77, 131)), (1, (smallest, 203)), (2, (150, smallest))):
        assert size != EXAMPLE_SIZE
        levels, entering, labels = batch(count, count, size, model)
        with torch.no_grad():
            got = run(levels if normalize else entering)
            expected = model(entering)
        assert got.dtype == (torch.uint8 if argmax else torch.float32)
        if argmax:
            assert np.mean(got.numpy() == labels) >= 0.9999
        else:
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("argmax", BOTH)
@pytest.mark.parametrize("normalize", BOTH)
def test_torchscript_with_every_input_and_output(tmp_path, normalize, argmax):
    path = write(tmp_path, "torchscript", SMALL, normalize=normalize, argmax=argmax)
    check(path, "torchscript", SMALL, normalize, argmax)


@pytest.mark.parametrize("same", BOTH)
def test_pt2_with_both_or_without(tmp_path, same):
    check(write(tmp_path, "pt2", SMALL, normalize=same, argmax=same), "pt2", SMALL, same, same)


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    """With normalisation and argmax."""
    return write(tmp_path_factory.mktemp("onnx"), "onnx", SMALL)


def test_onnx_from_levels_to_labels(onnx_file):
    check(onnx_file, "onnx", SMALL, True, True)


@pytest.mark.slow
def test_onnx_from_normalised_to_logits(tmp_path):
    check(write(tmp_path, "onnx", SMALL, normalize=False, argmax=False), "onnx", SMALL, False, False)


@pytest.mark.slow
@pytest.mark.parametrize("same", BOTH)
@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_with_one_of_them(tmp_path, name, same):
    path = write(tmp_path, name, SMALL, normalize=same, argmax=not same)
    check(path, name, SMALL, same, not same)


def test_mit_as_torchscript(tmp_path):
    check(write(tmp_path, "torchscript", "mit_b0"), "torchscript", "mit_b0", True, True)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["mit_b0", "tf_efficientnet_lite0"])
@pytest.mark.parametrize("name", FORMATS)
def test_other_encoders(tmp_path, name, encoder):
    check(write(tmp_path, name, encoder), name, encoder, True, True)


def test_an_onnx_file_read_by_others(onnx_file):
    path = onnx_file
    proto = onnx.load(path)
    assert {p.key: json.loads(p.value) for p in proto.metadata_props} == {METADATA_KEY: METADATA}
    assert [(o.domain, o.version) for o in proto.opset_import if not o.domain] == [("", OPSET)]
    assert b"/icda/" not in path.read_bytes() and b".py" not in path.read_bytes()  # no paths of this machine
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]  # the weights are in the one file
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape) == ("images", "tensor(uint8)", ["batch", 3, "height", "width"])
    assert (given.name, given.type, given.shape) == ("labels", "tensor(uint8)", ["batch", "height", "width"])


def test_files_of_pytorch_read_without_icda(tmp_path):
    extra = {METADATA_FILE: ""}
    with pytest.warns(FutureWarning, match="deprecated"):
        script = torch.jit.load(str(write(tmp_path, "torchscript", SMALL)), _extra_files=extra)
    assert json.loads(extra[METADATA_FILE]) == METADATA
    extra = {METADATA_FILE: ""}
    program = torch.export.load(write(tmp_path, "pt2", SMALL), extra_files=extra)
    assert json.loads(extra[METADATA_FILE]) == METADATA
    images = batch(0, 1, (70, 90), make_model(SMALL))[0]
    torch.testing.assert_close(script(images), program.module()(images))


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_not_installed(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)  # what makes an import fail
    with pytest.raises(
        UserError, match=rf'needs .*, but {package} cannot be imported.* -e "\.\[export\]"$'
    ) as caught:
        FORMATS["onnx"].require("onnx")
    assert "\n" not in str(caught.value)
    FORMATS["torchscript"].require("torchscript")
