"""Data sets, and how training samples are made from them."""

from icda.data.camvid import CamVid
from icda.data.cityscapes import Cityscapes
from icda.data.classes import CAMVID, CITYSCAPES, ClassSet
from icda.data.darkzurich import DarkZurich

__all__ = ["CAMVID", "CITYSCAPES", "CamVid", "Cityscapes", "ClassSet", "DarkZurich"]
