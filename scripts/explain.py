"""Show what DAR looks at: python scripts/explain.py ckpt=PATH night=IMAGE day=IMAGE [key=value ...]"""

import sys
from pathlib import Path

from icda.cli import run
from icda.explanation.settings import validate_explain

CONF = Path(__file__).resolve().parents[1] / "conf"

if __name__ == "__main__":
    sys.exit(run("explain", "icda.explanation.run.explain", CONF, check=validate_explain))
