"""The recipes of docs/deploy.md as code, and the command that prints the page's table.

The table needs the packages of the engines: see deploy.sh, which installs them.

python -m tests.deploy convert LiteRT OpenCV   # writes the files to runs/deploy
python -m tests.deploy measure LiteRT OpenCV   # prints a row of the table for each
"""

from __future__ import annotations

import http.server
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from tests.docs import pages
from tests.docs.pages import DOCS, ROOT
from tests.oracle import MODELS, deviation, oracle

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

PAGE = pages.read(DOCS / "deploy.md")
FILES = {
    "LiteRT": "{}.tflite",
    "ExecuTorch": "{}.pte",
    "ncnn": "{}.ncnn.bin",
    "MNN": "{}.mnn",
    "OpenCV": "runs/export/{}.onnx",
    "Browser": "runs/export/{}.onnx",
}
START_FROM_ONNX = ("MNN", "OpenCV", "Browser")
ROUNDS = {1: 10, 8: 4}


# The recipes


def blocks(heading: str, name: str, language: str = "python") -> list[str]:
    """Return the blocks of code in a section of the page, for the network `name`."""
    pattern = rf"^##+ {re.escape(heading)}\n(.*?)(?=^## |^### |\Z)"
    (section,) = re.findall(pattern, PAGE, re.M | re.S)
    found = pages.blocks(section, language)
    if name == "alexnet":
        found = [block.replace("resnet18", "alexnet") for block in found]
        found = [block.replace("ResNet18", "AlexNet") for block in found]
    return found


def set_up(name: str) -> dict:
    """Run the setup of the page in the current folder, with random weights for the official ones.

    Returns:
        the variables of the page, and `theirs`: torchvision's network with the same weights.
    """
    Path("docs").mkdir(exist_ok=True)
    shutil.copy(ROOT / "docs" / "cat.jpg", "docs")
    theirs = oracle(name).eval()
    weights = theirs.state_dict()
    torch.save(weights, "weights.pth")

    class Pretrained(MODELS[name]):
        @classmethod
        def from_pretrained(cls) -> torch.nn.Module:
            return MODELS[name].from_state_dict(weights)

    setup = blocks("Setup", name)[0]
    line = f"from {name} import {MODELS[name].__name__}\n"
    assert line in setup
    variables = {"theirs": theirs, MODELS[name].__name__: Pretrained}
    exec(setup.replace(line, ""), variables)
    return variables


