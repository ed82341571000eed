"""Measure how fast AlexNet and ResNet-18 run with each engine and precision of docs/speed.md.

Every time is compared with torchvision's network in float32, without compiling ("eager").

python -m examples.benchmark
python -m examples.benchmark --model resnet18 --precision int8 --out figures
"""

import contextlib
import copy
import itertools
import json
import logging
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import pandas as pd
import torch
import torch._inductor.config
import torchvision
import tyro
from matplotlib import cbook
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor, nn
from torchvision.transforms import v2
from tyro.conf import UseAppendAction

from alexnet import AlexNet
from examples.command import Model, UserError, hint, print_result, require, run
from examples.device import DEFAULT_DEVICE, find_device
from examples.engines import (
    Network,
    capabilities,
    channels_last,
    compiled,
    compiled_int8,
    has_bfloat16,
    has_vnni,
    in_bfloat16,
    in_onnx_runtime,
    in_openvino,
    to_onnx,
    to_onnx_int8,
    to_openvino,
    to_openvino_int8,
)
from examples.images import normalize, open_image
from examples.weights import MODELS

Precision = Literal["float32", "bfloat16", "int8"]
Value = TypeVar("Value")
Several = UseAppendAction[tuple[Value, ...]]  # of an option that may be repeated
COLORS = {"float32": "#0072b2", "bfloat16": "#e69f00", "int8": "#009e73"}  # color-blind safe

# The largest `deviation` at which the logits of a row are accepted. With the networks and images
# of this file, correct logits deviate by up to 1e-5 in float32, 0.008 in TF32, 0.07 in bfloat16 and
# 0.41 in int8. Wrong logits deviate by 0.7 to 3: those of other images, other weights or swapped
# color channels.
TOLERANCES = {"float32": 1e-3, "tf32": 0.02, "bfloat16": 0.15, "int8": 0.55}
CHECKED_IMAGES = 16
CALIBRATION_IMAGES = 8
MIN_ROUNDS = 3


@dataclass(frozen=True)
class Config:
    """Time AlexNet and ResNet-18 with each engine and precision, and compare with torchvision."""

    model: Annotated[Several[Model], hint("{alexnet,resnet18}", "repeatable; default: both")] = ()
    """Network to time."""
    precision: Annotated[
        Several[Precision], hint("{float32,bfloat16,int8}", "repeatable; default: all")
    ] = ()
    """Precision to time. torchvision's network in float32, not compiled, is always timed too."""
    batch_size: Annotated[Several[int], hint("INT", "repeatable; default: 1, 8 and 32")] = ()
    """Number of images in a batch."""
    image_size: Annotated[Several[int], hint("INT", "repeatable; default: 224")] = ()
    """Height and width of the images in pixels."""

    device: str = DEFAULT_DEVICE
    """PyTorch device, such as cpu, cuda:1 or mps."""
    seconds: float = 5.0
    """Seconds to measure each column of the table, not counting the time to compile."""
    out: Annotated[Path | None, hint("FOLDER", "default: only print the table")] = None
    """Folder for times.json, table.md and speed.png."""


@dataclass(frozen=True)
class Row:
    """A row of the table: one way to run a network. `build` returns the network ready to call."""

    name: str
    precision: str
    build: Callable[[], Network]

    def __str__(self) -> str:
        return f"{self.name} ({self.precision})"


@dataclass(frozen=True)
class Result:
    """The times in one cell of the table."""

    row: str
    precision: str
    model: str
    batch_size: int
    image_size: int
    milliseconds: list[float]  # per batch, one number for each round
    machine: str


# What is timed


