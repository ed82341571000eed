"""What a command imports, which is most of the time until its first answer."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.models import ResNet18_Weights

for package in ("tyro", "tqdm"):
    pytest.importorskip(package)

from examples.export import main as export  # noqa: E402
from examples.lib.checkpoints import imagenet_classes  # noqa: E402
from tests.examples.command import call  # noqa: E402
from tests.oracle import MODELS, oracle  # noqa: E402

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "docs" / "cat.jpg"
SLOW = {"torchvision", "torch._dynamo", "torch._inductor", "pandas", "matplotlib"}  # 1 s each

COMMAND = """
import runpy, sys
missing, argv = sys.argv[1].split(","), sys.argv[2:]

class Missing:
    def find_spec(name, *rest):
        if name in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing)
sys.path.insert(0, "")
sys.argv = argv
try:
    runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
finally:
    print("imported:", *sys.modules, file=sys.stderr)
"""


def run(*arguments: object, missing: str = "", **environment: str):
    """Run a command in a process without the missing packages."""
    command = [sys.executable, "-c", COMMAND, missing, *map(str, arguments)]
    environment = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def imported(done: subprocess.CompletedProcess) -> set[str]:
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split("imported:")[1].split())


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    network = MODELS["resnet18"].from_state_dict(oracle("resnet18", num_classes=3).state_dict())
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save({"state_dict": network.state_dict(), "image_size": 64}, path)
    return path


@pytest.mark.parametrize("format", ["openvino", "onnx"])
def test_an_exported_file_needs_neither_pytorch_nor_torchvision(format, weights, tmp_path):
    for package in {"openvino": ["openvino"], "onnx": ["onnxruntime", "onnxscript"]}[format]:
        pytest.importorskip(package)
    result = call(export, "--weights", weights, "--format", format, "--out", tmp_path)
    assert result.status == 0, result
    file = tmp_path / {"openvino": "resnet18.xml", "onnx": "resnet18.onnx"}[format]

    expected = run("examples.predict", PHOTO, "--weights", weights)
    found = run("examples.predict", PHOTO, "--weights", file, missing="torch,torchvision")
    assert imported(found).isdisjoint({"tqdm", *SLOW})
    assert found.stdout.splitlines()[0] == str(PHOTO)
    for line, other in zip(found.stdout.splitlines()[1:], expected.stdout.splitlines()[1:]):
        assert line.split()[1] == other.split()[1]
        assert float(line.split("%")[0]) == pytest.approx(float(other.split("%")[0]), abs=0.02)


def test_without_pytorch_weights_are_refused_in_one_line(weights):
    done = run("examples.predict", PHOTO, "--weights", weights, missing="torch")
    assert done.returncode == 1
    error = "error: this needs another package: pip install torch\n"
    assert done.stderr.split("imported:")[0] == error


def test_predict_with_weights_imports_nothing_slow_beside_pytorch(weights):
    assert imported(run("examples.predict", PHOTO, "--weights", weights)).isdisjoint(SLOW)


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "export", "benchmark"])
def test_help_imports_nothing_slow(command):
    slow = {"torch", *SLOW} if command == "predict" else SLOW
    assert imported(run(f"examples.{command}", "--help")).isdisjoint(slow)


def test_the_backend_of_a_notebook_stops_no_figure():
    draw = "from examples.lib.results import new_figure; new_figure(1, 1)"
    environment = {**os.environ, "MPLBACKEND": "module://nowhere.backend_inline"}
    subprocess.run([sys.executable, "-c", draw], cwd=ROOT, env=environment, check=True)


def test_the_names_of_imagenets_classes_are_torchvisions():
    assert imagenet_classes() == ResNet18_Weights.IMAGENET1K_V1.meta["categories"]


def test_an_exported_file_of_an_earlier_version_is_resized_as_then(weights, tmp_path):
    """It does not say to which size an image is resized before the crop."""
    pytest.importorskip("openvino")
    assert call(export, "--weights", weights, "--out", tmp_path).status == 0
    file = tmp_path / "resnet18.xml"
    expected = run("examples.predict", PHOTO, "--weights", file).stdout
    text, count = re.subn(r'<resize_size value="73" */>', "", file.read_text())
    assert count == 1
    file.write_text(text)
    assert run("examples.predict", PHOTO, "--weights", file).stdout == expected != ""
