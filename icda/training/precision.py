"""The precision that a training step computes in: float32, or mixed with bfloat16 or float16."""

from __future__ import annotations

import torch
from torch import Tensor

from icda.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What ``precision`` takes, and the dtype of matrix products and convolutions that it means."""

NO_GRAD = ("auto", "bf16", "same")
"""What ``no_grad_precision`` takes."""


class Precision:
    """How a training step computes: which dtype, and whether gradients are scaled.

    Parameters, their gradients, the optimiser's state, running averages and losses are float32 in every case; what
    changes is the dtype of the matrix products and convolutions, and of the maps between them. ``fp32`` changes
    nothing at all, bit for bit. TF32 is left as PyTorch has it: float32 convolutions on a GPU use it by default,
    matrix products do not; ``torch.set_float32_matmul_precision`` changes the latter.

    Attributes:
        name: ``fp32``, ``bf16`` or ``fp16``.
        device: Where the step runs.
        dtype: The dtype that the name means.
        no_grad_dtype: The dtype of passes that no gradient goes through; None where it is that of all others.
        scaler: Scales float16 losses so that small gradients do not underflow; disabled for the other two, where
            all its methods pass things through.

    Args:
        name: ``fp32``, ``bf16`` (CPU, and GPU that has it in hardware) or ``fp16`` (GPU alone).
        device: Where the step is going to run.
        no_grad: Of passes that no gradient goes through: ``same`` as the others, ``bf16``, or ``auto``, which is
            bfloat16 where the device has it in hardware. Half precision stays as it is.

    Raises:
        UserError: If the name is not known or the device cannot do it.
    """

    def __init__(self, name: str, device: torch.device, no_grad: str = "same") -> None:
        assert no_grad in NO_GRAD, (no_grad, NO_GRAD)
        if name not in DTYPES:
            raise UserError(f"precision={name} is not known; choose one of {', '.join(DTYPES)}")
        if name == "fp16" and device.type == "cpu":
            raise UserError("precision=fp16 needs a GPU, but the device is the CPU; give precision=bf16 or fp32")
        for key, value, mend in (("precision", name, "fp16 or fp32"), ("no_grad_precision", no_grad, "auto")):
            if value == "bf16" and device.type == "cuda" and not has_bf16(device):
                gpu = torch.cuda.get_device_name(device)
                raise UserError(f"{key}=bf16, but the GPU {gpu} has no bfloat16; give {key}={mend}")
        self.name = name
        self.device = device
        self.dtype = DTYPES[name]
        halved = name == "fp32" and (no_grad == "bf16" or (no_grad == "auto" and has_bf16(device)))
        self.no_grad_dtype = torch.bfloat16 if halved else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def __str__(self) -> str:
        return self.name if self.no_grad_dtype is None else f"{self.name} (bf16 without gradients)"

    def autocast(self) -> torch.autocast:
        """Context for forward passes; backward passes run outside it."""
        mixed = self.name != "fp32"
        # No cache of cast weights. In PyTorch 2.6 and some later versions a weight that is first cast under no_grad
        # is found there again by a pass with gradients, and gets none (2.15 gives it one); and a cache would go
        # stale where the teacher's weights move between two passes.
        return torch.autocast(
            self.device.type, dtype=self.dtype if mixed else torch.bfloat16, enabled=mixed, cache_enabled=False
        )

    def loss_scale(self) -> float:
        """What to multiply losses by before their backward pass: the scaler's factor, 1.0 where it is disabled."""
        return self.scaler.scale(torch.ones((), device=self.device)).item()  # also makes the scaler set itself up


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 in hardware; where it is emulated it is slower than float32.

    Args:
        device: A CPU, of which only x86 is known, or a GPU.
    """
    if device.type == "cpu":
        if hasattr(torch.cpu, "get_capabilities"):
            known = torch.cpu.get_capabilities()
            return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # before PyTorch 2.10
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def at_least_float32(tensor: Tensor) -> Tensor:
    """A half precision tensor as float32; any other as it is, float64 included."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
