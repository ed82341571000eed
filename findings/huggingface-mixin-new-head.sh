#!/usr/bin/env bash
# huggingface_hub: a network whose head was replaced is saved without an error and cannot be loaded.
#
# PyTorchModelHubMixin writes the arguments that the network was built with, not its state. After
# `model.fc = nn.Linear(...)`, config.json still has the old number of classes beside the new
# weights, and save_pretrained (or push_to_hub) says nothing.
#
# Seen on 2026-11-27 with huggingface_hub 2.4.0, safetensors 0.8.0, torch 2.13.0, Python 3.11:
#   config.json: {"num_classes": 1000}
#   RuntimeError: Error(s) in loading state_dict for Network:
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet \
    huggingface_hub==2.4.0 safetensors==0.8.0 torch==2.13.0 numpy==2.4.6

cd "$folder"
"$folder/env/bin/python" - <<'PYTHON'
import json
from pathlib import Path

import torch
from huggingface_hub import PyTorchModelHubMixin


class Network(torch.nn.Module, PyTorchModelHubMixin):
    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(8, num_classes)


network = Network()
network.fc = torch.nn.Linear(8, 10)
network.save_pretrained("saved")

config = json.loads(Path("saved", "config.json").read_text())
print(f"config.json: {json.dumps(config)}")
assert config == {"num_classes": 1000}
try:
    Network.from_pretrained("saved")
except RuntimeError as error:
    print("RuntimeError:", str(error).splitlines()[0])
    assert "size mismatch for fc.weight" in str(error)
else:
    raise AssertionError("the saved network can be loaded now")
PYTHON
