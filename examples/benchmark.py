"""Measure how fast AlexNet and ResNet-18 run with each engine and precision of docs/speed.md.

Every time is compared with torchvision's network in float32, without compiling ("eager").

python -m examples.benchmark
python -m examples.benchmark --model resnet18 --precision int8 --out figures
"""

import copy
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from torch import Tensor, nn

from alexnet import AlexNet
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
from examples.lib.command import Model, UserError, hint, parse, print_result, require, run
from examples.lib.compare import TOLERANCES, relative_error, silence, time_in_turns
from examples.lib.distributed import find_device
from examples.lib.networks import ARCHITECTURES, normalize
from examples.lib.results import new_figure
from examples.lib.unlabeled import crop_photograph

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Precision = Literal["float32", "bfloat16", "int8"]
COLORS = {"float32": "#0072b2", "bfloat16": "#e69f00", "int8": "#009e73"}  # color-blind safe
CHECKED_IMAGES = 16
CALIBRATION_IMAGES = 8


@dataclass(frozen=True)
class Options:
    """Time AlexNet and ResNet-18 with each engine and precision, and compare with torchvision."""

    model: tuple[Model, ...] = ("alexnet", "resnet18")
    """Networks to time."""
    precision: tuple[Precision, ...] = ("float32", "bfloat16", "int8")
    """Precisions to time. torchvision's network in float32, not compiled, is always timed too."""
    batch_size: tuple[int, ...] = (1, 8, 32)
    """Numbers of images in a batch."""
    image_size: tuple[int, ...] = (224,)
    """Heights and widths of the images in pixels."""

    device: Annotated[str | None, hint("NAME", "default: cuda if there is a GPU, else cpu")] = None
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
    import torchvision

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
    return normalize(torch.from_numpy(crop_photograph(size, count)))


# Checking the logits


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
        found = relative_error(logits.cpu().numpy(), expected.cpu().numpy())
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
def time_networks(
    networks: dict[Row, Network], images: Tensor, seconds: float
) -> dict[Row, list[float]]:
    """Return the milliseconds that each network takes for the images, one number per round."""

    def classify(network: Network) -> None:
        network(images)
        if images.device.type != "cpu":  # the call returns before a GPU has finished
            torch.accelerator.synchronize(images.device)

    calls = [partial(classify, network) for network in networks.values()]
    return dict(zip(networks, time_in_turns(calls, seconds), strict=True))


def time_model(
    options: Options, model: Model, image_size: int, device: torch.device, machine: str
) -> list[Result]:
    """Build all rows for one network, check their logits, and time them at all batch sizes."""
    first_size = options.batch_size[0]
    num_checked = math.ceil(CHECKED_IMAGES / first_size) * first_size  # in full batches
    images = load_images(image_size, max(num_checked, *options.batch_size)).to(device)
    theirs = build_network(model, images[:num_checked])
    ours = ARCHITECTURES[model].network.from_state_dict(theirs.state_dict()).to(device).eval()

    results = []
    with tempfile.TemporaryDirectory() as folder, silence():
        rows = define_rows(theirs, ours, images[:CALIBRATION_IMAGES], Path(folder))
        rows = choose_rows(rows, options.precision, device.type)
        networks = build_rows(rows, images[:num_checked], first_size)

        for batch_size in options.batch_size:
            log(f"timing {model}, {batch_size} x {image_size} x {image_size}")
            times = time_networks(networks, images[:batch_size], options.seconds)
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
    import torchvision

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


def summarize(results: list[Result]) -> "pd.DataFrame":
    """Return a table with the median time, `ms`, and the speedup of each result.

    The speedup is the median time of eager torchvision divided by that of the result.
    """
    import pandas as pd

    table = pd.DataFrame(map(asdict, results))
    table["ms"] = table.pop("milliseconds").map(statistics.median)
    table["column"] = [
        f"{n} × {size} × {size}" for n, size in zip(table.batch_size, table.image_size)
    ]
    eager = table[table.row == "torchvision"].set_index(["model", "column"]).ms
    baseline = eager.loc[list(zip(table.model, table.column))].to_numpy()
    table["speedup"] = baseline / table.ms
    return table


def format_tables(table: "pd.DataFrame") -> str:
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


def draw_speedups(table: "pd.DataFrame") -> "Figure":
    """Plot the speedups at the smallest and largest batch size, one row of plots per network."""
    models = list(table.model.unique())
    smallest, largest = table.batch_size.min(), table.batch_size.max()
    columns = list(table[table.batch_size.isin([smallest, largest])].column.unique())
    figure = new_figure(10, 1 + 3.6 * len(models))
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
    from matplotlib.patches import Patch

    handles = [Patch(color=COLORS[precision], label=precision) for precision in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def log(line: str) -> None:
    """Print a line on standard error: standard output is for the table."""
    print(line, file=sys.stderr, flush=True)


def check_options(options: Options) -> None:
    """Raise `UserError` if an option is invalid. Create --out."""
    require(min(options.batch_size) >= 1, "--batch-size must be at least 1")
    smallest = max(ARCHITECTURES[model].min_image_size for model in options.model)
    require(min(options.image_size) >= smallest, f"--image-size must be at least {smallest}")
    if options.out:
        try:
            options.out.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=options.out).close()  # can be written to, also minutes later
        except OSError as error:
            raise UserError(
                f"cannot write to the folder {options.out}: {error.strerror}"
            ) from error


def benchmark(options: Options) -> None:
    """Time all rows, and print the table or write it to --out too."""
    device = find_device(options.device)
    machine = describe_machine(device)
    results = []
    for model, image_size in itertools.product(options.model, options.image_size):
        results += time_model(options, model, image_size, device, machine)

    table = summarize(results)
    text = format_tables(table)
    print_result(text.removesuffix("\n"))
    if options.out:
        times = json.dumps(list(map(asdict, results)), indent=1)
        (options.out / "times.json").write_text(times, encoding="utf-8")
        (options.out / "table.md").write_text(text, encoding="utf-8")
        draw_speedups(table).savefig(options.out / "speed.png")


def main(arguments: list[str]) -> None:
    options = parse("benchmark", Options, arguments)
    check_options(options)
    benchmark(options)


if __name__ == "__main__":
    run(main)
