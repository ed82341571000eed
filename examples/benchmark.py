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
from collections import defaultdict
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Callable, Mapping, TypeVar

import torch
import torch._inductor.config
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from alexnet import AlexNet
from examples.command_line import (
    ArgumentParser,
    default_device,
    device,
    positive_int,
    reuse_memory,
)
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
    """Return the network compiled, its weights frozen into the code, as the README has it."""
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
    """Return torchvision's network and the one here, with the same weights, for inference."""
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
        "here": ours,
        "here, channels-last": channels_last(ours),
    }
    best: AlexNet | ResNet18 = ours
    if isinstance(ours, ResNet18):
        best = networks["here, fuse()"] = ours.fuse()
        if installed("timm"):
            import timm

            peer = timm.create_model(name).eval().to(device)
            peer.load_state_dict(theirs.state_dict())
            networks["timm"] = peer
    if not eager:
        networks["here, fast path"] = compiled(best)
        networks["here, fast path, bfloat16"] = in_bfloat16(compiled(best))
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
        ValueError: the logits of a network are not torchvision's.
    """
    batches = {
        name: images.to(memory_format=torch.channels_last) if "channels-last" in name else images
        for name in networks
    }
    expected = networks[BASELINE](images)
    for name, network in networks.items():
        difference = (network(batches[name]) - expected).abs().max() / expected.abs().max()
        if not difference < (0.1 if "bfloat16" in name else 1e-4):
            raise ValueError(f"the logits of {name} differ by {difference:.1e} from torchvision's")
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
        "here": training_step(copy.deepcopy(ours), torch.float32, images),
        "here, channels-last": training_step(channels_last(ours), torch.float32, tiled),
        "torchvision, channels-last, bfloat16": (
            training_step(channels_last(theirs), torch.bfloat16, tiled)
        ),
        "here, channels-last, bfloat16": training_step(channels_last(ours), torch.bfloat16, tiled),
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
    tables: dict[tuple[str, str], dict[str, dict[int, Figure]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for figure in results:
        tables[figure.model, figure.task][figure.implementation][figure.batch_size] = figure
    for (model, task), rows in tables.items():
        batch_sizes = list(rows[BASELINE])
        lines += ["", f"**{model}, {task}**: milliseconds, times torchvision, share of the limit"]
        lines += ["", f"| | {' | '.join(f'batch {size}' for size in batch_sizes)} |"]
        lines += ["|---|" + "---|" * len(batch_sizes)]
        for name, row in rows.items():
            cells = (f"{f.seconds * 1e3:.1f}, {f.ratio:.2f}, {f.share:.0%}" for f in row.values())
            lines += [f"| {name} | {' | '.join(cells)} |"]
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
    for name, colour in (("alexnet", "tab:orange"), ("resnet18", "tab:blue")):
        theirs, ours = pair(name)
        theirs, ours = theirs.to(device), ours.to(device)
        ours = ours.fuse() if isinstance(ours, ResNet18) else channels_last(ours)
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
            curves: dict[str, list[float]] = {"torchvision": [], "here": []}
            for batch, size in shapes:
                images = torch.randn(batch, 3, size, size, device=device)
                calls = {"torchvision": partial(theirs, images), "here": partial(ours, images)}
                for row, seconds in time_in_turns(calls, 1).items():
                    curves[row].append(median(seconds) * 1e3 / batch)
            ticks = [shape[axes is by_size] for shape in shapes]
            for row, style in (("torchvision", "--"), ("here", "-")):
                axes.plot(
                    ticks, curves[row], style, color=colour, marker="o", label=f"{name}, {row}"
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


def main(arguments: list[str] | None = None) -> int:
    """Time what the arguments ask for, print it and write it; return the exit status."""
    parser = ArgumentParser(
        prog="examples.benchmark",
        description="Time both networks beside torchvision, timm and ONNX Runtime.",
    )
    add = parser.add_argument
    add(
        "--models",
        nargs="+",
        choices=sorted(MODELS),
        default=sorted(MODELS),
        metavar="MODEL",
        help="alexnet, resnet18 (default: both)",
    )
    add(
        "--batch-sizes",
        nargs="+",
        type=positive_int,
        default=[1, 8, 32],
        metavar="N",
        help="of inference (default: 1 8 32)",
    )
    add("--image-size", type=positive_int, default=224, metavar="N", help="default: 224")
    add(
        "--device",
        type=device,
        default=default_device(),
        help="cpu or cuda (default: cuda where there is one)",
    )
    add("--eager", action="store_true", help="compile nothing; compiling needs a C++ compiler")
    add(
        "--seconds",
        type=positive_int,
        default=6,
        metavar="N",
        help="to time a table's column for, three rounds at least (default: 6)",
    )
    add("--markdown", type=Path, metavar="FILE", help="write the tables here too")
    add("--json", type=Path, metavar="FILE", help="write every figure here")
    add(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw time by batch and image size, about a minute more",
    )
    args = parser.parse_args(arguments)
    for path in (args.markdown, args.json, args.plot):
        if path and not path.parent.is_dir():
            parser.error(f"{path}: there is no folder {path.parent}")

    say("limit: a product of two 2048 x 2048 matrices")
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    limits = {name: matrix_product_flops(dtype, args.device) for name, dtype in dtypes.items()}
    results: list[Figure] = []
    for model in args.models:
        size = args.image_size
        with torch.no_grad():
            say(f"{model}, inference: building and compiling")
            networks = inference_networks(model, size, args.device, args.eager)
            for batch_size in args.batch_sizes:
                images = torch.randn(batch_size, 3, size, size, device=args.device)
                say(f"{model}, inference, batch {batch_size}: comparing logits")
                try:
                    calls = inference(networks, images)
                except ValueError as error:
                    parser.exit(1, f"{parser.prog}: {model}: {error}\n")
                say(f"{model}, inference, batch {batch_size}: timing")
                results += figures(model, "inference", calls, batch_size, limits, args.seconds)
            del networks, calls
        say(f"{model}, training step, batch {TRAINING_BATCH}: timing")
        images = torch.randn(TRAINING_BATCH, 3, size, size, device=args.device)
        steps = training(model, images)
        results += figures(model, "training step", steps, TRAINING_BATCH, limits, args.seconds)

    here = machine(args.device)
    tables = markdown(results, here, limits)
    print(tables, end="")
    if args.markdown:
        args.markdown.write_text(tables, encoding="utf-8")
    if args.json:
        report = {"machine": here, "limits": limits, "figures": [asdict(f) for f in results]}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        with torch.inference_mode():
            plot(args.plot, args.device)
    return 0


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="torch")
    reuse_memory()  # for all rows alike
    sys.exit(main())