def define_rows(theirs: nn.Module, ours: nn.Module, images: Tensor, folder: Path) -> list[Row]:
    """Return the rows of the table that run on the device of the images.

    Args:
        theirs: torchvision's network.
        ours: this project's network, with the same weights.
        images: normalized float32 (N, 3, H, W), to calibrate int8 with.
        folder: where ONNX files are written.
    """
    device = images.device.type
    autotune = isinstance(ours, AlexNet)  # ResNet-18 gains nothing

    def compiled_copy(network: nn.Module) -> Network:
        return compiled(copy.deepcopy(network), autotune)

    on_any_device = [
        Row("torchvision", "float32", lambda: theirs),
        Row("torchvision, compiled", "float32", lambda: compiled_copy(theirs)),
        Row("ours", "float32", lambda: ours),
        Row("ours, channels-last", "float32", lambda: channels_last(copy.deepcopy(ours))),
        Row("ours, compiled", "float32", lambda: compiled_copy(ours)),
        Row("ours, compiled", "bfloat16", lambda: in_bfloat16(compiled_copy(ours), device)),
    ]
    if device != "cpu":
        return on_any_device

    onnx = cache(lambda: to_onnx(ours, images, folder / "network.onnx"))
    openvino = cache(lambda: to_openvino(ours, images))
    return [
        *on_any_device,
        Row("ours, compiled", "int8", lambda: compiled_int8(ours, images)),
        Row("ONNX Runtime", "float32", lambda: in_onnx_runtime(onnx())),
        Row("ONNX Runtime", "int8", lambda: in_onnx_runtime(to_onnx_int8(onnx(), images))),
        Row("OpenVINO", "float32", lambda: in_openvino(openvino())),
        Row("OpenVINO", "bfloat16", lambda: in_openvino(openvino(), "bf16")),
        Row("OpenVINO", "int8", lambda: in_openvino(to_openvino_int8(ours, images))),
    ]


@torch.no_grad()
def build_network(name: str, images: Tensor, seed: int = 0) -> nn.Module:
    """Return torchvision's network with random weights that give each image different logits.

    With torchvision's own random weights, AlexNet's logits are nearly the same for all images, and
    batch norm changes nothing. Wrong logits could then not be told from correct ones.
    """
    torch.manual_seed(seed)
    network: nn.Module = torchvision.models.get_model(name)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.momentum = None  # the running statistics become those of the images

    network.to(images.device).train()(images)
    network.eval()

    # Subtract the mean, which all images share: it would hide the differences between them.
    *_, head = network.modules()
    head.bias -= network(images).mean(0)
    return network


