"""One file per keypoint representation. A head owns its layers, targets, loss, decoding and flip (see base.py)."""
