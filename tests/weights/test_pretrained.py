"""timm's own weights: from the Hugging Face cache, by download, and the line that says what to do without either."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import SegformerConfig, SegformerForImageClassification

from icda.errors import UserError
from icda.models import create_encoder
from icda.training.loop import Run
from icda.weights import pretrained

COMMIT = "0123456789abcdef0123456789abcdef01234567"

CREATE = """
import sys
import torch
from icda.errors import UserError
from icda.models import create_encoder
torch.manual_seed(1)
try:
    torch.save(create_encoder(sys.argv[1], weights="timm").state_dict(), sys.argv[2])
except UserError as error:
    sys.exit(str(error))
"""


def snapshot(home: Path, repository: str) -> Path:
    """The folder of a repository's files in a Hugging Face cache."""
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    return folder / "snapshots" / COMMIT


def create(name: str, home: Path, **variables: str) -> tuple[dict[str, torch.Tensor] | None, str]:
    """State of the encoder that a process of its own makes with ``weights=timm``, and what it writes to stderr."""
    out = home / "encoder.pt"
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_"))}
    local = {"HF_HOME": str(home), "TORCH_HOME": str(home / "torch"), "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    environment = {**keep, **local, "no_proxy": "127.0.0.1", **variables}
    command = [sys.executable, "-c", CREATE, name, str(out)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return torch.load(out) if result.returncode == 0 else None, result.stderr.strip()


@pytest.fixture(scope="module")
def segformer() -> SegformerForImageClassification:
    torch.manual_seed(0)
    return SegformerForImageClassification(SegformerConfig(num_labels=1000, drop_path_rate=0.0)).eval()  # b0's sizes


@torch.no_grad()
def assert_is(state: dict[str, torch.Tensor], segformer: SegformerForImageClassification) -> None:
    """The encoder of these weights gives the maps of transformers' network."""
    encoder = create_encoder("mit_b0").eval()
    encoder.load_state_dict(state)
    for module in encoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5  # as transformers has it everywhere
    x = torch.randn(1, 3, 64, 96)
    expected = segformer.segformer(x, output_hidden_states=True).hidden_states
    for mine, other in zip(encoder(x), expected, strict=True):
        torch.testing.assert_close(mine, other.reshape(mine.shape), rtol=0, atol=2e-5)


@pytest.mark.slow  # libraries read their environment when they are imported: a process of its own
def test_from_the_cache_without_a_network(tmp_path, segformer):
    segformer.save_pretrained(snapshot(tmp_path, "nvidia/mit-b0"))
    assert_is(create("mit_b0", tmp_path, HF_HUB_OFFLINE="1")[0], segformer)


@pytest.fixture
def hub(tmp_path, segformer) -> Iterator[str]:
    """Address of a hub that has, as nvidia/mit-b0 on the real one, ``pytorch_model.bin`` and no safetensors."""
    segformer.save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "pytorch_model.bin"
    torch.save(load_file(tmp_path / "saved" / "model.safetensors"), file)
    body = file.read_bytes()

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            here = self.path == "/nvidia/mit-b0/resolve/main/pytorch_model.bin"
            self.send_response(200 if here else 404)
            self.send_header("X-Repo-Commit", COMMIT)
            if here:
                self.send_header("ETag", '"1"')
                self.send_header("Content-Length", str(len(body)))
            else:
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


NOTHING = "http://127.0.0.1:9"  # an address that nothing listens at


@pytest.mark.slow  # libraries read their environment when they are imported: a process of its own
def test_by_download_and_then_from_the_cache(tmp_path, segformer, hub):
    assert_is(create("mit_b0", tmp_path, HF_ENDPOINT=hub)[0], segformer)
    assert (tmp_path / "hub" / "models--nvidia--mit-b0" / "snapshots" / COMMIT / "pytorch_model.bin").is_file()
    state, said = create("mit_b0", tmp_path, HF_ENDPOINT=NOTHING)
    assert_is(state, segformer)
    assert "Retrying" not in said  # the hub's client would try for half a minute before it looked into its cache


@pytest.mark.slow
def test_neither_network_nor_cache(tmp_path):
    state, line = create("mit_b5", tmp_path, HF_ENDPOINT=NOTHING)
    assert state is None
    assert "\n" not in line  # nor do lines of the hub's client stand before it, which would try for 46 seconds
    for part in (
        "the weights of mit_b5 could neither be read from the cache nor downloaded (Connect",
        "get model.safetensors or pytorch_model.bin from https://huggingface.co/nvidia/mit-b5, or the SegFormer "
        "authors' mit_b5.pth, and give model.encoder.weights=PATH of it",
        f"{tmp_path / 'hub' / 'models--nvidia--mit-b5'}",
        "model.encoder.weights=none trains from random weights",
    ):
        assert part in line


@pytest.fixture
def offline(tmp_path, monkeypatch) -> Path:
    """An empty Hugging Face cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(pretrained, "_why_unreachable", lambda config: "no network")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "where"),
    [
        (
            "resnet18",
            r"model\.safetensors or pytorch_model\.bin from https://huggingface\.co/timm/resnet18\.a1_in1k and",
        ),
        ("resnet18.tv_in1k", r"https://huggingface\.co/timm/resnet18\.tv_in1k and"),
        ("tf_efficientnet_lite0", r"timm/tf_efficientnet_lite0\.in1k and"),
    ],
)
def test_other_encoders_say_where_their_file_is(offline, name, where):
    with pytest.raises(UserError, match=r"nor downloaded \(no network\); get .*" + where):
        create_encoder(name, weights="timm")


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "tf_efficientnet_lite0"])
@torch.no_grad()
def test_other_encoders_from_the_cache(offline, name, file):
    donor = timm.create_model(name).eval()
    path = snapshot(offline, timm.get_pretrained_cfg(name).hf_hub_id) / file
    (save_file if path.suffix == ".safetensors" else torch.save)(donor.state_dict(), path)
    encoder = create_encoder(name, weights="timm").eval()
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(encoder(x)[-1], donor.forward_intermediates(x)[1][-1])


@pytest.mark.parametrize(("name", "lost"), [("resnet18", "layer4.0.conv1.weight"), ("mit_b0", "stages.2.norm.bias")])
def test_a_cached_file_that_lacks_weights_is_refused(offline, name, lost):
    state = timm.create_model(name).state_dict()
    del state[lost]
    save_file(state, snapshot(offline, timm.get_pretrained_cfg(name).hf_hub_id) / "model.safetensors")
    with pytest.raises(UserError, match=lost) as caught:
        create_encoder(name, weights="timm")
    assert "\n" not in str(caught.value)


def test_a_broken_cached_file_is_named(offline):
    path = snapshot(offline, "nvidia/mit-b0") / "model.safetensors"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        create_encoder("mit_b0", weights="timm")


def test_no_such_weights():
    with pytest.raises(UserError, match=r"timm has weights of these names: mit_b0\.nvidia_in1k"):
        create_encoder("mit_b0.cityscapes", weights="timm")
    bare = next(n for n in ("resnetblur18", "resnet50t") if not timm.get_pretrained_cfg(n).has_weights)
    with pytest.raises(UserError, match=rf"timm has no pretrained weights of {bare}; .* none to train from random"):
        create_encoder(bare, weights="timm")


def test_training_from_nothing_must_be_asked_for(offline, compose_train):
    assert compose_train("model=icda_small").model.encoder.weights == "none"  # the demo's network
    assert compose_train("model=icda_lite").model.encoder.weights == "package"
    with pytest.raises(UserError, match=r"mit_b5 could neither be read from the cache .*=none trains from random"):
        Run(compose_train("model=icda_daformer"), offline / "run")
