"""Small runs of `python -m examples.train` on real images: scikit-learn's handwritten digits."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image
from sklearn import datasets

ROOT = Path(__file__).parents[2]
TRAIN, VAL = 28, 11  # images of a class; two processes cannot halve the validation images
TIMEOUT = 240  # seconds after which a process that does not end has failed
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")

# Python 3.14 starts workers by "forkserver" on Linux, earlier versions by "fork".
START_METHOD = """
import multiprocessing, runpy, sys
multiprocessing.set_start_method(sys.argv.pop(1))
runpy.run_module("examples.train", run_name="__main__")
"""


def write_digits(folder: Path, digits: str) -> Path:
    data = datasets.load_digits()
    for digit in digits:
        for index, pixels in enumerate(data.images[data.target == int(digit)][: TRAIN + VAL]):
            path = folder / ("train" if index < TRAIN else "val") / digit / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * 15).astype("uint8")).resize((32, 32)).save(path)
    return folder


def arguments(data: Path, out: Path, *more: object) -> list[str]:
    """Return the arguments of a small run: two epochs of ten steps."""
    small = "--image-size 32 --batch-size 8 --epochs 2 --workers 1".split()  # noqa: SIM905
    return [str(data), "--out", str(out), *small, *map(str, more)]


def start(
    *arguments: object,
    command: str = "train",
    launcher=(),
    start_method: str = "",
    **environment: str,
):
    """Start a command in a process of its own."""
    module = ["-m", f"examples.{command}"]
    script = ["-c", START_METHOD, start_method] if start_method else module
    return subprocess.Popen(
        [sys.executable, *launcher, *script, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a test can kill the workers too
    )


def run(*arguments: object, **options) -> tuple[int, str, str]:
    """Run the command to its end; return its status, its output and its errors."""
    process = start(*arguments, **options)
    try:
        stdout, stderr = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"no end after {TIMEOUT} s: {tracebacks(process)}") from None
    return process.returncode, stdout, stderr


def tracebacks(process: subprocess.Popen) -> str:
    """Kill the command and all its processes. Return what they print: where each of them was."""
    import psutil

    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.send_signal(signal.SIGABRT)
        time.sleep(0.1)  # so that what they print does not mix
    process.send_signal(signal.SIGABRT)
    return "".join(process.communicate())


def wait_for_line(process: subprocess.Popen, beginning: str) -> None:
    """Wait until the command prints a line that begins so."""
    for line in process.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError(process.stderr.read())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
