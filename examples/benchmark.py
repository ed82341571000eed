"""Time both networks at every precision, beside torchvision, ONNX Runtime and OpenVINO.

    python -m examples.benchmark
    python -m examples.benchmark --model resnet18 --precision int8 --json figures.json
    python -m examples.benchmark --weights run/model.pt --data DATA

The rows of a table take turns, round after round, so that a machine that is busy for a while is
busy for all of them. Figures are medians over the rounds. With --weights and --data, int8 is
calibrated on images of DATA/train/, and a second table has the accuracy on DATA/val/.
"""

from __future__ import annotations

import copy
import datetime
import itertools
import logging
import platform
import re
import tempfile
import timeit
import warnings
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Callable, Mapping

import click
import pandas as pd
import torch
import torch._inductor.config
import torch.nn.functional as F
import torchvision
from matplotlib import cbook
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from examples.engines import Network, channels_last, implementations, in_autocast, twin
from examples.memory import reuse_memory
from examples.options import Command, Device, FiniteRange, said_once
from examples.train import NORMALIZE, load_images
from examples.weights import MODELS, load_file

TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.1, "int8": 0.3}  # of the largest logit
A_TURN = 0.05  # seconds, one call at least


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


@torch.no_grad()
def build(rows: Any, precisions: tuple[str, ...], images: Tensor) -> tuple[Any, Any]:
    """Return the networks that can be had, and the seconds until the first answer of each.

    Raises:
        click.ClickException: a network has other logits than torchvision's.
    """
    networks: dict[str, Network] = {}
    seconds = {}
    for precision, row, make in rows:
        if precision in precisions or row == "torchvision":
            click.echo(f"building {row}", err=True)
            start = timeit.default_timer()
            try:
                networks[row] = make()
            except ImportError as error:
                click.echo(f"{row} is left out: {error}", err=True)
                continue
            logits = networks[row](images)
            seconds[row] = round(timeit.default_timer() - start, 1)
            expected = networks["torchvision"](images)
            difference = (logits - expected).abs().max() / expected.abs().max()
            if not difference < TOLERANCES[precision]:
                raise click.ClickException(f"the logits of {row} differ by {difference:.1e}")
    return networks, seconds


def training_step(model: nn.Module, precision: str, images: Tensor) -> Callable[[], None]:
    """Return a step of SGD on the images (N, 3, H, W)."""
    optimizer = torch.optim.SGD(model.train().parameters(), 1e-3, 0.9, weight_decay=1e-4)
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
    forward = model if precision == "float32" else in_autocast(model, precision)

    def step() -> None:
        loss = F.cross_entropy(forward(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def training(theirs: nn.Module, ours: nn.Module, images: Tensor) -> dict[str, Callable[[], None]]:
    """Return a training step of each network: as it is, channels-last, and in bfloat16."""
    rows = {}
    for owner, model in (("torchvision", theirs), ("ours", ours)):
        rows[owner] = training_step(copy.deepcopy(model), "float32", images)
        tiled = f"{owner}, channels-last"
        rows[tiled] = training_step(channels_last(model), "float32", images)
        rows[f"{tiled}, bfloat16"] = training_step(channels_last(model), "bfloat16", images)
    return rows


def photographs(size: int) -> Tensor:
    """Return crops (16, 3, size, size) of a photograph, normalized."""
    crop = v2.Compose([v2.RandomResizedCrop(size), v2.PILToTensor()])
    with Image.open(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))) as photograph:
        crops = torch.stack([crop(photograph) for _ in range(16)])
    return torch.as_tensor(NORMALIZE(crops.float()))


@torch.no_grad()
def accuracy(networks: dict[str, Network], val: Any, batch_size: int, device: Any) -> pd.DataFrame:
    """Return the accuracy of each network and how often it agrees with torchvision's."""
    hits: Any = dict.fromkeys(networks, 0)
    same: Any = dict.fromkeys(networks, 0)
    for images, labels in DataLoader(val, batch_size, sampler=[(i, 0) for i in range(len(val))]):
        images = NORMALIZE(images.to(device).float())
        guesses = {row: network(images).argmax(1).cpu() for row, network in networks.items()}
        for row, guess in guesses.items():
            hits[row] += (guess == labels).sum().item()
            same[row] += (guess == guesses["torchvision"]).sum().item()
    table = pd.DataFrame({"top-1 %": hits, "as in float32 %": same})
    return (100 * table / len(val)).round(2)


