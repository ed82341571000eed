"""Time both networks at every precision, beside torchvision, ONNX Runtime and OpenVINO.

python -m examples.benchmark
python -m examples.benchmark --model resnet18 --precision int8 --out figures
"""

import copy
import itertools
import logging
import tempfile
import time
import warnings
from datetime import date
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Mapping

import click
import pandas as pd
import torch
import torch._inductor.config
import torchvision
from matplotlib import cbook
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.utils.benchmark import Timer
from torchvision.transforms import v2

from examples.images import open_image
from examples.memory import reuse_memory
from examples.options import Command, device
from examples.train import NORMALIZE
from examples.weights import MODELS

TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1, "int8": 0.3}  # of the largest logit
Network = Callable[[Tensor], Tensor]
Rows = dict[str, Callable[[], Network]]


def compiled(model: nn.Module) -> Network:
    """Return the network compiled, its weights frozen into the code, for inference alone."""
    torch._inductor.config.freezing = True
    model = model.to(memory_format=torch.channels_last)
    fast = torch.compile(model, mode="max-autotune", dynamic=False)
    return fast


def in_int8(model: nn.Module, images: Tensor) -> Network:
    """Return the network in int8, its ranges calibrated on the images, compiled and frozen."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(model, (images,), dynamic_shapes=(batch,))
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(program.module(), quantizer)
    prepared(images)
    quantized = convert_pt2e(prepared)
    torch._inductor.config.freezing = True
    fast = torch.compile(quantized, dynamic=False)
    return fast


def to_onnx(model: nn.Module, images: Tensor, file: Path) -> Path:
    """Write the network for the other engines, with any batch size; return the file."""
    settings: Any = {"dynamic_shapes": ({0: torch.export.Dim("batch")},), "external_data": False}
    torch.onnx.export(model, (images,), file, input_names=["images"], verbose=False, **settings)
    return file


def to_int8(file: Path, images: Tensor) -> Path:
    """Quantize an ONNX file, its ranges calibrated on the images; return the new file."""
    from onnxruntime import quantization

    batches = ({"images": image[None]} for image in images.numpy())
    reader = SimpleNamespace(get_next=lambda: next(batches, None))
    settings = {"activation_type": quantization.QuantType.QUInt8}  # twice as fast as signed
    quantized = file.with_suffix(".int8.onnx")
    quantization.quantize_static(file, quantized, reader, per_channel=True, **settings)
    return quantized


def in_onnx_runtime(file: Path) -> Network:
    """Return the network as ONNX Runtime runs it, with as many threads as PyTorch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options)
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def in_openvino(file: Path, precision: str = "f32") -> Network:
    """Return the network as OpenVINO runs it, with as many threads as PyTorch."""
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    settings["INFERENCE_PRECISION_HINT"] = precision
    network = openvino.Core().compile_model(file, "CPU", settings)
    return lambda images: torch.from_numpy(network(images.numpy())[0])


def implementations(theirs: nn.Module, ours: nn.Module, images: Tensor, folder: Path) -> Rows:
    """Return what builds each row, whose name ends in its precision where that is not float32."""
    ours_channels_last = copy.deepcopy(ours).to(memory_format=torch.channels_last)
    theirs_channels_last = copy.deepcopy(theirs).to(memory_format=torch.channels_last)
    bfloat16 = torch.autocast(images.device.type, torch.bfloat16)
    onnx = cache(lambda: to_onnx(fuse(ours), images, folder / "network.onnx"))
    int8 = cache(lambda: to_int8(onnx(), images))
    rows: Rows = {
        "torchvision": lambda: theirs,
        "torchvision, channels-last": lambda: theirs_channels_last,
        "ours": lambda: ours,
        "ours, channels-last": lambda: ours_channels_last,
        "ours, fused, channels-last": lambda: fuse(ours_channels_last),
        "ours, compiled": lambda: compiled(ours_channels_last),
        "torchvision, channels-last, bfloat16": lambda: bfloat16(theirs_channels_last),
        "ours, channels-last, bfloat16": lambda: bfloat16(ours_channels_last),
        "ours, compiled, bfloat16": lambda: bfloat16(compiled(ours_channels_last)),
    }
    if images.device.type == "cpu":
        rows |= {
            "ours, compiled, int8": lambda: in_int8(ours, images),
            "ONNX Runtime": lambda: in_onnx_runtime(onnx()),
            "ONNX Runtime, int8": lambda: in_onnx_runtime(int8()),
            "OpenVINO": lambda: in_openvino(onnx()),
            "OpenVINO, bfloat16": lambda: in_openvino(onnx(), "bf16"),
            "OpenVINO, int8": lambda: in_openvino(int8()),
        }
    return rows


