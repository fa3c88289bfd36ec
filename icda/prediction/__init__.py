"""Segmenting pictures, videos and test splits with a trained network."""

from icda.prediction.run import predict, predict_image

__all__ = ["predict", "predict_image"]
