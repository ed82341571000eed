#!/usr/bin/env bash
# PyTorch: `except Exception` does not catch the errors of torch.distributed.checkpoint.
#
# CheckpointException, which save and load raise for a missing name, another shape or a full disk,
# derives from BaseException, as KeyboardInterrupt does.
#
# Seen on 2026-11-27 with torch 2.13.0, Python 3.11, Linux, x86-64:
#   CheckpointException: not caught by `except Exception`
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

cd "$folder"
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import torch
import torch.distributed.checkpoint as dcp

dcp.save({"weight": torch.ones(2)}, checkpoint_id="saved")
caught = False
try:
    try:
        dcp.load({"bias": torch.ones(2)}, checkpoint_id="saved")  # there is no such name
    except Exception:
        caught = True
except BaseException as error:
    name = type(error).__name__
    assert "Missing key in checkpoint state_dict: bias" in str(error), error
    print(f"{name}: not caught by `except Exception`")
assert not caught, "`except Exception` catches it now"
assert name == "CheckpointException"
PYTHON
