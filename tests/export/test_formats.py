"""Files of every format give prediction's labels at sizes other than the one they were traced with."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from export_models import SMALL, batch, make_model

import icda
from icda.errors import UserError
from icda.export import formats
from icda.export.formats import FORMATS, METADATA_FILE, METADATA_KEY, OPSET, exported_program
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


@pytest.mark.parametrize("same", [pytest.param(BOTH[0], marks=pytest.mark.slow), *BOTH[1:]])
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
@pytest.mark.parametrize(("name", "same"), list(zip(["onnx", "pt2"], BOTH, strict=True)))
def test_with_one_of_them(tmp_path, name, same):
    path = write(tmp_path, name, SMALL, normalize=same, argmax=not same)
    check(path, name, SMALL, same, not same)


def test_mit_as_torchscript(tmp_path):
    check(write(tmp_path, "torchscript", "mit_b0"), "torchscript", "mit_b0", True, True)


@pytest.mark.slow
def test_a_mit_as_onnx_at_an_odd_size(tmp_path):
    path = write(tmp_path, "onnx", "mit_b0")
    levels, _, labels = batch(0, 1, (517, 771), make_model("mit_b0"))
    got = FORMATS["onnx"].load(path)[0](levels).numpy()
    assert np.mean(got == labels) >= 0.9999 and len(np.unique(labels)) > 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "encoder"), [("torchscript", "mit_b0"), ("pt2", "tf_efficientnet_lite0")])
def test_other_encoders(tmp_path, name, encoder):
    path = write(tmp_path, name, encoder)
    check(path, name, encoder, True, True)
    assert_without_paths(path)


def test_an_onnx_file_read_by_others(onnx_file):
    path = onnx_file
    proto = onnx.load(path)
    assert {p.key: json.loads(p.value) for p in proto.metadata_props} == {METADATA_KEY: METADATA}
    assert [(o.domain, o.version) for o in proto.opset_import if not o.domain] == [("", OPSET)]
    assert (proto.producer_name, proto.producer_version) == ("icda", icda.__version__)
    assert (proto.model_version, proto.graph.name) == (1, "icda")
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]  # the weights are in the one file
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape) == ("images", "tensor(uint8)", ["batch", 3, "height", "width"])
    assert (given.name, given.type, given.shape) == ("labels", "tensor(uint8)", ["batch", "height", "width"])


def paths_of_this_machine() -> list[bytes]:
    """Where code was traced, and the person's home."""
    folders = [Path(module.__file__).parents[1] for module in (icda, timm, torch)]
    return [str(folder).encode() for folder in (*folders, Path.home(), Path.cwd())]


def assert_without_paths(path: Path) -> None:
    parts = {path.name: path.read_bytes()}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            parts |= {name: archive.read(name) for name in archive.namelist()}
    found = [(name, text) for text in paths_of_this_machine() for name, part in parts.items() if text in part]
    assert found == []


def test_no_paths_of_this_machine(tmp_path, onnx_file):
    assert_without_paths(onnx_file)
    for name in ("torchscript", "pt2"):
        assert_without_paths(write(tmp_path, name, SMALL))


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive_is_as_pytorch_writes_it_but_for_the_sources(tmp_path):
    graph, theirs, path = InferenceGraph(make_model(SMALL)), tmp_path / "theirs.pt", tmp_path / "ours.pt"
    torch.jit.save(torch.jit.trace(graph, graph.example(), check_trace=False), theirs, {METADATA_FILE: "{}"})
    with theirs.open("rb") as source, path.open("wb") as file:
        formats._copy_without_sources(source, file)
    reader = torch._C.PyTorchFileReader(str(path))
    assert all(reader.get_record_offset(name) % 64 == 0 for name in reader.get_all_records())
    with zipfile.ZipFile(path) as ours, zipfile.ZipFile(theirs) as other:
        assert {entry.compress_type for entry in ours.infolist()} == {zipfile.ZIP_STORED} and ours.testzip() is None
        assert any(name.endswith(".debug_pkl") for name in other.namelist())
        records = [{n.partition("/")[2]: archive.read(n) for n in archive.namelist()} for archive in (ours, other)]
    kept = {name: content for name, content in records[1].items() if not name.endswith(".debug_pkl")}
    assert records[0].pop(".data/serialization_id") != kept.pop(".data/serialization_id")  # of names and contents
    assert records[0] == kept
    (version,) = (content for name, content in kept.items() if name.endswith("version"))
    assert int(version) > 3  # which the writer would give by itself


@pytest.mark.parametrize(
    "encoder", [SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in ("mit_b0", "tf_efficientnet_lite0"))]
)
def test_a_program_runs_on_another_device(encoder):
    """The device "meta" stands for a GPU here: its tensors are not on the CPU, and it computes shapes alone."""
    program = exported_program(InferenceGraph(make_model(encoder)))
    assert [node for node in program.graph.nodes if "device" in node.kwargs] == []
    assert [node for node in program.graph.nodes if "cpu" in str((node.args, node.kwargs))] == []
    module = program.module()
    with pytest.raises(RuntimeError, match="dtype mismatch"):
        module(torch.zeros(1, 3, 96, 100))  # float pictures would be taken for those of 0..255
    elsewhere = module.to("meta")(torch.empty(1, 3, 96, 100, dtype=torch.uint8, device="meta"))
    assert (elsewhere.shape, elsewhere.device.type) == ((1, 96, 100), "meta")


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
