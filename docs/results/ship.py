"""Makes the weights that come with the package from a run: fp16 weights, fp16 ONNX file, and their card with accuracy by height.

    python docs/results/ship.py RUN NAME --data lsp:data/lsp

Everything is measured on the packed file, so that the card speaks of what is shipped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from lowpose.breakdown_page import height_tables
from lowpose.calibration import calibrate
from lowpose.cards import markdown
from lowpose.checkpoint import pack_weights
from lowpose.cli.printing import command_line
from lowpose.evaluation import evaluate
from lowpose.export_reduced import export_reduced
from lowpose.files import write_json, write_text
from lowpose.shipped import FOLDER

HEIGHTS = (16, 24, 32, 48, 64, 96, 128)
TERMS = (
    "Trained on LSPET (S. Johnson, M. Everingham, CVPR 2011), whose photographs come from Flickr and stay their photographers'; "
    "its authors name no licence and ask to be cited. For research and for trying lowpose; whether the weights may serve another "
    "purpose is for the user to judge. Athletes in sports photographs, one to a picture: people who look otherwise are worse."
)
