"""The file formats of a deployed graph: how each is written, and read again to be checked."""

from __future__ import annotations

import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

import icda
from icda.errors import UserError
from icda.export.graph import INPUT, InferenceGraph
from icda.models.segmentation import SMALLEST_SIDE
from icda.weights.files import METADATA_KEY

OPSET = 18
"""Of the ONNX files: the exporter's own, without conversion; read by ONNX Runtime since 1.14 (February 2023)."""
METADATA_FILE = "icda.json"
"""Name of that text among the extra files of TorchScript and torch.export."""
ONNX_LIMIT = 2**31  # bytes of a protobuf message
_VERSIONS = (".data/version", "version")  # where an archive of PyTorch has its version; the writer adds its own

Run = Callable[[Tensor], Tensor]
"""Takes and gives what ``InferenceGraph.forward`` does."""


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        suffixes: Endings of its files; the first is given to a file that nobody named.
        write: Writes a graph and its metadata to an open file.
        load: Reads a file; returns what runs it, and its metadata.
        packages: What has to be installed beside the requirements.
        smallest_side: Pixels: a height and width from which on the file takes pictures, whatever the encoder; of pt2
            a bound that all encoders meet that were tried, some take smaller ones (see ``exported_program``).
    """

    suffixes: tuple[str, ...]
    write: Callable[[InferenceGraph, dict[str, Any], BinaryIO], None]
    load: Callable[[Path], tuple[Run, dict[str, Any]]]
    packages: tuple[str, ...] = ()
    smallest_side: int = SMALLEST_SIDE

    def require(self, name: str) -> None:
        """Import the packages.

        Args:
            name: Of the format, for the message.

        Raises:
            UserError: If one is not installed.
        """
        for package in self.packages:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise UserError(
                    f"format={name} needs {', '.join(self.packages)}, but {package} cannot be imported ({error}); "
                    'install them with pip install -e ".[export]"'
                ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the exporters tell and warn of: each step, that TorchScript is deprecated, and conditions on sizes,
    which are checked by running the file at several sizes."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def exported_program(graph: InferenceGraph) -> torch.export.ExportedProgram:
    """The graph as a program of torch.export, for any batch and any picture of 64 pixels a side or more.

    Below 64 pixels some map has a single cell, which PyTorch treats as a case of its own. The program runs on any
    device that it is moved to, and holds no lines and paths of the source code.
    """
    dynamic = torch.export.Dim.DYNAMIC  # a Dim with bounds would have to be proven for conditions on nested divisions
    with _quiet(), torch.no_grad():
        program = torch.export.export(
            graph, (graph.example(),), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},), strict=False
        )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            # It stays for the type, so that float pictures are refused; the device is the one of the export.
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != "device"}
    program.graph.lint()
    program.graph_module.recompile()
    return program


def _write_onnx(graph: InferenceGraph, metadata: dict[str, Any], file: BinaryIO) -> None:
    import onnx

    with _quiet():
        program = torch.onnx.export(
            exported_program(graph),
            (graph.example(),),
            dynamo=True,
            dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
            input_names=[INPUT],
            output_names=[graph.output],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _strip(proto)
    proto.producer_name, proto.producer_version, proto.model_version = "icda", icda.__version__, 1
    proto.graph.name = "icda"
    onnx.helper.set_model_props(proto, {METADATA_KEY: json.dumps(metadata)})
    if proto.ByteSize() >= ONNX_LIMIT:
        raise UserError(
            f"the ONNX file would have {proto.ByteSize() / 1e9:.1f} GB, but a single file holds at most 2.1 GB; give "
            "format=pt2"
        )
    onnx.checker.check_model(proto, full_check=True)
    file.write(proto.SerializeToString())


def _strip(proto: Any) -> None:
    """Take out what the exporter notes for its own developers: lines of source code and paths on this machine."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
    for part in (proto, *graph.node):
        part.ClearField("doc_string")


def _load_onnx(path: Path) -> tuple[Run, dict[str, Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()  # as PyTorch, so that times can be compared
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    metadata = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
    return lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0]), metadata


def _write_torchscript(graph: InferenceGraph, metadata: dict[str, Any], file: BinaryIO) -> None:
    whole = io.BytesIO()
    with _quiet(), torch.no_grad():
        # Its own check traces twice at one size; icda.export.check runs the file at other sizes, which tells more.
        traced = torch.jit.trace(graph, graph.example(), check_trace=False)
        torch.jit.save(traced, whole, _extra_files={METADATA_FILE: json.dumps(metadata)})
    whole.seek(0)
    _copy_without_sources(whole, file)


def _copy_without_sources(archive: BinaryIO, file: BinaryIO) -> None:
    """Copy a TorchScript archive without the records that tell which line of which file on this machine made what.

    ``torch.jit.save`` has no switch for them. PyTorch's own reader and writer of archives, with which ``torch.load``
    and ``torch.save`` work, keep the alignment of tensors and the version, after which operators are read.
    """
    reader, writer = torch._C.PyTorchFileReader(archive), torch._C.PyTorchFileWriter(file)
    version = next(name for name in _VERSIONS if reader.has_record(name))
    writer.set_min_version(int(reader.get_record(version)))
    for name in reader.get_all_records():
        if name not in _VERSIONS and not name.endswith(".debug_pkl"):
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()


def _load_torchscript(path: Path) -> tuple[Run, dict[str, Any]]:
    extra = {METADATA_FILE: ""}
    with _quiet():
        module = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
    return module, json.loads(extra[METADATA_FILE])


def _write_pt2(graph: InferenceGraph, metadata: dict[str, Any], file: BinaryIO) -> None:
    with _quiet():
        torch.export.save(exported_program(graph), file, extra_files={METADATA_FILE: json.dumps(metadata)})


def _load_pt2(path: Path) -> tuple[Run, dict[str, Any]]:
    extra = {METADATA_FILE: ""}
    with _quiet():
        program = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra)
    return program.module(), json.loads(extra[METADATA_FILE])


FORMATS: dict[str, Format] = {
    "onnx": Format((".onnx",), _write_onnx, _load_onnx, packages=("onnx", "onnxscript", "onnxruntime")),
    "torchscript": Format((".torchscript.pt", ".torchscript", ".ts", ".pt"), _write_torchscript, _load_torchscript),
    "pt2": Format((".pt2",), _write_pt2, _load_pt2, smallest_side=64),
}
"""By the name that ``format=`` takes."""
