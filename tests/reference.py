"""Recorded outputs of the official code. Small ones lie in tests/data; the large ones need the maintainers' shared folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("SCORE_SDE_REFERENCE", ROOT.parent / "shared" / "reference"))
