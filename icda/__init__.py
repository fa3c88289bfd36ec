"""Night-time semantic segmentation without night labels: ICDA (IJCAI 2023) in plain PyTorch.

Importing this package registers the MiT encoders with timm: ``timm.create_model("mit_b5", features_only=True)``.
"""

from icda import models as models

__version__ = "0.1.0"
