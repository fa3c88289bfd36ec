"""How long the labels of a picture take."""

from __future__ import annotations

import torch

from icda.benchmark.flops import count_gflop
from icda.benchmark.peak import peak_gflops
from icda.benchmark.settings import BenchmarkConfig
from icda.benchmark.timing import Result, measure
from icda.data.classes import CITYSCAPES
from icda.device import pick_device
from icda.inference import prepared, segment
from icda.training.checkpoint import build_student
from icda.training.precision import Precision


def measure_infer(config: BenchmarkConfig) -> Result:
    """Segment a picture of noise as ``scripts/predict.py`` does, from the normalised picture to labels on the CPU.

    Args:
        config: Its model, whose weights are random, ``size``, ``output`` and ``precision``.

    Raises:
        UserError: If the device cannot do what is asked, or the memory does not suffice.
    """
    device = pick_device(config.device)
    precision = Precision(config.precision, device)
    torch.manual_seed(config.seed)
    student = build_student(config.model, len(CITYSCAPES), with_dar=False, pretrained=False).to(device).eval()
    model = prepared(student, precision.dtype)
    del student  # the weights that were folded or cast are not needed any more
    picture, output = torch.randn(1, 3, *config.size), (config.output[0], config.output[1])

    def call() -> object:
        return segment(model, picture, output, confidence=False)

    gflop = count_gflop(call)  # stands for one call before the measurement
    timing = measure(call, max(config.warmup - 1, 0), config.steps, device)
    heading = (
        f"infer: labels of a picture by {config.model.encoder.name}, which it enters at {config.size[0]} x "
        f"{config.size[1]}, at {output[0]} x {output[1]}, {config.precision} on {device}, threads {config.threads}"
    )
    peak = peak_gflops(device, precision.dtype)
    return Result(heading, timing, 1, {"picture": timing}, gflop=gflop, peak_gflops=peak, call=call)
