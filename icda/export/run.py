"""Writing a trained network for other programs: what ``scripts/export.py`` does."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

import icda
from icda.data.prepared import whole_file
from icda.errors import UserError
from icda.export.check import Compared, agreement, compare, require_agreement
from icda.export.formats import FORMATS
from icda.export.graph import INPUT, InferenceGraph
from icda.export.settings import WEIGHTS, ExportConfig, validate_export
from icda.export.weights import FOLDER_FILES, LAYOUTS, encoder_name, write_weights
from icda.prediction.inputs import training_size
from icda.training.checkpoint import Trained, find, load_trained
from icda.versions import versions

log = logging.getLogger(__name__)

REPORT = "export.json"
"""What was written and how it was checked, in the run's folder."""
_PACKAGES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "safetensors")


def export(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Write a trained network, check it, and report.

    Args:
        cfg: Composed from ``conf/export.yaml``.
        folder: The run's folder; the file goes there unless ``output`` names another place.

    Returns:
        What ``export.json`` holds: the file, its size, how it was checked, how fast it is, its metadata, and the
        versions of what made it.

    Raises:
        UserError: If checkpoint, output or settings cannot be used, or the exported graph gives other labels than
            PyTorch; then no file is left.
    """
    config = validate_export(cfg)
    if config.format != WEIGHTS:
        FORMATS[config.format].require(config.format)
    if config.output is not None:
        _check_output(config, Path(config.output).expanduser())
    checkpoint = find(config.ckpt)
    trained = load_trained(checkpoint, "cpu", config.teacher)
    path = folder / _default_name(config, trained) if config.output is None else Path(config.output).expanduser()
    _check_output(config, path)
    metadata = metadata_of(trained, config, checkpoint)
    results: list[Compared] = []
    with _writing_to(path):
        if config.format == WEIGHTS:
            sentences = write_weights(trained, config.layout, path, metadata)
            sentences.append(f"for {LAYOUTS[config.layout].reader(encoder_name(trained.model), path)}")
        else:
            results, sentences = _write_graph(config, trained, path, metadata), []
    if (pixels := metadata["trained_pixels"]) is not None:
        sentences.append(
            f"give pictures of about {pixels} pixels, as in training; then resize the labels back, nearest"
        )
    report = {
        "format": config.format,
        "layout": config.layout,
        "file": str(path),
        "checkpoint": str(checkpoint),
        "megabytes": _bytes_of(path) / 1e6,
        "agreement": agreement(results) if results else None,
        "checks": [result.plain() for result in results],
        "threads": torch.get_num_threads(),
        "metadata": metadata,
        "versions": versions(*_PACKAGES),
    }
    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    log.info("%s: %.1f MB", path, report["megabytes"])
    for sentence in sentences:
        log.info("%s", sentence)
    if results:
        log.info("%s", table(results, config.format))
    return report


def _write_graph(config: ExportConfig, trained: Trained, path: Path, metadata: dict[str, Any]) -> list[Compared]:
    """Write a graph to a temporary name, read and check it there, and only then give it its own."""
    file_format = FORMATS[config.format]
    graph = InferenceGraph(trained.model, normalize=config.normalize, argmax=config.argmax)
    sizes = [(size[0], size[1]) for size in config.check_sizes]
    with whole_file(path) as file:
        try:
            file_format.write(graph, metadata, file)
            file.flush()
            run, _ = file_format.load(Path(file.name))
            results = compare(
                trained.model,
                run,
                normalizes=config.normalize,
                argmax=config.argmax,
                sizes=sizes,
                smallest=file_format.smallest_side,
                timing_runs=config.timing_runs,
            )
        except (UserError, OSError):
            raise
        except Exception as error:  # whatever an exporter raises about an encoder, or its graph at another size
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{encoder_name(trained.model)} cannot be exported as {config.format} ({type(error).__name__}: "
                f"{reason}); nothing was written. Give another format="
            ) from error
        require_agreement(results, config.min_agreement, config.format)
    return results


def metadata_of(trained: Trained, config: ExportConfig, checkpoint: Path) -> dict[str, Any]:
    """What a file says about itself, as values for JSON: classes, colours, normalisation, input, output, origin.

    Args:
        trained: What the checkpoint holds.
        config: How it is exported.
        checkpoint: Its file.
    """
    graph = config.format != WEIGHTS
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "icda_version": icda.__version__,
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": digest,
        "step": trained.step,
        "network": "teacher" if config.teacher else "student",
        "encoder": encoder_name(trained.model),
        "classes": asdict(trained.classes),
        "mean": trained.model.mean.tolist(),
        "std": trained.model.std.tolist(),
        "trained_pixels": training_size(trained.config).area,
        **(_interface(trained, config) if graph else {}),
    }


def _interface(trained: Trained, config: ExportConfig) -> dict[str, Any]:
    """What a graph takes and gives."""
    takes = (
        {"dtype": "uint8", "meaning": "RGB, 0 to 255; normalised in the graph"}
        if config.normalize
        else {"dtype": "float32", "meaning": "RGB, scaled to 0..1, then (x - mean) / std"}
    )
    gives = (
        {"name": "labels", "dtype": "uint8", "shape": ["batch", "height", "width"], "meaning": "train ids"}
        if config.argmax
        else {
            "name": "logits",
            "dtype": "float32",
            "shape": ["batch", len(trained.classes), "height", "width"],
            "meaning": "logits at the size of the input",
        }
    )
    return {
        "input": {"name": INPUT, "shape": ["batch", 3, "height", "width"], **takes},
        "output": gives,
        "smallest_side": FORMATS[config.format].smallest_side,
    }


def _default_name(config: ExportConfig, trained: Trained) -> str:
    name = encoder_name(trained.model)
    if config.format != WEIGHTS:
        return name + FORMATS[config.format].suffixes[0]
    layout = LAYOUTS[config.layout]
    return f"{name}_{config.layout}{layout.suffixes[0] if layout.suffixes else ''}"


@contextmanager
def _writing_to(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}; give another place, as output="
        ) from error


def _check_output(config: ExportConfig, path: Path) -> None:
    """Refuse a place that the file cannot have, before any work is done."""
    with _writing_to(path):
        _check_name(config, path)
        # The nearest folder that is there; what is missing below it is made when there is something to write.
        first = (path if path.is_dir() else path.parent).absolute()
        holder = next(parent for parent in (first, *first.parents) if parent.exists())
        with tempfile.TemporaryFile(dir=holder):
            pass


def _check_name(config: ExportConfig, path: Path) -> None:
    of_weights = config.format == WEIGHTS
    suffixes = LAYOUTS[config.layout].suffixes if of_weights else FORMATS[config.format].suffixes
    what = f"layout={config.layout}" if of_weights else f"format={config.format}"
    if not suffixes:
        _check_folder(config, path, what)
        return
    if path.exists() and Path(config.ckpt).expanduser().exists() and path.samefile(find(config.ckpt)):
        raise UserError(f"output={path} is the checkpoint itself; give another output=")
    if path.is_dir():
        raise UserError(
            f"output={path} is a folder; give the name of a file, such as {path / ('model' + suffixes[0])}"
        )
    if not path.name.lower().endswith(suffixes):
        raise UserError(f"output={path}, but a file of {what} ends in {' or '.join(suffixes)}")
    if path.exists() and not config.overwrite:
        raise UserError(f"{path} exists; give overwrite=true to replace it, or another output=")


def _check_folder(config: ExportConfig, path: Path, what: str) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(f"output={path} is a file, but {what} writes a folder with {', '.join(FOLDER_FILES)}")
    held = sorted(name for name in FOLDER_FILES if (path / name).exists())
    if held and not config.overwrite:
        raise UserError(f"{path} holds {', '.join(held)}; give overwrite=true to replace it, or another output=")


def _bytes_of(path: Path) -> int:
    files = [path] if path.is_file() else [path / name for name in FOLDER_FILES]
    return sum(file.stat().st_size for file in files)


def table(results: Sequence[Compared], name: str) -> str:
    """How a graph did, a line for each batch, as text.

    Args:
        results: What ``compare`` found.
        name: Of the format.
    """
    lines = [f"{'pictures x height x width':<26}{'PyTorch':>10}{name:>14}  equal labels"]
    for r in results:
        what = f"{r.batch} x {r.height} x {r.width}"
        times = ["-" if s is None else f"{s:.3f} s" for s in (r.seconds_pytorch, r.seconds_exported)]
        lines.append(f"{what:<26}{times[0]:>10}{times[1]:>14}  {100 * r.agreement:.4f} %")
    lines.append(f"{'all pixels':<50}  {100 * agreement(results):.4f} %")
    return "\n".join(lines)
