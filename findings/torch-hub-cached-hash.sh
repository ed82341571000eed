#!/usr/bin/env bash
# PyTorch: load_state_dict_from_url(check_hash=True) does not check a file that is in the cache.
#
# The hash in the name of the file is compared only with a new download. A file that was damaged
# later, or that came there in another way, is loaded without a word. torchvision's
# `get_state_dict(check_hash=True)` calls this function.
#
# Seen on 2026-11-27 with torch 2.13.0, Python 3.11, Linux, x86-64:
#   a new download with a wrong hash: RuntimeError
#   a file with a wrong hash in the cache: loaded
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

cd "$folder"
"$folder/env/bin/python" - <<'PYTHON'
import shutil
from pathlib import Path

import torch

name = "weights-00000000.pth"  # the hash of this file does not begin with 00000000
torch.save({"weight": torch.ones(1)}, name)
Path("cache").mkdir()


def load() -> str:
    try:
        torch.hub.load_state_dict_from_url(
            Path(name).resolve().as_uri(), model_dir="cache", check_hash=True, progress=False
        )
    except RuntimeError as error:
        assert "invalid hash value" in str(error), error
        return "RuntimeError"
    return "loaded"


new = load()
shutil.copy(name, "cache")
cached = load()
print(f"a new download with a wrong hash: {new}")
print(f"a file with a wrong hash in the cache: {cached}")
assert (new, cached) == ("RuntimeError", "loaded")
PYTHON
