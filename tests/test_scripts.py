"""Both model files, each copied alone into an empty folder and run as a user runs it."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch


ROOT = Path(__file__).parent.parent
PARAMETERS = {"alexnet": "61,100,840", "resnet18": "11,689,512"}


@pytest.fixture
def script(name, tmp_path):
    """One of the two files, alone in a folder."""
    return Path(shutil.copy(ROOT / f"{name}.py", tmp_path))


def expected_output(model, name: str, device: str) -> str:
    return (
        f"{model}\n"
        f"Parameters: {PARAMETERS[name]}\n"
        f"Forward pass on {device}: (1, 3, 224, 224) -> (1, 1000)\n"
    )


def test_script_prints_the_summary_and_a_forward_pass(script, name, model):
    command = [sys.executable, "-I", script.name]  # apart from this repository
    result = subprocess.run(command, cwd=script.parent, capture_output=True, text=True, check=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == expected_output(model, name, device)


def test_script_runs_on_any_device_where_torch_is_the_only_package(
    script, name, model, monkeypatch, capsys
):
    for package in ("torchvision", "numpy", "PIL"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    monkeypatch.setattr(sys, "argv", [str(script), "--device", "meta"])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out == expected_output(model, name, "meta")


def test_import_prints_nothing(script, name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(script)])
    runpy.run_path(str(script), run_name=name)
    assert capsys.readouterr().out == ""
