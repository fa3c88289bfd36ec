"""Write a trained network for other programs: python scripts/export.py ckpt=PATH format=onnx [key=value ...]"""

import sys
from pathlib import Path

from icda.cli import run

CONF = Path(__file__).resolve().parents[1] / "conf"

if __name__ == "__main__":
    sys.exit(run("export", "icda.export.run.export", CONF))