def load_images(size: int, count: int) -> Tensor:
    """Return normalized random crops of a photograph, float32 (count, 3, size, size)."""
    path = Path(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    crop = v2.Compose([v2.RandomResizedCrop(size), v2.PILToTensor()])
    torch.manual_seed(0)
    with open_image(path) as photograph:
        images: Tensor = normalize(torch.stack([crop(photograph) for _ in range(count)]))
    return images


# Checking the logits


def deviation(logits: Tensor, expected: Tensor) -> float:
    """Return the largest relative error over the images, for logits (N, num_classes).

    The relative error of an image is the norm of the difference between its logits and the expected
    ones, divided by the norm of the expected ones.
    """
    deviations = (logits - expected).norm(dim=1) / expected.norm(dim=1)
    return float(deviations.max())


@torch.no_grad()
def build_rows(rows: list[Row], images: Tensor, batch_size: int) -> dict[Row, Network]:
    """Build the rows, and compare their logits with those of the first row.

    Another row that fails is left out with a message, for example because its engine or a C++
    compiler is not installed.

    Raises:
        UserError: the logits of a row are wrong.
    """
    batches = torch.split(images, batch_size)
    networks: dict[Row, Network] = {}
    for row in rows:
        start = time.perf_counter()
        try:
            network = row.build()
            first_logits = network(batches[0])  # the first call compiles
        except Exception as error:  # each engine has exceptions of its own
            if row is rows[0]:
                raise
            lines = str(error).strip().splitlines() or [""]
            log(f"{row} is left out: {type(error).__name__}: {lines[0]}")
            continue
        log(f"{row} is ready after {time.perf_counter() - start:.1f} s")

        logits = torch.cat([first_logits, *(network(batch) for batch in batches[1:])]).float()
        if not networks:
            expected = logits
        # On CUDA, PyTorch computes float32 convolutions in TF32 by default.
        in_tf32 = images.is_cuda and row.precision == "float32"
        tolerance = TOLERANCES["tf32" if in_tf32 else row.precision]
        found = deviation(logits, expected)
        require(
            found < tolerance,
            f"the logits of {row} are wrong: their relative error is {found:.2g}, "
            f"but must be less than {tolerance}",
        )
        networks[row] = network
    return networks


def choose_rows(rows: list[Row], precisions: tuple[str, ...], device: str) -> list[Row]:
    """Return the first row, with which the others are compared, and the rows of these precisions.

    On a CPU without bfloat16 instructions, the rows in bfloat16 are left out with a message.
    """
    chosen = [row for row in rows if row.precision in precisions or row is rows[0]]
    if device == "cpu" and not has_bfloat16():
        for row in chosen:
            if row.precision == "bfloat16":
                version = torch.__version__
                log(f"{row} is left out: PyTorch {version} finds no bfloat16 instructions here")
        chosen = [row for row in chosen if row.precision != "bfloat16"]
    return chosen


# Timing


@torch.no_grad()
def time_in_turns(
    networks: dict[Row, Network], images: Tensor, seconds: float
) -> dict[Row, list[float]]:
    """Return the milliseconds that each network takes for the images, one number per round.

    Each round times every network once. If other programs slow the machine down for a while, they
    slow down all networks alike.
    """
    for network in networks.values():
        network(images)  # the first call with a batch size compiles
    times: dict[Row, list[float]] = {row: [] for row in networks}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < MIN_ROUNDS or time.perf_counter() < end:
        for row, network in networks.items():
            times[row].append(milliseconds_per_call(network, images))
        rounds += 1
    return times


def milliseconds_per_call(network: Network, images: Tensor) -> float:
    """Return the median time of a call. Calls are repeated until they have taken 0.1 s.

    One call before them is not counted: it loads the network into the caches of the processor,
    which other networks have just filled.
    """
    time.sleep(0.05)  # ONNX Runtime's threads keep the CPU busy for a while after a call
    seconds_of_a_call(network, images)
    calls: list[float] = []
    while sum(calls) < 0.1:
        calls.append(seconds_of_a_call(network, images))
    return 1e3 * statistics.median(calls)


def seconds_of_a_call(network: Network, images: Tensor) -> float:
    """Return the time until the logits are computed."""
    start = time.perf_counter()
    network(images)
    if images.device.type != "cpu":  # the call returns before a GPU has finished
        torch.accelerator.synchronize(images.device)
    return time.perf_counter() - start


def time_model(config: Config, model: str, image_size: int, machine: str) -> list[Result]:
    """Build all rows for one network, check their logits, and time them at all batch sizes."""
    first_size = config.batch_size[0]
    num_checked = math.ceil(CHECKED_IMAGES / first_size) * first_size  # in full batches
    images = load_images(image_size, max(num_checked, *config.batch_size)).to(config.device)
    theirs = build_network(model, images[:num_checked])
    ours = MODELS[model].from_state_dict(theirs.state_dict()).to(config.device).eval()

    results = []
    # Some engines print their progress on standard output, where only the table belongs.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        rows = define_rows(theirs, ours, images[:CALIBRATION_IMAGES], Path(folder))
        rows = choose_rows(rows, config.precision, images.device.type)
        networks = build_rows(rows, images[:num_checked], first_size)

        for batch_size in config.batch_size:
            log(f"timing {model}, {batch_size} x {image_size} x {image_size}")
            times = time_in_turns(networks, images[:batch_size], config.seconds)
            for row, milliseconds in times.items():
                result = Result(
                    row=row.name,
                    precision=row.precision,
                    model=model,
                    batch_size=batch_size,
                    image_size=image_size,
                    milliseconds=milliseconds,
                    machine=machine,
                )
                results.append(result)
    return results


# Results


def describe_machine(device: torch.device) -> str:
    """Return one line with what the times depend on: device, number of threads and versions."""
    found = capabilities()
    name = found.get("cpu_name") or found.get("architecture") or "processor"
    instructions = [torch.backends.cpu.get_cpu_capability()]
    instructions += ["VNNI"] if has_vnni() else []
    instructions += ["AMX"] if found.get("amx_bf16") else []
    parts = [
        f"{name} ({', '.join(instructions)})",
        f"{torch.get_num_threads()} threads",
        f"torch {torch.__version__}",
        f"torchvision {torchvision.__version__}",
        str(date.today()),
    ]
    if device.type == "cuda":
        parts.insert(0, torch.cuda.get_device_name(device))
    elif device.type != "cpu":
        parts.insert(0, device.type)
    return ", ".join(parts)


def summarize(results: list[Result]) -> pd.DataFrame:
    """Return a table with the median time, `ms`, and the speedup of each result.

    The speedup is the median time of eager torchvision divided by that of the result.
    """
    table = pd.DataFrame(map(asdict, results))
    table["ms"] = table.pop("milliseconds").map(statistics.median)
    table["column"] = [
        f"{n} × {size} × {size}" for n, size in zip(table.batch_size, table.image_size)
    ]
    eager = table[table.row == "torchvision"].set_index(["model", "column"]).ms
    baseline = eager.loc[list(zip(table.model, table.column))].to_numpy()
    table["speedup"] = baseline / table.ms
    return table


def format_tables(table: pd.DataFrame) -> str:
    """Return a Markdown table for each network."""
    text = f"{table.machine.iloc[0]}\n"
    for model, part in table.groupby("model", sort=False):
        cells = [f"{ms:.1f}, {speedup:.2f}" for ms, speedup in zip(part.ms, part.speedup)]
        part = part.assign(cell=cells)
        wide = part.pivot_table(
            values="cell",
            index=["row", "precision"],
            columns="column",
            aggfunc="first",
            sort=False,
        )
        markdown = wide.reset_index().to_markdown(index=False)
        text += f"\n**{model}**: milliseconds, speedup over eager torchvision\n\n{markdown}\n"
    return text


def draw_speedups(table: pd.DataFrame) -> Figure:
    """Plot the speedups at the smallest and largest batch size, one row of plots per network."""
    models = list(table.model.unique())
    smallest, largest = table.batch_size.min(), table.batch_size.max()
    columns = list(table[table.batch_size.isin([smallest, largest])].column.unique())
    figure = Figure(figsize=(10, 1 + 3.6 * len(models)), dpi=150, layout="constrained")
    figure.suptitle(f"Speedup over eager float32 torchvision\n{table.machine.iloc[0]}", fontsize=10)
    grid = figure.subplots(len(models), len(columns), squeeze=False, sharex=True)
    for (i, model), (j, column) in itertools.product(enumerate(models), enumerate(columns)):
        axes = grid[i, j]
        part = table[(table.model == model) & (table.column == column)]
        labels = [f"{row}, {precision}" for row, precision in zip(part.row, part.precision)]
        bars = axes.barh(labels, part.speedup, color=part.precision.map(COLORS))
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
        axes.axvline(1, color="black", linewidth=1, linestyle="--")
        axes.set_title(f"{model}, {column}", fontsize=11)
        axes.margins(x=0.12)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        if j > 0:
            axes.set_yticklabels([])
    used = [precision for precision in COLORS if precision in set(table.precision)]
    handles = [Patch(color=COLORS[precision], label=precision) for precision in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def log(line: str) -> None:
    """Print a line on standard error: standard output is for the table."""
    print(line, file=sys.stderr, flush=True)


def fill_in_defaults(config: Config) -> Config:
    """Fill in the options that were not given, and create --out.

    Raises:
        UserError: an option is invalid.
    """
    config = Config(
        model=unique(config.model) or ("alexnet", "resnet18"),
        precision=unique(config.precision) or ("float32", "bfloat16", "int8"),
        batch_size=unique(config.batch_size) or (1, 8, 32),
        image_size=unique(config.image_size) or (224,),
        device=str(find_device(config.device)),
        seconds=config.seconds,
        out=config.out,
    )
    require(min(config.batch_size) >= 1, "--batch-size must be at least 1")
    require(min(config.image_size) >= 63, "--image-size must be at least 63")
    if config.out:
        try:
            config.out.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=config.out).close()  # can be written to, also minutes later
        except OSError as error:
            raise UserError(f"cannot write to the folder {config.out}: {error.strerror}") from error
    return config


def unique(values: tuple[Value, ...]) -> tuple[Value, ...]:
    """Return the values in their order, each once."""
    return tuple(dict.fromkeys(values))


def silence_compilers() -> None:
    """Do not print the warnings of the engines, nor the tables of PyTorch's autotuner."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    inductor = torch._inductor.config
    if hasattr(inductor, "autotune_num_choices_displayed"):
        inductor.autotune_num_choices_displayed = 0
    if hasattr(inductor, "max_autotune_report_choices_stats"):
        inductor.max_autotune_report_choices_stats = False


def benchmark(config: Config) -> None:
    """Time all rows, and print the table or write it to --out too."""
    machine = describe_machine(torch.device(config.device))
    results = []
    for model, image_size in itertools.product(config.model, config.image_size):
        results += time_model(config, model, image_size, machine)

    table = summarize(results)
    text = format_tables(table)
    print_result(text.removesuffix("\n"))
    if config.out:
        times = json.dumps(list(map(asdict, results)), indent=1)
        (config.out / "times.json").write_text(times, encoding="utf-8")
        (config.out / "table.md").write_text(text, encoding="utf-8")
        draw_speedups(table).savefig(config.out / "speed.png")


def main(arguments: list[str]) -> None:
    config = fill_in_defaults(tyro.cli(Config, prog="python -m examples.benchmark", args=arguments))
    silence_compilers()
    benchmark(config)


if __name__ == "__main__":
    run(main)