def write_onnx(name: str) -> None:
    """Run the page's command for the ONNX file, with random weights for the official ones."""
    (command,) = blocks("ONNX file", name, "bash")
    python, *arguments = shlex.split(command)
    assert python == "python"
    subprocess.run(
        [sys.executable, *arguments, "--weights", "weights.pth"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )


# The browser

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"
ONNX_RUNTIME_WEB = Path(os.environ.get("NODE_PATH", ROOT / "node_modules"), "onnxruntime-web")


@contextmanager
def start_browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@contextmanager
def serve(browser: Browser, folder: Path) -> Iterator[Page]:
    """Serve docs/browser.html beside the files of a folder, and yield an empty page of the browser.

    What browser.html loads from another host comes from `npm install onnxruntime-web`.
    """
    version = json.loads((ONNX_RUNTIME_WEB / "package.json").read_text())["version"]

    def answer(route: Route) -> None:
        *_, package, dist, file = route.request.url.split("/")
        assert (package, dist) == (f"onnxruntime-web@{version}", "dist")
        headers = {"Access-Control-Allow-Origin": "*"}
        route.fulfill(path=ONNX_RUNTIME_WEB / "dist" / file, headers=headers)

    shutil.copy(ROOT / "docs" / "browser.html", folder)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = browser.new_page(base_url=f"http://localhost:{server.server_port}")
    page.route(lambda address: "localhost" not in address, answer)
    yield page
    page.close()
    server.shutdown()


class InBrowser:
    """The network in the browser: without the page's crop, to be compared on the same pixels."""

    def __init__(self, page: Page, name: str, images: Tensor) -> None:
        self.page = page
        page.goto("browser.html")
        page.evaluate(
            """async ([address, pixels, shape]) => {
                const ort = await import("onnxruntime-web");
                const session = await ort.InferenceSession.create(address);
                const images = new ort.Tensor("uint8", Uint8Array.from(pixels), shape);
                globalThis.classify = () => session.run({images});
            }""",
            [f"{name}.onnx", images.flatten().tolist(), list(images.shape)],
        )

    def __call__(self) -> Tensor:
        values = self.page.evaluate("async () => Array.from((await classify()).logits.data)")
        return torch.tensor(values).view(-1, 1000)


# The table


def convert(heading: str, name: str) -> None:
    """Write the files that a recipe runs: for one image, and for eight in the folder `8`."""
    variables = set_up(name)
    if heading in START_FROM_ONNX and not Path(FILES["OpenCV"].format(name)).exists():
        write_onnx(name)
    conversion = blocks(heading, name)[:-1]
    if conversion:
        exec(conversion[0], variables)
    if heading == "LiteRT":  # which has one file for each batch size
        Path("8").mkdir(exist_ok=True)
        variables["images"] = variables["images"].repeat(8, 1, 1, 1)
        exec(conversion[0].replace(f"{name}.", f"8/{name}."), variables)


def measure(heading: str, name: str) -> list[str]:
    """Return the cells of the table: the file's size, and deviation and speed at batch 1 and 8."""
    variables = set_up(name)
    theirs = variables["PixelNetwork"](variables["theirs"]).eval()
    cells = [f"{Path(FILES[heading].format(name)).stat().st_size / 1e6:.1f} MB"]
    speeds, deviations = [], []
    for batch_size in (1, 8):
        images = torch.cat([variables["images"].roll(8 * i, dims=3) for i in range(batch_size)])
        with prepare(heading, name, {**variables, "images": images}) as engine:
            ratio, logits, expected = compare(engine, partial(theirs, images), ROUNDS[batch_size])
        deviations.append(deviation(logits, expected))
        speeds.append(ratio)
    cells.append(f"{max(deviations):.1e}")
    cells.append(" / ".join(f"{speed:.2f}" for speed in speeds))
    return cells


@contextmanager
def prepare(heading: str, name: str, variables: dict) -> Iterator[Callable[[], Tensor]]:
    """Yield a function that runs a recipe on `images` and returns the logits."""
    if heading == "Browser":
        with start_browser() as browser, serve(browser, Path("runs", "export")) as page:
            yield InBrowser(page, name, variables["images"])
    else:
        yield Recipe(heading, name, variables)


class Recipe:
    """What a recipe runs on the device: its last paragraph, after the rest has run once."""

    def __init__(self, heading: str, name: str, variables: dict) -> None:
        load, run = blocks(heading, name)[-1].rsplit("\n\n", 1)
        if heading == "LiteRT" and len(variables["images"]) == 8:
            load = load.replace(f"{name}.", f"8/{name}.")
        exec(load, variables)
        self.variables = variables
        self.code = compile(run, heading, "exec")

    def __call__(self) -> Tensor:
        exec(self.code, self.variables)
        return torch.as_tensor(np.array(self.variables["logits"]))


def compare(
    engine: Callable[[], Tensor], eager: Callable[[], Tensor], rounds: int
) -> tuple[float, Tensor, Tensor]:
    """Return how many times as fast an engine is as eager PyTorch, and what both return.

    They take turns, and the median times are compared.
    """
    times: dict[Callable, list[float]] = {engine: [], eager: []}
    results = {}
    for _ in range(rounds):
        for function, seconds in times.items():
            time.sleep(0.2)  # until the other's threads have stopped waiting for work
            function()
            for _ in range(3):
                start = time.perf_counter()
                results[function] = function()
                seconds.append(time.perf_counter() - start)
    medians = {function: statistics.median(seconds) for function, seconds in times.items()}
    return medians[eager] / medians[engine], results[engine], results[eager]


def main() -> None:
    action, *headings = sys.argv[1:]
    for heading in headings:
        cells = []
        for name in ("resnet18", "alexnet"):
            folder = ROOT / "runs" / "deploy" / name
            folder.mkdir(parents=True, exist_ok=True)
            os.chdir(folder)
            if action == "convert":
                convert(heading, name)
            else:
                with torch.inference_mode():
                    cells += measure(heading, name)
        if cells:
            print(" | ".join(["", heading, *cells, ""]).strip())


if __name__ == "__main__":
    main()
