"""Time both networks beside torchvision's, timm's and ONNX Runtime's, with the same weights.

    python -m examples.benchmark
    python -m examples.benchmark --markdown table.md --json figures.json --plot time.png

The rows of a table take turns, round after round, so that a machine that is busy for a while is
busy for all of them. Figures are medians over the rounds.
"""

from __future__ import annotations

import copy
import datetime
import importlib.util
import json
import platform
import re
import sys
import timeit
import warnings
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Callable, Mapping, TypeVar

import click
import pandas as pd
import torch
import torch._inductor.config
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from alexnet import AlexNet
from examples.memory import reuse_memory
from examples.options import Command, Device, FiniteRange
from examples.weights import MODELS
from resnet18 import ResNet18

BASELINE = "torchvision"
TRAINING_BATCH = 16
A_TURN = 0.05  # seconds, one call at least
AnyModule = TypeVar("AnyModule", bound=nn.Module)
Network = Callable[[Tensor], Tensor]


@dataclass
class Figure:
    """What was timed of one implementation at one batch size."""

    model: str
    task: str
    implementation: str
    batch_size: int
    seconds: float  # median over the rounds
    rounds: list[float]  # seconds of each
    ratio: float  # times as fast as torchvision, called plainly
    gigaflops: float  # per second
    share: float  # of what a large matrix product of the same dtype reaches


def time_in_turns(calls: Mapping[str, Callable[[], Any]], budget: float) -> dict[str, list[float]]:
    """Return the seconds of each call, round by round; all rounds take about `budget` seconds."""
    threads = torch.get_num_threads()
    timers = {
        name: Timer("call()", globals={"call": call}, num_threads=threads)
        for name, call in calls.items()
    }
    once = {name: timeit.timeit(call, number=1) for name, call in calls.items()}
    a_round = sum(seconds + max(seconds, A_TURN) for seconds in once.values())  # one to warm up
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(max(3, round(budget / a_round))):
        for name, timer in timers.items():
            times[name].append(timer.blocked_autorange(min_run_time=A_TURN).median)
    return times


def matrix_product_flops(dtype: torch.dtype, device: torch.device) -> float:
    """Return the operations per second of a product of two 2048 x 2048 matrices: the limit."""
    matrix = torch.randn(2048, 2048, device=device).to(dtype)
    return 2 * 2048**3 / min(time_in_turns({"product": lambda: matrix @ matrix}, 1)["product"])


def channels_last(model: AnyModule) -> AnyModule:
    """Return a copy in PyTorch's layout idiom."""
    return copy.deepcopy(model).to(memory_format=torch.channels_last)


def compiled(model: nn.Module) -> Network:
    """Return the network compiled, its weights frozen into the code, as docs/speed.md has it."""
    torch._inductor.config.freezing = True
    torch._inductor.config.autotune_num_choices_displayed = 0
    torch._inductor.config.max_autotune_report_choices_stats = False
    # Convolutions gain from code for one batch size, large linear layers from code for any.
    dynamic = False if isinstance(model, ResNet18) else None
    network: Network = torch.compile(channels_last(model), mode="max-autotune", dynamic=dynamic)
    return network


def in_bfloat16(network: Network) -> Network:
    """Return the network under autocast."""

    def call(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            return network(images)

    return call


def in_onnx_runtime(model: nn.Module, size: int) -> Network:
    """Return the network as ONNX Runtime runs it on the CPU, with as many threads as PyTorch."""
    import onnxruntime

    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = ({0: torch.export.Dim("batch")},)
        images = (torch.randn(2, 3, size, size),)
        program = torch.onnx.export(model, images, dynamic_shapes=batch, verbose=False)
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def pair(name: str) -> tuple[nn.Module, AlexNet | ResNet18]:
    """Return torchvision's network and ours, with the same weights, for inference."""
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name).eval()
    return theirs, MODELS[name].from_state_dict(theirs.state_dict()).eval()


def inference_networks(
    name: str, size: int, device: torch.device, eager: bool
) -> dict[str, Network]:
    """Return every implementation of a network; a peer that is not installed is named."""
    theirs, ours = pair(name)
    theirs, ours = theirs.to(device), ours.to(device)
    networks: dict[str, Network] = {
        BASELINE: theirs,
        "torchvision, channels-last": channels_last(theirs),
        "ours": ours,
        "ours, channels-last": channels_last(ours),
    }
    if isinstance(ours, ResNet18):
        networks["ours, fused, channels-last"] = channels_last(fuse(ours))
        if installed("timm"):
            import timm

            peer = timm.create_model(name).eval().to(device)
            peer.load_state_dict(theirs.state_dict())
            networks["timm"] = peer
    if not eager:
        networks["ours, compiled"] = compiled(ours)
        networks["ours, compiled, bfloat16"] = in_bfloat16(compiled(ours))
    if device.type == "cpu" and installed("onnxruntime", "onnxscript"):
        networks["ONNX Runtime"] = in_onnx_runtime(ours, size)
    networks["torchvision, channels-last, bfloat16"] = in_bfloat16(channels_last(theirs))
    return networks


