"""The optimiser and the learning rate as a function of the step (method section 9)."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW, Optimizer

from icda.models import SegmentationModel


def build_optimizer(
    model: SegmentationModel, lr: float, encoder_lr_factor: float, dar_lr_factor: float, weight_decay: float
) -> Optimizer:
    """AdamW over the parts of a model.

    Weight decay is applied to tensors of two or more dimensions and not to others. Parameters that get no gradient
    are left alone.

    Args:
        model: Encoder, head and, if there is one, DAR.
        lr: Learning rate of the head.
        encoder_lr_factor: The encoder's learning rate as a multiple of ``lr``.
        dar_lr_factor: DAR's learning rate as a multiple of ``lr``.
        weight_decay: Decay of tensors of two or more dimensions; DAR's table of positions has none.

    Returns:
        The optimiser; every group carries ``base_lr``, its learning rate at a schedule factor of 1, and ``part``.
    """
    parts: dict[str, tuple[nn.Module | None, float]] = {
        "encoder": (model.encoder, encoder_lr_factor),
        "head": (model.head, 1.0),
        "dar": (model.dar, dar_lr_factor),
    }
    groups = []
    for name, (module, factor) in parts.items():
        if module is None:
            continue
        for decayed in (True, False):
            groups.append(
                {
                    "params": [p for n, p in module.named_parameters() if _is_decayed(n, p) == decayed],
                    "weight_decay": weight_decay if decayed else 0.0,
                    "lr": lr * factor,
                    "base_lr": lr * factor,
                    "part": name,
                }
            )
    return AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=True)


def _is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weights decay: those of two or more dimensions, but for tables of positions, as in Swin."""
    return parameter.ndim >= 2 and not name.endswith("relative_position_bias_table")


def lr_factor(step: int, max_steps: int, warmup_steps: int, warmup_ratio: float = 1e-6) -> float:
    """Learning rate at a step as a multiple of its base: linear warm-up, then linear decay to 0.

    Args:
        step: From 0 to ``max_steps``.
        max_steps: Steps of the whole run.
        warmup_steps: Steps of the warm-up.
        warmup_ratio: Factor at step 0.
    """
    if step < warmup_steps:
        return 1 - (1 - step / warmup_steps) * (1 - warmup_ratio)
    return max(0.0, 1 - (step - warmup_steps) / max(1, max_steps - warmup_steps))


def set_lr(optimizer: Optimizer, factor: float) -> None:
    """Give every group ``factor`` times its base learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
