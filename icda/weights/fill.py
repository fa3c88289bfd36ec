"""Copying weights into an encoder by name, all of them or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from icda.errors import UserError


def fill(encoder: nn.Module, state: Mapping[str, Tensor], what: str, advice: str) -> None:
    """Fill a module from a state dict under timm's names; nothing of it may be left as it was.

    Args:
        encoder: A timm model, whole or made with ``features_only=True``.
        state: Names of the whole timm model or of the feature extractor; entries the module lacks, such as a
            classifier's, are passed over.
        what: What the weights are called in messages, for example ``model.encoder.weights=mit_b0.pth``.
        advice: What to do if they do not fit.

    Raises:
        UserError: If an entry of the module is missing or has another shape; the module is unchanged.
    """
    own, found = encoder.state_dict(), {}
    for key, value in state.items():
        # timm's feature extractors call stages.0 stages_0, or put the whole model below "model" or "body".
        names = (key, key.replace(".", "_", 1), f"model.{key}", f"body.{key}")
        found.update({name: value for name in names if name in own})
    missing = [name for name in own if name not in found and not name.endswith("num_batches_tracked")]
    wrong = [name for name, value in found.items() if value.shape != own[name].shape]
    if missing or wrong:
        raise UserError(
            f"{what}: {len(missing)} of {len(own)} entries are missing and {len(wrong)} have another shape, the "
            f"first is {(wrong or missing)[0]}; {advice}"
        )
    encoder.load_state_dict(found, strict=False)


def set_normalisation(encoder: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Say with which mean and deviation an encoder's weights were trained; ``SegmentationModel`` takes them from it.

    Args:
        encoder: A timm model, whole or made with ``features_only=True``.
        mean: Of images in 0..1, one per channel.
        std: Their deviation.
    """
    # Not changed in place: timm's models may share the dictionary.
    encoder.pretrained_cfg = {**encoder.pretrained_cfg, "mean": tuple(mean), "std": tuple(std)}
    encoder.default_cfg = encoder.pretrained_cfg  # timm's older name of the same
