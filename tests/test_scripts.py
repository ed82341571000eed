"""Both model files, each copied alone into an empty folder and run as a user runs it."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from tests.oracle import MODELS

ROOT = Path(__file__).parent.parent
PARAMETERS = {"alexnet": "61,100,840", "resnet18": "11,689,512"}


def copy_script(name: str, folder: Path) -> Path:
    """Put one of the two files alone in a folder."""
    folder.mkdir()
    return Path(shutil.copy(ROOT / f"{name}.py", folder))


def expected_output(name: str, device: str) -> str:
    with torch.device("meta"):
        summary = str(MODELS[name]())
    return (
        f"{summary}\n"
        f"Parameters: {PARAMETERS[name]}\n"
        f"Forward pass on {device}: (1, 3, 224, 224) -> (1, 1000)\n"
    )


RUN_BOTH = f"""
import runpy, sys, torch
for package in "torchvision", "numpy", "PIL":
    sys.modules[package] = None  # as if it were not installed (torch warns without numpy)
for name in {list(MODELS)}:
    runpy.run_path(f"{{name}}/{{name}}.py", run_name="__main__")
"""


def test_scripts_print_the_summary_and_a_forward_pass_where_torch_is_the_only_package(tmp_path):
    for name in MODELS:
        copy_script(name, tmp_path / name)
    command = [sys.executable, "-I", "-c", RUN_BOTH]  # apart from this repository
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert result.stdout == "".join(expected_output(name, device) for name in MODELS)


def test_script_runs_on_any_device(name, tmp_path, monkeypatch, capsys):
    script = copy_script(name, tmp_path / name)
    monkeypatch.setattr(sys, "argv", [str(script), "--device", "meta"])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out == expected_output(name, "meta")


def test_import_prints_nothing(name, tmp_path, capsys):
    runpy.run_path(str(copy_script(name, tmp_path / name)), run_name=name)
    assert capsys.readouterr().out == ""
