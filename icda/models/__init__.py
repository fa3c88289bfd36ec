"""Networks: the MiT encoders (registered with timm), the DAFormer head, DAR, PCA, and their assembly."""

from icda.models import mit as mit
from icda.models.daformer_head import DAFormerHead
from icda.models.dar import DAR
from icda.models.pca import PCA
from icda.models.segmentation import SegmentationModel, build_model, create_encoder

__all__ = ["DAR", "PCA", "DAFormerHead", "SegmentationModel", "build_model", "create_encoder"]
