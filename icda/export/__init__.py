"""Trained networks for other programs: ONNX, TorchScript, torch.export, and weights in other layouts."""

from icda.export.graph import InferenceGraph
from icda.export.run import export

__all__ = ["InferenceGraph", "export"]