def installed(*packages: str) -> bool:
    """Tell whether all the packages are there; say on standard error which is not."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    for package in missing:
        say(f"{package} is not installed and left out")
    return not missing


def inference(networks: dict[str, Network], images: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return the forward pass of each network, having checked that all give the same logits.

    Raises:
        click.ClickException: the logits of a network are not torchvision's.
    """
    batches = {
        name: images.to(memory_format=torch.channels_last) if "channels-last" in name else images
        for name in networks
    }
    expected = networks[BASELINE](images)
    for name, network in networks.items():
        difference = (network(batches[name]) - expected).abs().max() / expected.abs().max()
        if not difference < (0.1 if "bfloat16" in name else 1e-4):
            message = f"the logits of {name} differ by {difference:.1e} from torchvision's"
            raise click.ClickException(message)
    return {name: partial(network, batches[name]) for name, network in networks.items()}


def training_step(model: nn.Module, dtype: torch.dtype, images: Tensor) -> Callable[[], Tensor]:
    """Return a step of SGD on the images (N, 3, H, W), in their layout."""
    optimizer = torch.optim.SGD(model.train().parameters(), 1e-3, 0.9, weight_decay=1e-4)
    labels = torch.arange(len(images), device=images.device)

    def step() -> Tensor:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss

    return step


