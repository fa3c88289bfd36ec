"""Scoring a checkpoint on labelled sets: what ``scripts/eval.py`` does."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, ListConfig, OmegaConf
from tqdm.contrib.logging import logging_redirect_tqdm

from icda.config import OVERLAP, least
from icda.data.base import SegmentationDataset
from icda.data.overlap import settle_overlaps
from icda.data.setup import attach_cache, open_part, with_data
from icda.device import pick_device
from icda.errors import UserError
from icda.evaluation import evaluate
from icda.inference import Views, prepared
from icda.metrics import ConfusionMatrix, UncertaintyIoU
from icda.prediction.inputs import result_name
from icda.prediction.outputs import Background, PredictionWriter
from icda.prediction.settings import PRECISION
from icda.report.collect import Collector, Pictures
from icda.report.compare import EVAL_JSON, load_other
from icda.report.page import REPORT, write_report
from icda.scores import (
    mean_scores,
    percent,
    readable,
    scores,
    sets_table,
    table,
    uncertainty_scores,
    uncertainty_text,
)
from icda.training.checkpoint import Trained, load_trained
from icda.training.durable import write_whole
from icda.training.precision import Precision
from icda.typed_config import Check, checked

log = logging.getLogger(__name__)

ALL = "all"
_LEAST_SIDE = 16  # pixels; less is no picture


@dataclass(frozen=True)
class EvalConfig:
    """What ``scripts/eval.py`` composes; ``dataset`` is None for the one of the checkpoint."""

    ckpt: str
    data_dir: str | None
    prepared_dir: str | None
    sets: Any
    overlap: str
    window: list[int] | None
    stride: list[int] | None
    flip: bool
    device: str
    precision: str
    workers: int
    teacher: bool
    scales: list[float]
    temperature: float
    save_predictions: bool
    report: bool
    report_images: int
    report_side: int
    compare: str | None
    progress: bool


_EVAL_CHECKS: tuple[Check, ...] = (
    ("sets", lambda v: v == "all" or (isinstance(v, ListConfig) and len(v) > 0), "all, or a list such as [val]"),
    OVERLAP,
    PRECISION,
    *least(0, "workers", "report_images"),
    *least(_LEAST_SIDE, "report_side"),
)


def validate_eval(cfg: DictConfig) -> EvalConfig:
    """The composed configuration of a scoring as typed objects; its ``dataset`` group is left aside.

    Args:
        cfg: What Hydra composed from ``conf/eval.yaml``.

    Raises:
        UserError: See ``validate``.
    """
    own = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "dataset"])
    if OmegaConf.is_missing(cfg, "ckpt"):
        raise UserError("ckpt is missing; give a checkpoint as ckpt=runs/.../checkpoints/best.pt")
    config = checked(EvalConfig, own, _EVAL_CHECKS)
    _views(config)
    if config.compare is not None and not config.report:
        raise UserError(f"compare={config.compare} is given, but report=false; the page is what compares: drop one")
    return config


def _views(config: EvalConfig) -> Views:
    """How images are shown to the network; refuses what does not go together."""
    return Views.of(config.window, config.stride, config.flip, config.scales, config.temperature)


def score(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Score a checkpoint on one or several sets, print their tables, write ``eval.json``, a page to look at (unless
    ``report`` is false) and, if asked, predictions.

    Args:
        cfg: Composed from ``conf/eval.yaml``.
        folder: Where ``eval.json``, ``report/index.html`` and ``predictions/<set>/`` go.

    Returns:
        What ``eval.json`` holds: ``sets`` (by the set's name, what ``icda.scores.scores`` and
        ``icda.report.collect.Collector.figures`` say), ``mean`` (over the sets), ``absent`` (sets that are not on
        disk), and what was scored.

    Raises:
        UserError: If the checkpoint or the data cannot be used.
    """
    config = validate_eval(cfg)
    other = None if config.compare is None else load_other(config.compare)
    device = pick_device(config.device)
    dtype = Precision(config.precision, device).dtype
    trained = load_trained(config.ckpt, device, teacher=config.teacher)
    trained = replace(trained, model=prepared(trained.model, dtype))  # what it is made of is freed
    datasets, absent = open_sets(config, cfg.get("dataset"), trained)
    for name, dataset in datasets.items():
        if other is not None and other.matching(name, dataset.classes.names) is None:
            log.warning("compare: %s has no scores of %s for the same classes\n", other.path, name)
    results, collected = {}, {}
    with logging_redirect_tqdm():
        for name, dataset in datasets.items():
            results[name], collected[name] = _score_one(config, trained, dataset, folder / "predictions" / name)
    result = {
        "sets": results,
        "mean": mean_scores(results),
        "absent": absent,
        "checkpoint": config.ckpt,
        "step": trained.step,
        "teacher": config.teacher,
    }
    if len(results) > 1:
        log.info("%s\n", sets_table(result))
    write_whole(folder / EVAL_JSON, lambda file: file.write(readable(result).encode("utf-8")))
    if config.report:
        write_report(folder / REPORT, result, collected, other)
    page = [folder / REPORT] if config.report else []
    written = [folder / EVAL_JSON, *page, *([folder / "predictions"] if config.save_predictions else [])]
    log.info("written: %s", ", ".join(map(str, written)))
    return result