@torch.no_grad()
def build(rows: Rows, precisions: tuple[str, ...], images: Tensor) -> dict[str, Network]:
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


@torch.no_grad()
def time_in_turns(calls: Mapping[str, Callable[[], Any]], seconds: float) -> pd.DataFrame:
    """Return the milliseconds of each call, round after round, for as many as take `seconds`.

    A machine that is busy for a while is then busy for all of them.
    """
    end = time.perf_counter() + seconds
    times: list[dict[str, Any]] = []
    while len(times) < 3 * len(calls) or time.perf_counter() < end:
        for row, call in calls.items():
            timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
            ms = 1e3 * timer.blocked_autorange(min_run_time=0.05).median
            times.append({"row": row, "ms": ms})
    return pd.DataFrame(times)


def report(times: pd.DataFrame) -> tuple[str, Figure]:
    """Return the medians in Markdown, and drawn as how many times as fast as torchvision."""
    text, tables = f"{times['machine'].iloc[0]}\n", times.groupby("model", sort=False)
    figure = Figure(figsize=(9, 5 * len(tables)), layout="constrained")
    for axes, (model, rows) in zip(figure.subplots(len(tables), squeeze=False).flat, tables):
        ms = rows.pivot_table("ms", "row", ["batch_size", "image_size"], "median", sort=False)
        ms.columns = ms.columns.map("{0[0]} × {0[1]} × {0[1]}".format)
        ratios = ms.loc["torchvision"] / ms
        cells = (ms.map("{:.1f}, ".format) + ratios.map("{:.2f}".format)).rename_axis(index="")
        text += f"\n**{model}**: milliseconds, times torchvision\n\n{cells.to_markdown()}\n"
        ratios.plot.barh(ax=axes, title=f"{model}: times torchvision", ylabel="").invert_yaxis()
    return text, figure


def machine() -> str:
    """Return what a figure depends on: processor, threads, versions, date."""
    cpu, threads = torch.cpu.get_capabilities(), torch.get_num_threads()
    processor = cpu.get("cpu_name") or cpu["architecture"]
    capability = torch.backends.cpu.get_cpu_capability() + (", AMX" if cpu.get("amx_bf16") else "")
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, {date.today()}"
    return f"{gpu}{processor} ({capability}), {threads} threads, {versions}"


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--model", multiple=True, type=click.Choice(sorted(MODELS)), default=MODELS)
@click.option("--precision", multiple=True, type=click.Choice(TOLERANCES), default=TOLERANCES)
@click.option("--batch-size", multiple=True, type=click.IntRange(1), default=[1, 8, 32])
@click.option("--image-size", multiple=True, type=click.IntRange(63), default=[224])
@click.option("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
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
    photograph = open_image(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
    for model, size in itertools.product(given["model"], given["image_size"]):
        torch.manual_seed(0)
        theirs = torchvision.models.get_model(model).eval().to(device)
        ours = MODELS[model].from_state_dict(theirs.state_dict()).eval().to(device)
        crop = v2.Compose([v2.RandomResizedCrop(size), v2.PILToTensor()])
        crops = [crop(photograph) for _ in range(max(16, *given["batch_size"]))]
        images = NORMALIZE(torch.stack(crops).float()).to(device)  # (N, 3, size, size)
        with tempfile.TemporaryDirectory() as folder:
            rows = implementations(theirs, ours, images, Path(folder))
            networks = build(rows, given["precision"], images[: given["batch_size"][0]])
        for batch_size in given["batch_size"]:
            click.echo(f"timing {model}, {batch_size} x {size} x {size}", err=True)
            calls = {row: partial(run, images[:batch_size]) for row, run in networks.items()}
            times = time_in_turns(calls, seconds)
            frames.append(times.assign(model=model, batch_size=batch_size, image_size=size))

    times = pd.concat(frames).assign(machine=machine())
    text, figure = report(times)
    click.echo(text, nl=False)
    if out:
        (out / "table.md").write_text(text, encoding="utf-8")
        times.to_json(out / "times.json", orient="records", indent=1)
        figure.savefig(out / "time.png")


if __name__ == "__main__":
    main()
