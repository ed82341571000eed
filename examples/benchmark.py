"""Time both networks at every precision, beside torchvision, ONNX Runtime and OpenVINO.

    python -m examples.benchmark
    python -m examples.benchmark --model resnet18 --precision int8 --out figures

The rows of a table take turns, round after round, so that a machine that is busy for a while is
busy for all of them. Figures are medians over the rounds.
"""

import datetime
import itertools
import logging
import platform
import re
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
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
from torchvision.transforms import v2

from examples.engines import Network, implementations
from examples.memory import reuse_memory
from examples.options import Command, Device
from examples.train import NORMALIZE
from examples.weights import MODELS

TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.1, "int8": 0.3}  # of the largest logit


@torch.no_grad()
def build(
    rows: Mapping[str, Callable[[], Network]], precisions: tuple[str, ...], images: Tensor
) -> dict[str, Network]:
    """Return the networks of some precisions, as far as their engines are installed.

    Raises:
        click.ClickException: a network has other logits than torchvision's.
    """
    networks: dict[str, Network] = {}
    expected = rows["torchvision"]()(images)
    for row, make in rows.items():
        suffix = row.split(", ")[-1]
        precision = suffix if suffix in TOLERANCES else "float32"
        if precision not in precisions and row != "torchvision":
            continue
        start = time.perf_counter()
        try:
            networks[row] = make()
        except ImportError as error:
            click.echo(f"{row} is left out: {error}", err=True)
            continue
        logits = networks[row](images)
        click.echo(f"{row}: first answer after {time.perf_counter() - start:.1f} s", err=True)
        difference = (logits - expected).abs().max() / expected.abs().max()
        if not difference < TOLERANCES[precision]:
            raise click.ClickException(f"the logits of {row} differ by {difference:.1e}")
    return networks


def training_step(network: Any, images: Tensor) -> Callable[[], None]:
    """Return a step of SGD on the images (N, 3, H, W)."""
    model: nn.Module = getattr(network, "__wrapped__", network)  # in torch.autocast
    optimizer = torch.optim.SGD(model.train().parameters(), 1e-3, 0.9, weight_decay=1e-4)
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def step() -> None:
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def time_in_turns(
    calls: Mapping[str, Callable[[], Any]], seconds: float, **columns: object
) -> pd.DataFrame:
    """Return the milliseconds of each call in each round, for as many rounds as take `seconds`."""
    click.echo(f"timing {', '.join(map(str, columns.values()))}", err=True)
    end = time.perf_counter() + seconds
    times: list[dict[str, Any]] = []
    while len(times) < 3 * len(calls) or time.perf_counter() < end:
        for row, call in calls.items():
            timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
            ms = 1e3 * timer.blocked_autorange(min_run_time=0.05).median
            times.append({**columns, "row": row, "ms": ms})
    return pd.DataFrame(times)


def photographs(size: int) -> Tensor:
    """Return crops (16, 3, size, size) of a photograph, normalized."""
    crop = v2.Compose([v2.RandomResizedCrop(size), v2.PILToTensor()])
    with Image.open(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))) as photograph:
        crops = torch.stack([crop(photograph) for _ in range(16)])
    return torch.as_tensor(NORMALIZE(crops.float()))


def markdown(times: pd.DataFrame) -> str:
    """Return the medians as tables: a row for each implementation, a column for each shape."""
    text = ""
    for (model, task), rows in times.groupby(["model", "task"], sort=False):
        shapes = ["batch_size", "image_size"]
        ms = rows.pivot_table("ms", "row", shapes, aggfunc="median", sort=False)
        ratios = ms.loc["torchvision"] / ms
        cells = ms.map("{:.1f}, ".format) + ratios.map("{:.2f}".format)
        cells.columns = cells.columns.map("{0[0]} × {0[1]} × {0[1]}".format)
        text += f"\n**{model}, {task}**: milliseconds, times torchvision\n\n"
        text += f"{cells.rename_axis(index='').to_markdown()}\n"
    return text


def draw(times: pd.DataFrame, path: Path) -> None:
    """Draw the time of an image by batch size, for each network and image size."""
    drawn = times["row"].str.match("torchvision$|ours, (chan|comp)")
    times = times[drawn & times["task"].eq("inference")]
    times = times.assign(**{"ms per image": times["ms"] / times["batch_size"]})
    groups = times.groupby(["model", "image_size"])
    figure = Figure(figsize=(5 * len(groups), 6), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False).flat
    for axes, ((model, size), rows) in zip(panels, groups):
        lines = rows.pivot_table("ms per image", "batch_size", "row", "median", sort=False)
        title = f"{model}, {size} × {size}"
        lines.plot(ax=axes, style=".-", title=title, ylabel="ms per image").set_ylim(0)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1))  # below, clear of the lines
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


PRECISION = click.Choice(list(TOLERANCES))


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--model", multiple=True, type=click.Choice(sorted(MODELS)), default=MODELS)
@click.option("--precision", multiple=True, type=PRECISION, default=["float32", "bfloat16", "int8"])
@click.option("--batch-size", multiple=True, type=click.IntRange(1), default=[1, 8, 32])
@click.option("--image-size", multiple=True, type=click.IntRange(63), default=[224])
@click.option("--device", type=Device(), default="cuda" if torch.cuda.is_available() else "cpu")
@click.option("--seconds", type=click.IntRange(0), default=6, help="To time a column for.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for tables, times, picture.")
def main(device: Any, seconds: float, out: Path | None, **given: Any) -> None:
    """Time both networks at every precision, beside torchvision, ONNX Runtime and OpenVINO."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch._inductor.config.max_autotune_report_choices_stats = False
    torch._inductor.config.autotune_num_choices_displayed = 0
    reuse_memory()  # for all rows alike
    if out:
        out.mkdir(parents=True, exist_ok=True)

    frames = []
    for model, size in itertools.product(given["model"], given["image_size"]):
        torch.manual_seed(0)
        theirs = torchvision.models.get_model(model).eval().to(device)
        ours = MODELS[model].from_state_dict(theirs.state_dict()).eval().to(device)
        images = photographs(size).to(device)
        with tempfile.TemporaryDirectory() as folder:
            rows = implementations(theirs, ours, images, Path(folder))
            networks = build(rows, given["precision"], images)
        where = {"seconds": seconds, "model": model, "image_size": size}
        with torch.no_grad():
            for batch_size in given["batch_size"]:
                batch = images.repeat(batch_size, 1, 1, 1)[:batch_size]
                calls = {row: partial(network, batch) for row, network in networks.items()}
                frames.append(
                    time_in_turns(calls, **where, task="inference", batch_size=batch_size)
                )
        eager = filter(re.compile("(torchvision|ours)(, channels-last.*)?$").match, networks)
        steps = {row: training_step(networks[row], images[:16]) for row in eager}
        frames.append(time_in_turns(steps, **where, task="training step", batch_size=16))

    times = pd.concat(frames).assign(machine=machine())
    text = f"{times['machine'].iloc[0]}\n{markdown(times)}"
    click.echo(text, nl=False)
    if out:
        (out / "table.md").write_text(text, encoding="utf-8")
        times.to_json(out / "times.json", orient="records", indent=1)
        draw(times, out / "time.png")


if __name__ == "__main__":
    main()
