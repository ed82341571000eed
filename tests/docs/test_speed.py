"""docs/speed.md: its commands and code run as they stand, its answer has the figures below it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT, blocks, read
from tests.examples.training import VAL, write_digits

PAGE = read(DOCS / "speed.md")
ANSWER, REST = PAGE.split("\n## ", 1)
FIGURES = r"\d+\.\d\d / \d+\.\d\d / \d+\.\d\d"


# Figures and links


def test_every_speedup_of_the_answer_and_of_the_alternatives_is_that_of_a_row():
    tables, alternatives = REST.split("\n## Alternatives", 1)
    alternatives, older = alternatives.split("\n## Other processors", 1)
    rows = [" / ".join(re.findall(r"[\d.]+, (\d+\.\d\d)", line)) for line in tables.splitlines()]
    rows += re.findall(FIGURES, older)
    figures = re.findall(FIGURES, ANSWER + alternatives)
    assert len(figures) >= 20
    assert [figure for figure in figures if figure not in rows] == []


def test_every_function_of_the_alternatives_is_one_of_engines():
    from examples import engines

    table = PAGE.split("\n## Alternatives")[1].split("\n\n- ")[0]
    names = re.findall(r"`(\w+)`", re.sub(r"```.*?```", "", table, flags=re.S))
    functions = [name for name in names if "_" in name or name == "compiled"]
    assert len(set(functions)) >= 10
    assert [name for name in functions if not hasattr(engines, name)] == []


# Commands and code


def block(words: str) -> str:
    """Return the only block of code with these words, without the lines that install packages."""
    (found,) = [
        content
        for language in ("bash", "python")
        for content in blocks(PAGE, language)
        if words in content
    ]
    return "".join(line for line in found.splitlines(True) if not line.startswith("pip install"))


def run(code: str, folder: Path, *, options: str = "") -> str:
    """Run the commands in the folder, as a user does in the repository; return what they print."""
    as_typed = 'python() { "$PYTHON" "$@"; }\n'
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-euc", as_typed + code.strip() + options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with handwritten digits in DATA, a network trained on them, and the photo."""
    folder = tmp_path_factory.mktemp("speed")
    write_digits(folder / "DATA", "013")
    (folder / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "cat.jpg", folder / "docs")
    small = "--image-size 64 --batch-size 8 --epochs 4 --workers 0 --device cpu"
    run(f"python -m examples.train DATA --out runs/first {small}", folder)
    return folder


@pytest.fixture(scope="module")
def printed(folder) -> str:
    """What the commands at the top print. They leave the exported network in runs/fast."""
    for package in ("openvino", "nncf"):
        pytest.importorskip(package)
    return run(block("examples.export"), folder)


def test_the_two_commands_at_the_top_export_and_classify(printed, folder):
    assert {"resnet18.xml", "resnet18.bin"} <= {
        path.name for path in (folder / "runs" / "fast").iterdir()
    }
    assert "docs/cat.jpg" in printed
    assert re.search(r"\d+\.\d\d%  [013]\n", printed)


def test_the_accuracy_of_the_exported_network_is_counted(printed, folder):
    shown = run(block("examples.evaluate"), folder)
    assert f"{3 * VAL} images" in shown


@pytest.fixture
def service() -> str:
    """The code of the service."""
    return block("openvino.Core()")


def test_the_service_answers_as_the_command_does_without_pytorch(service, printed, folder):
    no_torch = "import sys; sys.modules['torch'] = sys.modules['torchvision'] = None\n"
    answer = subprocess.check_output([sys.executable, "-c", no_torch + service], cwd=folder)
    command = (
        "python -m examples.predict --weights runs/fast/resnet18.xml docs/cat.jpg --top 1 --json"
    )
    (prediction,) = json.loads(run(command, folder))["predictions"]
    assert answer.decode().split() == [prediction["class"]]


def test_the_service_takes_an_onnx_file_with_the_lines_that_the_page_replaces(service, folder):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    weights = "--weights runs/first/model.pt"
    run(f"python -m examples.export {weights} --format onnx --out runs/onnx", folder)
    before, rest = service.split("model = openvino", 1)
    _, after = rest.split("\n\n", 1)
    service = before.replace("import openvino\n", "") + block("onnxruntime.Inf") + "\n" + after
    answer = subprocess.check_output([sys.executable, "-c", service], cwd=folder)
    command = (
        "python -m examples.predict --weights runs/onnx/resnet18.onnx docs/cat.jpg --top 1 --json"
    )
    (prediction,) = json.loads(run(command, folder))["predictions"]
    assert answer.decode().split() == [prediction["class"]]
