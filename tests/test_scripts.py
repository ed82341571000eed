"""Both model files, each copied alone into an empty folder and run as a user runs it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.oracle import MODELS

ROOT = Path(__file__).parent.parent
PARAMETERS = {"alexnet": "61,100,840", "resnet18": "11,689,512"}


@pytest.fixture
def script(name, tmp_path):
    """One of the two files, alone in a folder."""
    return Path(shutil.copy(ROOT / f"{name}.py", tmp_path))


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script, isolated from this repository and from the user's other packages."""
    command = [sys.executable, "-I", script.name, *arguments]
    return subprocess.run(command, cwd=script.parent, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [[], ["--device", "meta"]])
def test_a_script_prints_its_summary_and_a_forward_pass(script, name, arguments):
    result = run(script, *arguments)
    device = arguments[-1] if arguments else "cuda" if torch.cuda.is_available() else "cpu"
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (
        f"{MODELS[name]()}\n"
        f"Parameters: {PARAMETERS[name]}\n"
        f"Forward pass on {device}: (1, 3, 224, 224) -> (1, 1000)\n"
    )


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_one_line_on_standard_error(script, device):
    result = run(script, "--device", device)
    assert result.returncode != 0
    assert result.stdout == ""
    assert result.stderr.startswith(f"{script.name}: error: ")
    assert result.stderr.count("\n") == 1
    assert len(result.stderr.split()) > 5, "it says why"


def test_a_script_needs_torch_alone(script):
    lines = script.read_text(encoding="utf-8").splitlines()
    imports = [line.split()[1] for line in lines if line.startswith(("import ", "from "))]
    modules = {module.split(".")[0] for module in imports}
    assert modules == {"__future__", "argparse", "typing", "torch"}
