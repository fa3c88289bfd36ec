"""Segmenting pictures, videos and test splits with a trained network."""

from icda.prediction.run import predict

__all__ = ["predict"]