def training(name: str, images: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return a training step of each implementation."""
    theirs, ours = pair(name)
    theirs, ours = theirs.to(images.device), ours.to(images.device)
    tiled = images.to(memory_format=torch.channels_last)
    return {
        BASELINE: training_step(copy.deepcopy(theirs), torch.float32, images),
        "torchvision, channels-last": training_step(channels_last(theirs), torch.float32, tiled),
        "ours": training_step(copy.deepcopy(ours), torch.float32, images),
        "ours, channels-last": training_step(channels_last(ours), torch.float32, tiled),
        "torchvision, channels-last, bfloat16": (
            training_step(channels_last(theirs), torch.bfloat16, tiled)
        ),
        "ours, channels-last, bfloat16": training_step(channels_last(ours), torch.bfloat16, tiled),
    }


def figures(
    model: str,
    task: str,
    calls: dict[str, Callable[[], Any]],
    batch_size: int,
    limits: dict[str, float],
    budget: float,
) -> list[Figure]:
    """Time the calls in turns and return a figure for each."""
    with FlopCounterMode(display=False) as counter:
        calls[BASELINE]()
    flops = counter.get_total_flops()
    times = time_in_turns(calls, budget)
    result = []
    for name, rounds in times.items():
        seconds, limit = median(rounds), limits["bfloat16" if "bfloat16" in name else "float32"]
        ratio, rate = median(times[BASELINE]) / seconds, flops / seconds
        result.append(
            Figure(model, task, name, batch_size, seconds, rounds, ratio, rate / 1e9, rate / limit)
        )
    return result


def markdown(results: list[Figure], machine: dict[str, str], limits: dict[str, float]) -> str:
    """Return the figures as tables: a row for each implementation, a column for each batch size."""
    lines = [", ".join(machine.values())]
    lines += [f"Limit: {limit / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, limit in limits.items()]
    table = pd.DataFrame(asdict(figure) for figure in results)
    table["cell"] = [f"{f.seconds * 1e3:.1f}, {f.ratio:.2f}, {f.share:.0%}" for f in results]
    table["batch"] = [f"batch {figure.batch_size}" for figure in results]
    for (model, task), rows in table.groupby(["model", "task"], sort=False):
        cells = rows.pivot(index="implementation", columns="batch", values="cell")
        cells = cells.loc[rows["implementation"].unique(), rows["batch"].unique()]
        lines += ["", f"**{model}, {task}**: milliseconds, times torchvision, share of the limit"]
        lines += ["", cells.rename_axis(index="").to_markdown()]
    return "\n".join(lines) + "\n"


def machine(device: torch.device) -> dict[str, str]:
    """Return what a figure depends on: processor, versions, date."""
    processor = platform.processor() or platform.machine()
    instructions = torch.backends.cpu.get_cpu_capability()
    information = Path("/proc/cpuinfo")
    if information.exists():
        text = information.read_text()
        named = re.search(r"model name\s*:\s*(.+)", text)
        processor = named.group(1) if named else processor
        instructions += ", AMX" if "amx_bf16" in text else ""  # what bfloat16 is fast with
    processor = f"{processor} ({instructions})"
    if device.type == "cuda":
        processor = torch.cuda.get_device_name()
    return {
        "processor": processor,
        "threads": f"{torch.get_num_threads()} threads",
        "torch": f"torch {torch.__version__}",
        "torchvision": f"torchvision {torchvision.__version__}",
        "date": datetime.date.today().isoformat(),
    }


def plot(path: Path, device: torch.device) -> None:
    """Draw how the time of an image grows with the batch and with the size of the image."""
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(9, 3.6), layout="constrained")
    by_batch, by_size = picture.subplots(1, 2)
    for name, color in (("alexnet", "tab:orange"), ("resnet18", "tab:blue")):
        theirs, ours = pair(name)
        theirs, ours = theirs.to(device), ours.to(device)
        fused = channels_last(fuse(ours))
        for axes, shapes, label in (
            (
                by_batch,
                [(batch, 224) for batch in (1, 2, 4, 8, 16, 32)],
                "batch size, at 224 × 224",
            ),
            (
                by_size,
                [(4, size) for size in (64, 96, 128, 160, 224, 288)],
                "height and width, batch 4",
            ),
        ):
            say(f"{name}: time by {label}")
            curves: dict[str, list[float]] = {"torchvision": [], "ours": []}
            for batch, size in shapes:
                images = torch.randn(batch, 3, size, size, device=device)
                calls = {"torchvision": partial(theirs, images), "ours": partial(fused, images)}
                for row, seconds in time_in_turns(calls, 1).items():
                    curves[row].append(median(seconds) * 1e3 / batch)
            ticks = [shape[axes is by_size] for shape in shapes]
            for row, style in (("torchvision", "--"), ("ours", "-")):
                axes.plot(
                    ticks, curves[row], style, color=color, marker="o", label=f"{name}, {row}"
                )
            axes.set(xlabel=label, ylabel="ms per image")
            axes.set_xticks(ticks)
    by_batch.set_ylim(bottom=0)
    by_size.set_ylim(bottom=0)
    by_size.legend()
    picture.savefig(path, dpi=100)


def say(text: str) -> None:
    """Tell whoever waits what is being done."""
    print(text, file=sys.stderr, flush=True)


FILE = click.Path(path_type=Path)


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--model", "models", multiple=True, type=click.Choice(sorted(MODELS)), default=MODELS)
@click.option(
    "--batch-size", "batch_sizes", multiple=True, type=click.IntRange(1), default=[1, 8, 32]
)
@click.option("--image-size", type=click.IntRange(63), default=224)
@click.option("--device", type=Device(), default="cuda" if torch.cuda.is_available() else "cpu")
@click.option("--eager", is_flag=True, help="Compile nothing; compiling needs a C++ compiler.")
@click.option("--seconds", type=FiniteRange(0), default=6.0, help="To time a column for.")
@click.option("--markdown", "markdown_file", type=FILE, help="Write the tables here too.")
@click.option("--json", "json_file", type=FILE, help="Write every figure here.")
@click.option("--plot", "plot_file", type=FILE, help="Draw time by batch and image size.")
def main(
    models: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    image_size: int,
    device: torch.device,
    eager: bool,
    seconds: float,
    markdown_file: Path | None,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Time both networks beside torchvision, timm and ONNX Runtime."""
    warnings.filterwarnings("ignore", module="torch")
    reuse_memory()  # for all rows alike
    for path in (markdown_file, json_file, plot_file):
        if path and not path.parent.is_dir():
            raise click.ClickException(f"{path}: there is no folder {path.parent}")

    say("limit: a product of two 2048 x 2048 matrices")
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    limits = {name: matrix_product_flops(dtype, device) for name, dtype in dtypes.items()}
    results: list[Figure] = []
    for model in models:
        with torch.no_grad():
            say(f"{model}, inference: building and compiling")
            networks = inference_networks(model, image_size, device, eager)
            for batch_size in batch_sizes:
                images = torch.randn(batch_size, 3, image_size, image_size, device=device)
                say(f"{model}, inference, batch {batch_size}: comparing logits")
                calls = inference(networks, images)
                say(f"{model}, inference, batch {batch_size}: timing")
                results += figures(model, "inference", calls, batch_size, limits, seconds)
            del networks, calls
        say(f"{model}, training step, batch {TRAINING_BATCH}: timing")
        images = torch.randn(TRAINING_BATCH, 3, image_size, image_size, device=device)
        steps = training(model, images)
        results += figures(model, "training step", steps, TRAINING_BATCH, limits, seconds)

    here = machine(device)
    tables = markdown(results, here, limits)
    click.echo(tables, nl=False)
    if markdown_file:
        markdown_file.write_text(tables, encoding="utf-8")
    if json_file:
        report = {"machine": here, "limits": limits, "figures": [asdict(f) for f in results]}
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if plot_file:
        with torch.inference_mode():
            plot(plot_file, device)


if __name__ == "__main__":
    main()
