"""Data sets, and how training samples are made from them."""

from icda.data.acdc import ACDC
from icda.data.bdd100k import BDD100KNight
from icda.data.camvid import CamVid
from icda.data.cityscapes import Cityscapes
from icda.data.classes import CAMVID, CITYSCAPES, ClassSet
from icda.data.darkzurich import DarkZurich
from icda.data.folder import Folder
from icda.data.nightcity import NightCity
from icda.data.nighttimedriving import NighttimeDriving

__all__ = [
    "ACDC",
    "CAMVID",
    "CITYSCAPES",
    "BDD100KNight",
    "CamVid",
    "Cityscapes",
    "ClassSet",
    "DarkZurich",
    "Folder",
    "NightCity",
    "NighttimeDriving",
]
