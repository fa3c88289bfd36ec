"""scripts/export.py: what it writes, reports, and refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONF
from export_models import SMALL, batch, make_model, save_checkpoint

from icda.cli import run
from icda.data.prepared import TEMPORARY
from icda.export import export, formats
from icda.export import run as export_run
from icda.export.formats import FORMATS, METADATA_FILE
from icda.export.graph import EXAMPLE_SIZE
from icda.export.settings import ExportConfig
from icda.export.weights import FOLDER_FILES, LAYOUTS

ROOT = Path(__file__).parents[2]
FAST = "format=torchscript"


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("small") / "best.pt", SMALL)


@pytest.fixture(scope="module")
def mit_ckpt(tmp_path_factory):
    return save_checkpoint(
        tmp_path_factory.mktemp("mit") / "best.pt", "mit_b0", True, dilations=(1, 6, 12, 18), mlp_ratio=4
    )


@pytest.fixture
def here(monkeypatch, tmp_path, ckpt, capsys):
    """Runs the script's work in this process: exit status, standard error, the run's folder."""

    def run_here(*arguments: str) -> tuple[int, str, Path]:
        folder = tmp_path / "run"
        common = [f"ckpt={ckpt}", f"hydra.run.dir='{folder}'", "check_sizes=[[64,96],[65,71]]", "timing_runs=1"]
        monkeypatch.setattr(sys, "argv", ["export.py", *common, *arguments])
        status = run("export", export, CONF)
        return status, capsys.readouterr().err, folder

    return run_here


def one_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


def written(folder: Path) -> list[str]:
    """Files of a run beside its log and configuration."""
    return sorted(p.name for p in folder.iterdir() if p.name not in ("config", "export.log"))


def test_a_graph_its_report_and_its_log(here, ckpt):
    status, err, folder = here(FAST)
    assert status == 0, err
    assert written(folder) == ["export.json", f"{SMALL}.torchscript.pt"]
    report, file = json.loads((folder / "export.json").read_text()), folder / f"{SMALL}.torchscript.pt"
    assert report["file"] == str(file) and report["format"] == "torchscript"
    assert report["megabytes"] == file.stat().st_size / 1e6
    assert report["agreement"] == 1 and report["versions"]["torch"] == version("torch")
    assert [c["height"] for c in report["checks"]] == [64, 65, 65, 32]
    model = make_model(SMALL)
    run_file, metadata = FORMATS["torchscript"].load(file)
    assert metadata == report["metadata"]
    assert metadata["classes"]["names"][13] == "car" and metadata["classes"]["ignore_index"] == 255
    assert metadata["classes"]["palette"][0] == [128, 64, 128]
    assert (metadata["step"], metadata["network"], metadata["encoder"]) == (7, "student", SMALL)
    np.testing.assert_allclose(metadata["mean"], model.mean)
    assert metadata["trained_pixels"] == 360 * 480
    assert metadata["checkpoint_sha256"] == sha256(ckpt.read_bytes()).hexdigest()
    assert report["checkpoint"] == str(ckpt) and metadata["checkpoint"] == "best.pt"
    assert metadata["input"]["dtype"] == metadata["output"]["dtype"] == "uint8"
    levels, _, labels = batch(0, 1, (50, 83), model)
    np.testing.assert_array_equal(run_file(levels).numpy(), labels)
    log = (folder / "export.log").read_text()
    assert re.search(r"1 x 64 x 96 +\d+\.\d{3} s +\d+\.\d{3} s +100\.0000 %", log) and "deprecated" not in log
    assert "give pictures of about 172800 pixels, as in training; then resize the labels back, nearest" in log


def test_the_teacher_and_the_other_input_and_output(here, tmp_path):
    target = tmp_path / "there" / "teacher.pt"
    status, err, folder = here(FAST, "teacher=true", "normalize=false", "argmax=false", f"output={target}")
    assert status == 0, err
    assert written(folder) == ["export.json"]
    run_file, metadata = FORMATS["torchscript"].load(target)
    assert metadata["network"] == "teacher" and metadata["output"]["shape"] == ["batch", 19, "height", "width"]
    assert metadata["input"]["dtype"] == "float32"
    differences = [c["logit_difference"] for c in json.loads((folder / "export.json").read_text())["checks"]]
    assert len(differences) == 4 and max(differences) < 1e-4
    _, entering, labels = batch(0, 2, (50, 83), make_model(SMALL, seed=1))
    assert np.mean(run_file(entering).argmax(1).numpy() == labels) > 0.9999


def test_onnx(here):
    status, err, folder = here()
    assert status == 0 and err == "", err
    assert written(folder) == ["export.json", f"{SMALL}.onnx"]
    assert (
        len((folder / "export.log").read_text().splitlines()) == 8
    )  # the file, the size of pictures, and a table of six lines


def test_nothing_is_replaced_unasked(here, tmp_path, ckpt):
    target = tmp_path / "a.pt"
    target.write_text("mine")
    status, err, _ = here(FAST, f"output={target}")
    assert status == 1 and "exists; give overwrite=true" in one_line(err) and target.read_text() == "mine"
    status, err, _ = here(FAST, f"output={target}", "overwrite=true")
    assert status == 0 and FORMATS["torchscript"].load(target), err
    before = ckpt.read_bytes()
    status, err, _ = here(FAST, f"output={ckpt}", "overwrite=true")
    assert status == 1 and "is the checkpoint itself" in one_line(err) and ckpt.read_bytes() == before


def test_a_folder_is_replaced_when_asked_and_other_files_in_it_stay(here, tmp_path, mit_ckpt):
    arguments = f"ckpt={mit_ckpt}", "format=weights", "layout=huggingface", f"output={tmp_path / 'hub'}"
    assert here(*arguments)[0] == 0
    (tmp_path / "hub" / "notes.txt").write_text("mine")
    status, err, _ = here(*arguments)
    assert (
        status == 1
        and "hub holds config.json, model.safetensors, preprocessor_config.json; give overwrite=true" in one_line(err)
    )
    assert here(*arguments, "overwrite=true")[0] == 0
    assert sorted(p.name for p in (tmp_path / "hub").iterdir()) == sorted([*FOLDER_FILES, "notes.txt"])


def spoiled(graph, metadata, file):
    graph.head.classifier.bias += torch.arange(19.0)
    formats._write_torchscript(graph, metadata, file)


def twice_the_logits(graph, metadata, file):
    graph.head.classifier.weight *= 2
    graph.head.classifier.bias *= 2
    formats._write_torchscript(graph, metadata, file)


def fixed_in_size(graph, metadata, file):
    class Fixed(torch.nn.Module):
        def forward(self, images):
            return graph(images).reshape(2, *EXAMPLE_SIZE)

    traced = torch.jit.trace(Fixed(), graph.example(), check_trace=False)
    torch.jit.save(traced, file, {METADATA_FILE: json.dumps(metadata)})


@pytest.mark.parametrize(
    ("writer", "message"),
    [
        (twice_the_logits, "logits of the torchscript graph .* differ"),
        (spoiled, r"agree on \d+\.\d+ % of the pixels of .*, expected 99.99 %"),
        (fixed_in_size, "cannot be exported as"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_graph_that_does_something_else_is_not_kept(here, tmp_path, monkeypatch, writer, message):
    old = tmp_path / "old.pt"
    old.write_text("of before")
    broken = formats.Format(("pt",), writer, FORMATS["torchscript"].load)
    monkeypatch.setitem(formats.FORMATS, "torchscript", broken)
    logits = ["normalize=false", "argmax=false"] if writer is twice_the_logits else []
    status, err, folder = here(FAST, f"output={old}", "overwrite=true", *logits)
    assert status == 1 and re.search(message, one_line(err)) and "nothing was written" in err
    assert old.read_text() == "of before" and sorted(p.name for p in tmp_path.iterdir()) == ["old.pt", "run"]
    assert written(folder) == []


def test_a_place_that_cannot_be_written_to_is_told_before_any_work(here, tmp_path, monkeypatch):
    monkeypatch.setattr(export_run, "load_trained", None)  # it is not reached
    (tmp_path / "file").touch()
    for output, reason in ((tmp_path / "file/a.pt", "Not a directory"), (tmp_path / f"{'a' * 300}.pt", "too long")):
        status, err, _ = here(FAST, f"output={output}")
        assert status == 1 and re.search(f"{output} cannot be written: .*{reason}.*as output=", one_line(err))
    for layout in ("layout=timm", "layout=huggingface"):
        target = tmp_path / "no/such/a.safetensors"

        def refuse(dir):
            assert dir == tmp_path
            raise PermissionError(13, "Permission denied", f"{dir}/secret")

        monkeypatch.setattr(export_run.tempfile, "TemporaryFile", refuse)
        status, err, _ = here("format=weights", layout, f"output={target}")
        assert status == 1 and f"{target} cannot be written: Permission denied; give" in one_line(err)
        assert "secret" not in err and "hydra" not in err and not (tmp_path / "no").exists()


def test_a_full_disk(here, monkeypatch, tmp_path):
    def full(graph, metadata, file):
        raise OSError(28, "No space left on device", file.name)

    monkeypatch.setitem(formats.FORMATS, "torchscript", formats.Format((".pt",), full, FORMATS["torchscript"].load))
    status, err, _ = here(FAST, f"output={tmp_path / 'a.pt'}")
    assert status == 1 and f"{tmp_path / 'a.pt'} cannot be written: No space left" in one_line(err)
    assert ".tmp" not in err and "hydra" not in err


def test_the_temporary_file_says_whose_it_is(here, monkeypatch, tmp_path):
    seen = []

    def look(*arguments, **settings):
        seen.extend(path.name for path in (tmp_path / "there").iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(export_run, "compare", look)
    for name in ("mine.pt", f"{'名' * 80}.pt"):  # 243 of the 255 bytes that a name may have
        assert here(FAST, f"output='{tmp_path / 'there' / name}'")[0] == 130
    assert len(seen) == 2 and all(TEMPORARY.fullmatch(name) for name in seen)  # prepare.py removes such leftovers
    assert re.fullmatch(r"\.mine\.pt\.[0-9a-f]{12}\.tmp", seen[0]) and seen[1].startswith(".名名")


def test_ctrl_c_leaves_nothing(here, monkeypatch):
    def stop(*_arguments, **_settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(export_run, "compare", stop)
    status, err, folder = here(FAST)
    assert status == 130 and written(folder) == [], err


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights(here, mit_ckpt, layout):
    status, err, folder = here(f"ckpt={mit_ckpt}", "format=weights", f"layout={layout}")
    assert status == 0, err
    report = json.loads((folder / "export.json").read_text())
    assert Path(report["file"]).exists() and report["layout"] == layout and report["agreement"] is None
    assert report["megabytes"] > 13  # 3.3 million parameters of MiT-B0 in float32
    log = (folder / "export.log").read_text()
    assert LAYOUTS[layout].reader("mit_b0", Path(report["file"])) in log
    assert layout == "segformer" or report["file"] in log.split("\nfor ")[1]
    assert not re.search(r"FILE|FOLDER|NAME|[{}]", log)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["format=weights"], "needs a layout; give one of layout=huggingface, mmseg"),
        (["layout=mmseg"], "layout=mmseg is given, but format=onnx"),
        (["format=weights", "layout=mmseg"], "give layout=timm"),
        (["format=weights", "layout=published"], "the model's encoder is test_resnet; give layout=timm"),
        (["format=weights", "layout=timm", "argmax=false"], "argmax=false is given, but weights are not run"),
        (["format=tflite"], "format=tflite is out of range; expected one of onnx, torchscript, pt2, weights"),
        (["check_sizes=[[540]]"], "expected [height,width]"),
        (["check_sizes=[]"], "expected [height,width]"),
        (["check_sizes=[[40,40]]"], "each 64 pixels or more"),
        (["min_agreement=1.5"], "expected above 0 and at most 1"),
        (["output=model.pt"], "output=model.pt, but a file of format=onnx ends in .onnx"),
        (["format=weights", "layout=timm", "output=a.pth"], "ends in .safetensors"),
        (["output=."], "is a folder; give the name of a file, such as"),
        (["ckpt=nowhere.pt"], "nowhere.pt"),
        (["ckpt=conf/export.yaml"], "conf/export.yaml is text"),
        (["optset=17"], "optset is not a setting"),
    ],
)
def test_mistakes(here, monkeypatch, arguments, message):
    monkeypatch.chdir(ROOT)
    status, err, _ = here(*arguments)
    assert status == 1 and message in one_line(err)


def test_a_missing_package_is_told_before_anything_is_read(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    status, err, _ = here("ckpt=nowhere.pt")
    assert status == 1 and 'pip install -e ".[export]"' in one_line(err)


def test_settings_are_typed_and_read():
    keys = re.findall(r"^([a-z_]+):", (CONF / "export.yaml").read_text().split("hydra:")[0], re.M)
    keys.remove("defaults")
    assert set(keys) == {field.name for field in fields(ExportConfig)}
    source = (ROOT / "icda" / "export" / "run.py").read_text()
    assert [key for key in keys if f"config.{key}" not in source] == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "encoder"), [("onnx", "tf_efficientnet_lite0"), ("torchscript", "mit_b0")])
def test_as_a_person_types_it(tmp_path, encoder, name):
    path = save_checkpoint(tmp_path / "best.pt", encoder)
    command = [sys.executable, str(ROOT / "scripts" / "export.py"), f"ckpt={path}", f"format={name}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    report = json.loads(next((tmp_path / "runs" / "export").glob("*/export.json")).read_text())
    sizes = [(c["batch"], c["height"], c["width"]) for c in report["checks"][:3]]
    assert sizes == [(1, 540, 960), (1, 517, 771), (2, 517, 771)]
    assert report["agreement"] >= 0.9999 and min(c["agreement"] for c in report["checks"][:3]) >= 0.9999
