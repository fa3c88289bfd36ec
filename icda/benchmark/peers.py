"""How fast the network is beside those of other libraries, for the operations that each of them does."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icda.allocator import keep_freed_memory
from icda.benchmark.flops import count_gflop
from icda.benchmark.peak import peak_gflops
from icda.benchmark.settings import BenchmarkConfig
from icda.benchmark.timing import Result, Timing, measure, synchronizer
from icda.data.classes import CITYSCAPES
from icda.device import pick_device
from icda.errors import UserError
from icda.inference import enough_memory, segment
from icda.training.checkpoint import build_student
from icda.training.precision import Precision, at_least_float32
from icda.weights.layouts import DEPTHS, width_of

OURS, TRANSFORMERS, SMP = "icda", "transformers", "smp"
LR = 6e-5  # of SegFormer's training; the time of a step does not depend on it


@dataclass(frozen=True)
class Network:
    """A network of some library, as that library's documentation uses it.

    Args:
        model: What is trained, on its device.
        logits: Logits (B, C, H, W) of normalised pictures (B, 3, H, W), brought to their size.
        labels: Train ids (1, h, w) of a normalised picture (1, 3, H, W) at a size (h, w), on the CPU.
    """

    model: nn.Module
    logits: Callable[[Tensor], Tensor]
    labels: Callable[[Tensor, tuple[int, int]], object]


def measure_peers(config: BenchmarkConfig) -> Result:
    """Segment a picture, and take a step of plain supervised training, with this network and with two others.

    The others are SegFormer with the same encoder, of transformers and of segmentation_models_pytorch (smp), each
    with its own head, of as many channels as the DAFormer head has. All have random weights, the memory format and
    the kind of attention that they have by themselves, the same precision and the same threads, and are called in
    turns, so that whatever else the machine does disturbs all alike. The step is forward pass, cross entropy at the
    pictures' size, backward pass and AdamW. The result is about this network's step.

    Args:
        config: Its model, ``size``, ``output``, ``crop``, ``batch`` and ``precision``.

    Returns:
        ``extra`` holds by row ``gflop_of``, ``gflops`` (10^9 operations per second) and ``peak_memory_gb_of`` (all
        three networks being there), and ``ratio``, by which factor this network does more operations per second than
        the row's.

    Raises:
        UserError: If the others do not have the encoder or are not installed, the device cannot do what is asked, or
            the memory does not suffice.
    """
    device = pick_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()  # which makes all of them faster
    precision = Precision(config.precision, device)
    torch.manual_seed(config.seed)
    with enough_memory(tuple(config.crop), "give a smaller crop=, size= or batch="):
        networks = build_networks(config, device)
        found = [
            _in_turns({f"{kind} {name}": call for name, call in calls(networks).items()}, config, device)
            for kind, calls in (
                ("infer", lambda networks: _inferences(networks, config, precision)),
                ("train", lambda networks: _steps(networks, config, precision)),
            )
        ]
    rows, gflop, memory = ({k: v for part in parts for k, v in part.items()} for parts in zip(*found, strict=True))
    gflops = {row: gflop[row] / statistics.median(timing.wall) for row, timing in rows.items()}
    ratio = {row: gflops[f"{row.split()[0]} {OURS}"] / value for row, value in gflops.items() if OURS not in row}
    return Result(
        _heading(config, networks, device, ratio),
        rows[f"train {OURS}"],
        config.batch,
        rows,
        gflop=gflop[f"train {OURS}"],
        peak_gflops=peak_gflops(device, precision.dtype),
        peak_memory_gb=memory[f"train {OURS}"],
        extra={"gflop_of": gflop, "gflops": gflops, "peak_memory_gb_of": memory, "ratio": ratio},
    )


def _heading(config: BenchmarkConfig, networks: Mapping[str, Network], device: torch.device, ratio: Mapping) -> str:
    crop, size, output = ("{} x {}".format(*pair) for pair in (config.crop, config.size, config.output))
    attention = networks[TRANSFORMERS].model.config._attn_implementation
    beside = ", ".join(f"{factor:.2f} x {row}" for row, factor in ratio.items())
    return (
        f"peers: {config.model.encoder.name} of {OURS} (DAFormer head, fused attention), {TRANSFORMERS} (attention "
        f"{attention}) and {SMP} (attention not fused), channels first; infer: a picture of {size} to labels of "
        f"{output}; train: a step on {config.batch} pictures of {crop}; {config.precision} on {device}, threads "
        f"{config.threads}; operations per second of {OURS}: {beside}"
    )


def build_networks(config: BenchmarkConfig, device: torch.device) -> dict[str, Network]:
    """The networks that are compared, by library, with random weights.

    Args:
        config: Its ``model``; the encoder is one of MiT, ``mit_b0`` to ``mit_b5``.
        device: Where they go.

    Raises:
        UserError: If the other libraries do not have the encoder, or are not installed.
    """
    name = config.model.encoder.name
    if name not in DEPTHS:
        raise UserError(
            f"model.encoder.name={name} is not in transformers' SegFormer, which what=peers compares with; give "
            f"model.encoder.name=mit_b0, or another of {', '.join(DEPTHS)}"
        )
    try:
        import segmentation_models_pytorch as smp
        from transformers import SegformerConfig, SegformerForSemanticSegmentation
    except ImportError as error:
        raise UserError(
            f"what=peers needs transformers and segmentation-models-pytorch, which cannot be imported ({error}); "
            'install them with pip install -e ".[test]"'
        ) from error
    channels, classes, width = config.model.head.channels, len(CITYSCAPES), width_of(name)
    rate = config.model.encoder.drop_path_rate
    settings = SegformerConfig(
        depths=list(DEPTHS[name]),
        hidden_sizes=[width, 2 * width, 5 * width, 8 * width],
        decoder_hidden_size=channels,
        num_labels=classes,
        **({} if rate is None else {"drop_path_rate": rate}),
    )
    theirs = smp.Segformer(name, encoder_weights=None, decoder_segmentation_channels=channels, classes=classes)
    return {
        OURS: _ours(build_student(config.model, classes, with_dar=False, pretrained=False).to(device)),
        TRANSFORMERS: _of_transformers(SegformerForSemanticSegmentation(settings).to(device)),
        SMP: _of_smp(theirs.to(device)),
    }


def _ours(model: nn.Module) -> Network:
    return Network(model, model, lambda picture, size: segment(model, picture, size, confidence=False)[0][None])


def _of_transformers(model: nn.Module) -> Network:
    """Its logits have stride 4."""

    def labels(picture: Tensor, size: tuple[int, int]) -> Tensor:
        return _resized(model(pixel_values=picture).logits, size).argmax(1).cpu()

    return Network(model, lambda images: _resized(model(pixel_values=images).logits, images.shape[2:]), labels)


def _of_smp(model: nn.Module) -> Network:
    """Its logits have the pictures' size, whose sides have to be multiples of the last stride."""
    stride = model.encoder.output_stride

    def logits(images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        pad = (0, -width % stride, 0, -height % stride)
        return model(F.pad(images, pad) if any(pad) else images)[:, :, :height, :width]

    return Network(model, logits, lambda picture, size: _resized(logits(picture), size).argmax(1).cpu())


def _resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def _inferences(
    networks: Mapping[str, Network], config: BenchmarkConfig, precision: Precision
) -> dict[str, Callable[[], object]]:
    """For each network, the way from a normalised picture to labels."""
    picture = torch.randn(1, 3, *config.size, device=precision.device)
    output = (config.output[0], config.output[1])

    def call(network: Network) -> object:
        with torch.inference_mode(), precision.autocast():
            return network.labels(picture, output)

    for network in networks.values():
        network.model.eval()
    return {name: lambda network=network: call(network) for name, network in networks.items()}


def _steps(
    networks: Mapping[str, Network], config: BenchmarkConfig, precision: Precision
) -> dict[str, Callable[[], object]]:
    """For each network, a step of supervised training."""
    images = torch.randn(config.batch, 3, *config.crop, device=precision.device)
    labels = torch.randint(len(CITYSCAPES), (config.batch, *config.crop), device=precision.device)

    def step_of(network: Network) -> Callable[[], object]:
        network.model.train()
        optimizer = torch.optim.AdamW(network.model.parameters(), LR, fused=True)
        scaler = torch.amp.GradScaler(precision.device.type, enabled=precision.scaler.is_enabled())

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with precision.autocast():
                loss = F.cross_entropy(at_least_float32(network.logits(images)), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

        return step

    return {name: step_of(network) for name, network in networks.items()}


Found = tuple[dict[str, Timing], dict[str, float], dict[str, float | None]]


def _in_turns(calls: Mapping[str, Callable[[], object]], config: BenchmarkConfig, device: torch.device) -> Found:
    """Times, operations in 10^9 and memory of calls; each is made once before the next round begins."""
    gflop = {name: count_gflop(call) for name, call in calls.items()}  # stands for one call before the measurement
    for _ in range(config.warmup - 1):
        for call in calls.values():
            call()
    timings = measure_in_turns(calls, config.steps, device)
    # Afterwards, since watching the memory makes the next call slower: it has to be taken from the system again.
    memory = {name: measure(call, 0, 1, device).peak_memory_gb for name, call in calls.items()}
    return timings, gflop, memory


def measure_in_turns(
    calls: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, Timing]:
    """Time several calls, in rounds of one call each.

    Args:
        calls: What is measured, by name.
        repeats: Rounds, at least 1.
        device: Where they run; it is waited for before and after each call.

    Returns:
        By name, the times of all rounds.
    """
    assert repeats > 0, repeats
    synchronize = synchronizer(device)
    timings = {name: Timing([], []) for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            synchronize()
            start, start_cpu = time.perf_counter(), time.process_time()
            call()
            synchronize()
            stop_cpu, stop = time.process_time(), time.perf_counter()
            timings[name].wall.append(stop - start)
            timings[name].cpu.append(stop_cpu - start_cpu)
    return timings
