"""Segmenting pictures and videos with a trained network: what ``scripts/predict.py`` does."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from icda.data.base import SegmentationDataset
from icda.data.loader import batches
from icda.device import pick_device
from icda.errors import UserError
from icda.inference import WHOLE, Views, prepared, segment
from icda.models import SegmentationModel
from icda.prediction.film import FILM_FILES, Film
from icda.prediction.inputs import (
    PARTS,
    InputSize,
    PictureReader,
    Pictures,
    check_apart,
    chosen_size,
    entering,
    existing,
    find_pictures,
    is_video,
    open_input,
    pictures_in,
    pictures_of,
    training_size,
)
from icda.prediction.outputs import RESULTS, Background, PredictionWriter, counted
from icda.prediction.settings import PredictConfig, validate_predict
from icda.prediction.submission import BENCHMARKS, Benchmark, Submission, find_benchmark
from icda.prediction.video import VideoReader
from icda.training.checkpoint import Trained, load_trained
from icda.training.precision import Precision

log = logging.getLogger(__name__)

_SUMMARY, _ZIP = "predict.json", "submission.zip"

Take = Callable[[int, np.ndarray, np.ndarray, np.ndarray | None], None]
"""Gets position, RGB image (H, W, 3) uint8, train ids (H, W) uint8, and confidence (H, W) float32 if asked for."""


def predict(cfg: DictConfig, folder: Path, benchmarks: Mapping[str, Benchmark] = BENCHMARKS) -> dict[str, Any]:
    """Segment what is asked for and write labels, overlays and what else is wanted into ``folder``.

    Args:
        cfg: Composed from ``conf/predict.yaml``.
        folder: The run's folder.
        benchmarks: Rules of the servers (see ``icda.prediction.submission``).

    Returns:
        What ``predict.json`` holds: what was segmented, how many, which were skipped, and how fast.

    Raises:
        UserError: If checkpoint, input or settings cannot be used; with ``on_error=skip`` after everything else has
            been written, if images were skipped.
    """
    config = validate_predict(cfg)
    device = pick_device(config.device)
    path = None if config.input in PARTS else existing(config.input)
    if path is not None:
        check_apart(path, folder, (*RESULTS, _SUMMARY, _ZIP, *FILM_FILES))
    dtype = Precision(config.precision, device).dtype
    trained = load_trained(config.ckpt, device, teacher=config.teacher)
    trained = replace(trained, model=prepared(trained.model, dtype))  # what it is made of is freed
    video = path is not None and is_video(path)
    labels = (not video) if config.labels == "auto" else config.labels
    if not (labels or config.overlays or config.colors or config.confidence or config.submission):
        raise UserError("nothing is to be written; give one of labels=true, overlays=true, colors=true")
    for name in (_SUMMARY, _ZIP, *FILM_FILES):  # of an earlier run, which this one may not replace
        (folder / name).unlink(missing_ok=True)
    writer = PredictionWriter(
        folder,
        trained.classes,
        labels=labels,
        overlays=config.overlays and not video,
        colors=config.colors,
        confidence=config.confidence,
        opacity=config.opacity,
    )
    with logging_redirect_tqdm():
        if video:
            done = _predict_video(config, trained, path, folder, writer)
        else:
            done = _predict_pictures(config, cfg.get("dataset"), trained, path, folder, writer, benchmarks)
    summary = {
        "input": config.input,
        **done,
        "checkpoint": config.ckpt,
        "step": trained.step,
        "teacher": config.teacher,
    }
    (folder / _SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
    _report(summary, folder)
    return summary


def _report(summary: dict[str, Any], folder: Path) -> None:
    """Say what was done; a ``UserError`` about what was skipped."""
    unit = "frames" if "frames" in summary else "images"
    count, seconds, skipped = summary[unit], summary["seconds"], summary.get("skipped", [])
    rate = summary["per_second"]
    log.info("%s in %.1f s, %.2f %s/s; written to %s", counted(count, unit), seconds, rate, unit, folder)
    if skipped:
        raise UserError(
            f"{len(skipped)} of {counted(len(skipped) + count, 'images')} could not be used; see "
            f"{folder / _SUMMARY}, the first: {skipped[0]['error']}"
        )


def _predict_pictures(
    config: PredictConfig,
    chosen: DictConfig | None,
    trained: Trained,
    path: Path | None,
    folder: Path,
    writer: PredictionWriter,
    benchmarks: Mapping[str, Benchmark],
) -> dict[str, Any]:
    """Images of a path, or of a part of a data set if there is none; ``done`` as ``predict.json`` tells it."""
    dataset = None if path is not None else open_input(config.input, trained.config, chosen, config.data_dir)
    if dataset is None:
        pictures, what = find_pictures(path, without=folder), str(path)
        size = chosen_size(config.size, training_size(trained.config))
    else:
        pictures, what = pictures_of(dataset), dataset.name
        size = chosen_size(config.size, InputSize(fixed=dataset.size))
    if pictures.left_aside:
        log.warning("left aside: %s", pictures.left_aside)
    if path is not None and (inside := pictures_in(path)) > 1:
        log.warning("%s holds %d pictures; only the first is taken", path, inside)
    with _submission(config, dataset, trained, folder, benchmarks) as submission:
        count, device = counted(len(pictures), "images"), trained.model.mean.device
        log.info("%s: %s, entering at %s, on %s", what, count, size, device)

        def take(index: int, image: np.ndarray, labels: np.ndarray, confidence: np.ndarray | None) -> None:
            writer(pictures.names[index], image, labels, confidence)
            if submission is not None:
                submission.add(index, labels, confidence)

        start = time.monotonic()
        skipped = predict_pictures(
            trained.model,
            pictures,
            size,
            take,
            views=_views(config),
            confidence=config.confidence or config.submission,
            skip=config.on_error == "skip",
            as_jpeg=config.overlays,
            workers=config.workers,
            progress=config.progress,
        )
        done, seconds = len(pictures) - len(skipped), time.monotonic() - start
        if submission is not None and not skipped:
            log.info("submission for %s: %s", submission.benchmark.name, submission.finish())
    return {"images": done, "skipped": skipped, "seconds": seconds, "per_second": done / seconds}


def _submission(
    config: PredictConfig,
    dataset: SegmentationDataset | None,
    trained: Trained,
    folder: Path,
    benchmarks: Mapping[str, Benchmark],
) -> AbstractContextManager[Submission | None]:
    """Where predictions are collected for a server, if that is asked for."""
    if not config.submission or dataset is None:
        return nullcontext()
    return Submission(
        dataset,
        find_benchmark(dataset, benchmarks),
        trained.classes,
        folder / _ZIP,
        layout=config.submission_layout,
        invalid_threshold=config.invalid_threshold,
    )


def _predict_video(
    config: PredictConfig, trained: Trained, path: Path, folder: Path, writer: PredictionWriter
) -> dict[str, Any]:
    """All frames of a video; ``done`` as ``predict.json`` tells it."""
    size = chosen_size(config.size, training_size(trained.config))
    with VideoReader(path) as video:
        height, width = video.size
        declared = "an unknown number of frames" if video.declared is None else counted(video.declared, "frames")
        log.info(
            "%s: %d x %d (height x width), %.6g frames/s, %s, entering at %s, on %s",
            path, height, width, video.fps, declared, size, trained.model.mean.device,
        )  # fmt: skip
        film = None
        if config.overlays:
            film = Film(folder, config.video, video.fps, video.size, trained.classes, config.opacity)

        def take(index: int, image: np.ndarray, labels: np.ndarray, confidence: np.ndarray | None) -> None:
            writer(f"{index:06d}", image, labels, confidence)
            if film is not None:
                film.write(image, labels, confidence)

        start = time.monotonic()
        try:
            count = predict_video(
                trained.model,
                video,
                size,
                take,
                views=_views(config),
                confidence=config.confidence or (film is not None and film.needs_confidence),
                progress=config.progress,
            )
        except KeyboardInterrupt:
            if film is not None:
                log.warning("stopped; %s", film.told)
            raise
        finally:
            if film is not None:
                film.close()
        seconds = time.monotonic() - start
        if count < (video.declared or 0):
            log.warning("%s names %s, of which %d could be read; it may be damaged", path, declared, count)
    return {
        "frames": count,
        "frames_declared": video.declared,
        "fps": video.fps,
        "seconds": seconds,
        "per_second": count / seconds,
    }


def predict_pictures(
    model: SegmentationModel,
    pictures: Pictures,
    size: InputSize,
    take: Take,
    *,
    views: Views = WHOLE,
    confidence: bool = False,
    skip: bool = False,
    as_jpeg: bool = False,
    workers: int = 0,
    progress: bool = False,
) -> list[dict[str, str]]:
    """Segment pictures one by one; reading, network and ``take`` overlap.

    Args:
        model: In evaluation mode; best one of ``icda.inference.prepared``.
        pictures: What to read.
        size: At which they enter the network.
        take: Called for each picture, from threads, in no certain order.
        views: How they are shown to the network.
        confidence: Whether it needs the confidence.
        skip: Whether a picture that cannot be used is left out instead of raising.
        as_jpeg: Whether ``take`` writes JPEGs of the pictures' size, so that larger ones than these hold are refused.
        workers: Processes that read.
        progress: Whether to show a progress bar, on a terminal.

    Returns:
        ``file`` and ``error`` of what was left out.

    Raises:
        UserError: If a picture cannot be used, or the memory does not suffice.
    """
    skipped = []
    reader = PictureReader(pictures.paths, size, model.mean, model.std, skip, as_jpeg)
    with Background() as background:
        for sample in _bar(batches(reader, 1, workers), len(pictures), "image", progress):
            index = int(sample["index"])
            if "error" in sample:
                skipped.append({"file": str(pictures.paths[index]), "error": sample["error"][0]})
                continue
            image = sample["image"][0].numpy()
            labels, probability = segment(model, sample["entering"], image.shape[:2], confidence, views)
            background.submit(take, index, image, labels, probability)
    return skipped


def predict_video(
    model: SegmentationModel,
    video: VideoReader,
    size: InputSize,
    take: Take,
    *,
    views: Views = WHOLE,
    confidence: bool = False,
    progress: bool = False,
) -> int:
    """Segment the frames of a video; reading, network and ``take`` overlap.

    Args:
        model: In evaluation mode; best one of ``icda.inference.prepared``.
        video: An open video.
        size: At which frames enter the network.
        take: Called for each frame in order, from one thread; for all that were segmented also after an error.
        views: How they are shown to the network.
        confidence: Whether it needs the confidence.
        progress: Whether to show a progress bar, on a terminal.

    Returns:
        Number of frames.
    """
    count = 0
    with Background(threads=1) as background:
        for count, image in enumerate(_bar(video, video.declared, "frame", progress), start=1):
            labels, probability = segment(model, _entering(model, image, size), image.shape[:2], confidence, views)
            background.submit(take, count - 1, image, labels, probability)
    return count


def _views(config: PredictConfig) -> Views:
    return Views.of(config.window, config.stride, config.flip, config.scales, config.temperature)


def _bar(items: Any, total: int | None, unit: str, progress: bool) -> tqdm:
    disable, form = None if progress else True, bar_format(total, unit)
    return tqdm(items, total=total, desc="predict", unit=unit, disable=disable, leave=False, bar_format=form)


def bar_format(total: int | None, unit: str) -> str:
    """Of a progress bar whose rate is in units a second; tqdm's own turns rates below 1 around.

    Args:
        total: How many there are, if that is known.
        unit: What is counted, singular.
    """
    rate = "{rate_noinv_fmt}"
    if total is None:
        return f"{{desc}}: {{n_fmt}} {unit}s [{{elapsed}}, {rate}]"
    return f"{{l_bar}}{{bar}}| {{n_fmt}}/{{total_fmt}} [{{elapsed}}<{{remaining}}, {rate}]"


def _entering(model: SegmentationModel, image: np.ndarray, size: InputSize) -> Tensor:
    """An RGB image (H, W, 3) uint8 as the network takes it, (1, 3, h, w) float32."""
    return entering(image, size, model.mean.cpu().numpy(), model.std.cpu().numpy())[None]