def _score_one(
    config: EvalConfig, trained: Trained, dataset: SegmentationDataset, folder: Path
) -> tuple[dict[str, Any], Collector]:
    """Score one set, print its table, and write predictions if asked; returns its scores, and what was gathered."""
    classes = dataset.classes
    masked = all(sample.invalid is not None for sample in dataset.samples)
    uncertainty = UncertaintyIoU(len(classes), classes.ignore_index) if masked else None
    collector = _collector(config, trained, dataset)
    matrix = _segment_all(config, trained, dataset, folder, uncertainty, collector)
    result = {**scores(matrix, classes), "images": len(dataset), "dataset": dataset.name, **collector.figures()}
    result["confusion_matrix"] = matrix.matrix.tolist()
    log.info("%s\n", table(result))
    if uncertainty is not None:
        result["uncertainty"] = uncertainty_scores(uncertainty)
        log.info("%s\n", uncertainty_text(uncertainty))
    log.info("mIoU %s on %s, %d images\n", percent(result["miou"]), dataset.name, len(dataset))
    return result, collector


def _segment_all(
    config: EvalConfig,
    trained: Trained,
    dataset: SegmentationDataset,
    folder: Path,
    uncertainty: UncertaintyIoU | None,
    collector: Collector,
) -> ConfusionMatrix:
    """Segment all images of a set, and once more the few that the page shows but that were not kept."""
    on_prediction = None
    settings = trained.model, dataset, trained.model.mean.device
    with Background() as background:
        if config.save_predictions:
            writer = PredictionWriter(folder, dataset.classes, colors=True)

            def on_prediction(index: int, prediction: np.ndarray) -> None:
                background.submit(writer, result_name(dataset.samples[index]), None, prediction)

        matrix = evaluate(
            *settings,
            views=_views(config),
            workers=config.workers,
            progress=config.progress,
            uncertainty=uncertainty,
            on_prediction=on_prediction,
            observer=collector,
        )
    if missing := collector.settle():
        evaluate(*settings, views=_views(config), observer=collector.again, indices=missing)
    return matrix


def _collector(config: EvalConfig, trained: Trained, dataset: SegmentationDataset) -> Collector:
    mean, std = (values.cpu().numpy() for values in (trained.model.mean, trained.model.std))
    names = [result_name(sample) for sample in dataset.samples]
    pictures = Pictures(config.report_images, config.report_side) if config.report else None
    return Collector(dataset.classes, mean, std, names, pictures)


def open_sets(
    config: EvalConfig, chosen: DictConfig | None, trained: Trained
) -> tuple[dict[str, SegmentationDataset], list[str]]:
    """The sets to score on, by name, and the names of those that are not on disk.

    Args:
        config: Settings of the scoring.
        chosen: The ``dataset`` group given on the command line; None takes the one of the checkpoint's training.
        trained: The checkpoint.

    Raises:
        UserError: If a set that was asked for is missing, one is incomplete, or its classes are not the model's.
    """
    composed = with_data(trained.config, chosen, config.data_dir, config.prepared_dir)
    composed = OmegaConf.create(OmegaConf.to_container(composed, resolve=True))
    group = composed.dataset
    if group.get("prepare") is not None:
        open_part(group.prepare)
    nodes = {"val": group.val, **(group.get("score_also") or {}), "source": group.source}
    nodes = {name: node for name, node in nodes.items() if node is not None}
    wanted = [name for name in nodes if name != "source"] if config.sets == ALL else list(config.sets)
    if unknown := [name for name in wanted if name not in nodes]:
        raise UserError(f"sets: {group.name} has no set {unknown[0]}; choose from {', '.join(nodes)}")
    absent = []
    if config.sets == ALL:
        absent = [n for n in wanted if n != "val" and not Path(nodes[n].get("root", ".")).expanduser().is_dir()]
        for name in absent:
            log.info("%s is left out, there is no folder %s", name, nodes[name].root)
    datasets = {}
    for name in wanted:
        if name not in absent:
            dataset = open_part(nodes[name], **({"translations": None} if "translations" in nodes[name] else {}))
            _check_classes(config.ckpt, trained, dataset)
            datasets[name] = attach_cache(dataset, composed.prepared_dir, composed.data_dir)
    for line in settle_overlaps(config.overlap, trained.trained_frames, datasets):
        log.warning("%s\n", line)
    return datasets, absent


def _check_classes(ckpt: str, trained: Trained, dataset: SegmentationDataset) -> None:
    if dataset.classes.names != trained.classes.names:
        one, other = trained.classes, dataset.classes
        raise UserError(
            f"{ckpt} was trained for the classes {one.name} ({len(one)}), {dataset.name} has {other.name} "
            f"({len(other)}); choose a data set with the same classes"
        )