def markdown(table: pd.DataFrame) -> str:
    """Return the figures as tables: a row for each implementation, a column for each shape."""
    text = f"{table['machine'].iloc[0]}\n"
    for (model, task), rows in table.groupby(["model", "task"], sort=False):
        pivot = rows.pivot_table("cell", "row", "shape", aggfunc="first", sort=False)
        cells = pivot.rename_axis(index="").to_markdown()
        text += f"\n**{model}, {task}**: milliseconds, times torchvision\n\n{cells}\n"
    return text


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the time of an image by batch size, and by image size, where there are several."""
    table = table.assign(**{"ms per image": table["ms"] / table["batch_size"]})
    table = table[
        table["row"].str.match("torchvision$|ours, (chan|comp)") & table["task"].eq("inference")
    ]
    panels = [by for by in ("batch_size", "image_size") if table[by].nunique() > 1] or [
        "batch_size"
    ]
    figure = Figure(figsize=(10, 4 * len(panels)), layout="constrained")
    axes = iter(figure.subplots(len(panels), 2, squeeze=False).flat)
    for by in panels:
        other = "image_size" if by == "batch_size" else "batch_size"
        for model, rows in table[table[other] == table[other].max()].groupby("model"):
            lines = rows.pivot_table("ms per image", by, "row", sort=False)
            title = f"{model}, {other.replace('_', ' ')} {table[other].max()}"
            lines.plot(
                ax=next(axes), style=".-", title=title, ylabel="ms per image", ylim=(0, None)
            )
    figure.savefig(path)


def machine() -> str:
    """Return what a figure depends on: processor, threads, versions, date."""
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    named = re.search(r"model name\s*:\s*(.+)", text)
    processor = named.group(1) if named else platform.processor() or platform.machine()
    if torch.cuda.is_available():
        processor += f", {torch.cuda.get_device_name()}"
    instructions = torch.backends.cpu.get_cpu_capability() + (", AMX" if "amx_bf16" in text else "")
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    threads, today = torch.get_num_threads(), datetime.date.today()
    return f"{processor} ({instructions}), {threads} threads, {versions}, {today}"


FILE: Any = click.Path(path_type=Path, dir_okay=False)
PRECISION = click.Choice(list(TOLERANCES))


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--model", multiple=True, type=click.Choice(sorted(MODELS)), default=MODELS)
@click.option("--precision", multiple=True, type=PRECISION, default=["float32", "bfloat16", "int8"])
@click.option("--batch-size", multiple=True, type=click.IntRange(1), default=[1, 8, 32])
@click.option("--image-size", multiple=True, type=click.IntRange(63), default=[224])
@click.option("--weights", type=FILE, help="Of the network to time, by default random.")
@click.option("--data", type=click.Path(path_type=Path), help="Its images, for the accuracy.")
@click.option("--device", type=Device(), default="cuda" if torch.cuda.is_available() else "cpu")
@click.option("--seconds", type=FiniteRange(0), default=6.0, help="To time a column for.")
@click.option("--markdown", "tables", type=FILE, help="Write the tables here too.")
@click.option("--json", "figures", type=FILE, help="Write every figure here.")
@click.option("--plot", "picture", type=FILE, help="Draw time by batch and image size.")
@said_once()
def main(
    tables: Path | None, figures: Path | None, picture: Path | None, device: Any, **given: Any
) -> None:
    """Time both networks at every precision, beside torchvision, ONNX Runtime and OpenVINO."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch._inductor.config.max_autotune_report_choices_stats = False
    torch._inductor.config.autotune_num_choices_displayed = 0
    reuse_memory()  # for all rows alike
    for path in filter(None, (tables, figures, picture)):
        if not path.parent.is_dir():
            raise click.ClickException(f"{path}: there is no folder {path.parent}")
    weights, data = given["weights"], given["data"]
    if (weights is None) != (data is None):
        raise click.ClickException("--weights and --data go together")
    start = load_file(weights) if weights else None
    if start:
        given |= {"model": [start.name], "image_size": [start.image_size]}

    results, text = [], ""
    for model, size in itertools.product(given["model"], given["image_size"]):
        torch.manual_seed(0)
        ours = (start.model if start else MODELS[model]()).eval().to(device)
        theirs, images = twin(model, ours), photographs(size).to(device)
        if data:
            train, val = load_images(data, size)
            some = [train[index, 0][0] for index in torch.randperm(len(train))[:256].tolist()]
            images = NORMALIZE(torch.stack(some).to(device).float())
        with tempfile.TemporaryDirectory() as folder:
            rows = implementations(theirs, ours, images, Path(folder, "network.onnx"))
            networks, seconds = build(rows, given["precision"], images)
        tasks: Any = {}
        for batch_size in given["batch_size"]:
            batch = images.repeat(batch_size, 1, 1, 1)[:batch_size]
            tasks["inference", batch_size] = {
                row: partial(networks[row], batch) for row in networks
            }
        tasks["training step", 16] = training(theirs, ours, images[:16])
        for (task, batch_size), calls in tasks.items():
            click.echo(f"timing {model}, {task}, batch {batch_size}", err=True)
            with torch.set_grad_enabled(task == "training step"):
                times = time_in_turns(calls, given["seconds"])
            for row, rounds in times.items():
                ms, ratio = 1e3 * median(rounds), median(times["torchvision"]) / median(rounds)
                shape, cell = f"{batch_size} × {size} × {size}", f"{ms:.1f}, {ratio:.2f}"
                results.append(
                    {"model": model, "task": task, "row": row, "shape": shape, "cell": cell}
                    | {"batch_size": batch_size, "image_size": size, "ms": ms}
                    | {"times_torchvision": ratio, "rounds": rounds}
                )
        if data:
            costs = accuracy(networks, val, given["batch_size"][-1], device)
            costs = costs.assign(seconds=pd.Series(seconds))
            text += f"\n**{model}, {len(val):,} images**\n\n{costs.to_markdown()}\n"

    table = pd.DataFrame(results).assign(machine=machine())
    text = markdown(table) + text
    click.echo(text, nl=False)
    if tables:
        tables.write_text(text, encoding="utf-8")
    if figures:
        table.to_json(figures, orient="records", indent=1)
    if picture:
        draw(table, picture)


if __name__ == "__main__":
    main()
