"""Both model files, each copied alone into an empty folder and run as a user runs it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
SUMMARIES = {
    "alexnet.py": """\
AlexNet(
  (conv1): Conv2d(3, 64, kernel_size=(11, 11), stride=(4, 4), padding=(2, 2))
  (conv2): Conv2d(64, 192, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2))
  (conv3): Conv2d(192, 384, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
  (conv4): Conv2d(384, 256, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
  (conv5): Conv2d(256, 256, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
  (pool): MaxPool2d(kernel_size=3, stride=2, padding=0, dilation=1, ceil_mode=False)
  (fc1): Linear(in_features=9216, out_features=4096, bias=True)
  (fc2): Linear(in_features=4096, out_features=4096, bias=True)
  (fc3): Linear(in_features=4096, out_features=1000, bias=True)
  (dropout): Dropout(p=0.5, inplace=False)
)
""",
    "resnet18.py": """\
ResNet18(
  (conv1): Conv2d(3, 64, kernel_size=(7, 7), stride=(2, 2), padding=(3, 3), bias=False)
  (bn1): BatchNorm2d(64, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
  (maxpool): MaxPool2d(kernel_size=3, stride=2, padding=1, dilation=1, ceil_mode=False)
  (layer1): Sequential(
    (0): BasicBlock(
      (conv1): Conv2d(64, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
      (bn1): BatchNorm2d(64, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
      (conv2): Conv2d(64, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
      (bn2): BatchNorm2d(64, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
      (shortcut): Sequential()
    )
    (1): BasicBlock(
      (conv1): Conv2d(64, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
      (bn1): BatchNorm2d(64, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
      (conv2): Conv2d(64, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
      (bn2): BatchNorm2d(64, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
      (shortcut): Sequential()
    )
  )
""",
}


@pytest.fixture(params=SUMMARIES)
def script(request, tmp_path):
    """One of the two files, alone in a folder."""
    return Path(shutil.copy(ROOT / request.param, tmp_path))


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script, isolated from this repository and from the user's other packages."""
    command = [sys.executable, "-I", script.name, *arguments]
    return subprocess.run(command, cwd=script.parent, capture_output=True, text=True, check=False)


def test_a_script_alone_prints_its_summary_and_a_forward_pass(script):
    result = run(script, "--device", "cpu")
    assert result.returncode == 0, result.stderr
    for line, expected in zip(result.stdout.splitlines(), SUMMARIES[script.name].splitlines()):
        for part in expected.rstrip("()").split(", "):  # PyTorch adds arguments as it ages
            assert part in line
    tail = result.stdout.splitlines()[-5:]
    assert re.fullmatch(r"Parameters: (61,100,840|11,689,512)", tail[0])
    assert tail[1:4] == ["Device:     cpu", "Input:      (1, 3, 224, 224)", "Output:     (1, 1000)"]
    assert re.fullmatch(r"Time:       \d+\.\d ms, warm", tail[4])


def test_a_script_chooses_cuda_where_there_is_one(script):
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert f"Device:     {expected}\n" in run(script).stdout


def test_help_names_the_devices(script):
    result = run(script, "--help")
    assert result.returncode == 0
    assert "--device {cpu,cuda}" in result.stdout


@pytest.mark.parametrize(
    "device, reason",
    [
        pytest.param(
            "cuda",
            "no CUDA device is available: use --device cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
        ("tpu", "invalid choice: 'tpu' (choose from"),
    ],
)
def test_a_device_that_is_not_there_is_one_line_on_standard_error(script, device, reason):
    result = run(script, "--device", device)
    assert result.returncode != 0
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert reason in result.stderr


def test_a_script_imports_torch_alone(script):
    check = f"import sys, {script.stem}; print('torchvision' in sys.modules)"
    command = [sys.executable, "-c", check]
    result = subprocess.run(command, cwd=script.parent, capture_output=True, text=True, check=False)
    assert result.stdout == "False\n", result.stderr
