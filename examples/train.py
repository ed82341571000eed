"""Train, fine-tune or evaluate AlexNet or ResNet-18.

python -m examples.train cifar10 --image-size 64 --epochs 20
python -m examples.train DATA --pretrained --lr 0.01 --epochs 5
python -m examples.train DATA --weights run/model.pt --evaluate
torchrun --nproc-per-node 4 -m examples.train DATA
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
import tyro
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import InvalidCxxCompiler
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset
from tqdm import tqdm

from examples.data import Images, collate, download_cifar10, load_images
from examples.device import find_device
from examples.images import ImageError, normalize
from examples.memory import reuse_memory
from examples.weights import (
    MODELS,
    Classifier,
    WeightsError,
    load_file,
    load_official,
    read_checkpoint,
)

LEARNING_RATES = {"alexnet": 0.02, "resnet18": 0.1}  # for batches of 256 images
WEIGHT_DECAYS = {"alexnet": 5e-4, "resnet18": 1e-4}  # from the two papers
HEADS = {"alexnet": "fc3", "resnet18": "fc"}

# torchrun starts several processes and sets these. A run without it is one process.
RANK = int(os.environ.get("RANK", 0))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))


@dataclass(frozen=True)
class Config:
    """Train, fine-tune or evaluate AlexNet or ResNet-18."""

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """Folder that holds train/<class>/ and val/<class>/, or cifar10, which is downloaded."""
    model: Literal["alexnet", "resnet18"] | None = None
    """Network. Default: that of --weights, else resnet18."""
    pretrained: bool = False
    """Start from the official ImageNet weights."""
    weights: str | None = None
    """Start from the weights in this file."""
    evaluate: bool = False
    """Print the accuracy of the weights on the validation images and stop."""
    resume: bool = False
    """Continue the run in --out after its last finished epoch."""
    out: str = "run"
    """Folder for the results."""

    epochs: int = 90
    """Passes over the training images."""
    batch_size: int = 64
    """Images in a training step, over all processes."""
    lr: float | None = None
    """Peak learning rate for batches of 256 images; it is scaled with --batch-size.
    Default: 0.02 for AlexNet, 0.1 for ResNet-18."""
    weight_decay: float | None = None
    """Weight decay. Default: that of the paper, 0.0005 for AlexNet, 0.0001 for ResNet-18."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes."""
    image_size: int | None = None
    """Height and width of the images in pixels. Default: that of --weights, else 224."""

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the forward pass. The weights stay in float32."""
    compile: bool = False
    """Compile the network with torch.compile."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Any device of PyTorch, such as cpu, cuda:1 or mps."""
    workers: int = 2
    """Processes that read images, for each process that trains."""
    seed: int = 0
    """Seed of the initial weights, the order of the images, the crops and the dropout."""


def train(config: Config) -> None:
    """Train or fine-tune a network; leave its weights and curves in --out."""
    device = start_processes(config)
    checkpoint = load_checkpoint(config)
    if checkpoint:
        start = None
        config = complete_as_saved(config, checkpoint["config"])
    else:
        start = load_start(config)
        config = complete(config, start)
    check_image_size(config)

    images = find_images(config)
    if checkpoint and checkpoint["images"] != images.description:
        was = checkpoint["images"]
        sys.exit(f"error: the run in {config.out} has {was}, not {images.description}")
    sampler: DistributedSampler[Any] = DistributedSampler(
        images.train, WORLD_SIZE, RANK, seed=config.seed, drop_last=True
    )
    train_loader = training_loader(config, images.train, sampler, device)
    val_loader = validation_loader(config, images.val, device)

    torch.manual_seed(config.seed)
    network = build_network(config, start, images.classes)
    network.to(device).to(memory_format=torch.channels_last)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=config.lr,  # set anew before each step
        momentum=0.9,
        weight_decay=config.weight_decay,
        # With a scaler, the fused step on a CPU leaves weights that are not finite (PyTorch 2.14).
        fused=device.type == "cuda" or (device.type == "cpu" and not scaler.is_enabled()),
    )
    rows: list[dict[str, float]] = []
    if checkpoint:
        network.load_state_dict(checkpoint["network"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        scaler.load_state_dict(checkpoint["scaler"])
        rows = checkpoint["rows"]

    if config.compile:
        network.compile()  # in place, so that the weights keep their names
    model = network
    if WORLD_SIZE > 1:
        model = DistributedDataParallel(network, broadcast_buffers=False)

    make_folder(config.out)
    print_once(describe_run(config, network, images, device, len(train_loader)))
    for epoch in range(len(rows) + 1, config.epochs + 1):
        sampler.set_epoch(epoch)
        torch.manual_seed(hash((config.seed, epoch, RANK)))  # a resumed run draws the same crops

        row = train_one_epoch(config, model, optimizer, scaler, train_loader, device, epoch)
        if WORLD_SIZE > 1:
            average_statistics(network)  # batch norm in each process has seen other images
        row |= evaluate(config, network, val_loader, device)
        if not math.isfinite(row["val_loss"]):
            sys.exit(f"error: the loss is not finite after epoch {epoch}: try a lower --lr")

        rows.append({"epoch": epoch, **row})
        if RANK == 0:
            save_results(config, network, images.classes, rows)
            checkpoint = {
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(),
                "rows": rows,
                "config": asdict(config),
                "processes": WORLD_SIZE,
                "images": images.description,
                "classes": images.classes,
                "image_size": config.image_size,
            }
            write_whole(Path(config.out, "last.ckpt"), partial(torch.save, checkpoint))
        print_once(describe_epoch(config, rows[-1]))


def train_one_epoch(
    config: Config,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loader: DataLoader[Any],
    device: torch.device,
    epoch: int,
) -> dict[str, float]:
    """Take one step for each batch; return the means of the epoch and its speed."""
    model.train()
    dtype = getattr(torch, config.precision)
    autocast = partial(torch.autocast, device.type, dtype, enabled=dtype != torch.float32)
    peak = config.lr * config.batch_size / 256
    loss_sum, correct = torch.zeros(2, device=device)
    seen = 0
    start = time.perf_counter()

    with progress_bar(loader, f"epoch {epoch}/{config.epochs}") as bar:
        for step, (images, labels) in enumerate(batches_on(device, bar), start=1):
            progress = (epoch - 1 + (step - 0.5) / len(loader)) / config.epochs
            lr = learning_rate(progress, peak)
            for group in optimizer.param_groups:
                group["lr"] = lr

            with autocast():
                logits = model(images)
                loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

            loss_sum += loss.detach() * len(labels)
            correct += (logits.argmax(1) == labels).sum()
            seen += len(labels)
            if step % 50 == 0 or step == len(loader):  # rarely, because it waits for the GPU
                if not loss_sum.isfinite():
                    sys.exit(f"error: the loss is not finite by step {step} of epoch {epoch}")
                bar.set_postfix(loss=f"{loss.item():.3f}", lr=f"{lr:.2g}")

    seconds = time.perf_counter() - start
    return {
        "lr": lr,
        "train_loss": mean(loss_sum, seen),
        "train_top1": 100 * mean(correct, seen),
        "images/s": WORLD_SIZE * seen / seconds,
        "seconds": seconds,
    }


@torch.no_grad()
def evaluate(
    config: Config, network: nn.Module, loader: DataLoader[Any], device: torch.device
) -> dict[str, float]:
    """Return the mean loss, and top-1 and top-5 accuracy in percent; each image counts once."""
    network.eval()
    dtype = getattr(torch, config.precision)
    loss_sum, top1, top5 = torch.zeros(3, device=device)
    seen = 0

    with progress_bar(loader, "validation") as bar:
        for images, labels in batches_on(device, bar):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = network(images).float()  # (N, num_classes)
            hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]  # (N, 5)
            loss_sum += F.cross_entropy(logits, labels, reduction="sum")
            top1 += hits[:, 0].sum()
            top5 += hits.sum()
            seen += len(labels)

    return {
        "val_loss": mean(loss_sum, seen),
        "val_top1": 100 * mean(top1, seen),
        "val_top5": 100 * mean(top5, seen),
    }


def evaluate_weights(config: Config) -> None:
    """Print the accuracy of the weights on the validation images."""
    device = start_processes(config)
    start = load_start(config)
    config = complete(config, start)
    check_image_size(config)
    images = find_images(config)
    network = build_network(config, start, images.classes)
    network.to(device).to(memory_format=torch.channels_last)

    result = evaluate(config, network, validation_loader(config, images.val, device), device)
    print_once(
        f"top-1 {result['val_top1']:.3f}%, top-5 {result['val_top5']:.3f}%, "
        f"loss {result['val_loss']:.3f}: {len(images.val):,} images"
    )


def learning_rate(progress: float, peak: float) -> float:
    """Rise over the first 5 % of a run, then fall along a cosine; `progress` goes from 0 to 1."""
    if progress < 0.05:
        return peak * progress / 0.05
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - 0.05) / 0.95))


def batches_on(device: torch.device, batches: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield normalized images (N, 3, H, W) and labels (N,) on the device."""
    for batch in batches:
        if isinstance(batch, ImageError):
            sys.exit(f"error: {batch}")
        images, labels = batch
        images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
        yield normalize(images), labels.to(device, non_blocking=True)


def progress_bar(loader: DataLoader[Any], title: str) -> tqdm:
    """Return the batches with a bar that counts images, on a terminal and in one process only."""
    return tqdm(
        loader,
        title,
        unit=" images",
        unit_scale=loader.batch_size * WORLD_SIZE,
        leave=False,
        disable=True if RANK > 0 else None,  # None: on a terminal only
    )


def mean(total: Tensor, count: int) -> float:
    """Return total / count, each summed over all processes."""
    sums = torch.stack([total.float(), torch.tensor(float(count), device=total.device)])
    if WORLD_SIZE > 1:
        dist.all_reduce(sums)
    return (sums[0] / sums[1]).item()


def average_statistics(network: nn.Module) -> None:
    """Give batch norm in all processes the mean of their statistics."""
    for buffer in network.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= WORLD_SIZE


def training_loader(
    config: Config, images: Dataset[Any], sampler: DistributedSampler[Any], device: torch.device
) -> DataLoader[Any]:
    """Return the training images in full batches, in the order of the sampler."""
    if len(images) < config.batch_size:
        sys.exit(
            f"error: {len(images)} training images do not fill a batch of "
            f"{config.batch_size}: choose a smaller --batch-size"
        )
    return DataLoader(
        images,
        batch_size=config.batch_size // WORLD_SIZE,
        sampler=sampler,
        num_workers=config.workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        drop_last=True,
    )


def validation_loader(
    config: Config, images: Dataset[Any], device: torch.device
) -> DataLoader[Any]:
    """Return the validation images in batches, each image in one process only."""
    share = range(RANK, len(images), WORLD_SIZE)
    return DataLoader(
        Subset(images, share),
        batch_size=config.batch_size // WORLD_SIZE,
        num_workers=config.workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
    )


def require(condition: object, message: str) -> None:
    """Stop with one line on standard error unless the condition holds."""
    if not condition:
        sys.exit(f"error: {message}")


def check_options(config: Config) -> None:
    """Stop at options that make no sense."""
    require(config.epochs >= 1, "--epochs must be at least 1")
    require(config.batch_size >= 1, "--batch-size must be at least 1")
    require(
        config.batch_size % WORLD_SIZE == 0,
        f"--batch-size {config.batch_size} must be divisible by {WORLD_SIZE} processes",
    )
    require(config.workers >= 0, "--workers must not be negative")
    require(0 <= config.label_smoothing < 1, "--label-smoothing must be at least 0 and below 1")
    if config.lr is not None:
        require(0 < config.lr < math.inf, "--lr must be above 0 and finite")
    if config.weight_decay is not None:
        require(0 <= config.weight_decay < math.inf, "--weight-decay must not be negative")
    if config.image_size is not None:
        require(config.image_size >= 1, "--image-size must be at least 1")
    require(
        not (config.pretrained and config.weights),
        "--pretrained and --weights exclude each other",
    )
    if config.evaluate:
        start = config.pretrained or config.weights
        require(start, "--evaluate needs --weights or --pretrained")
        require(not config.resume, "--evaluate and --resume exclude each other")


def check_image_size(config: Config) -> None:
    """Stop at images that are too small for the network."""
    size = config.image_size
    if config.model == "alexnet":
        require(size >= 63, f"--image-size {size} is too small: AlexNet needs at least 63")
    elif not config.evaluate:  # the last layers see one pixel of an image of 32 x 32
        require(
            size > 32 or config.batch_size > WORLD_SIZE,
            "batch norm needs more than one value: raise --batch-size, or --image-size above 32",
        )


def complete(config: Config, start: Classifier | None) -> Config:
    """Return the configuration with the defaults that depend on the weights and the network."""
    model = start.name if start else config.model or "resnet18"
    image_size = start.image_size if start else 224
    return replace(
        config,
        model=model,
        image_size=image_size if config.image_size is None else config.image_size,
        lr=LEARNING_RATES[model] if config.lr is None else config.lr,
        weight_decay=WEIGHT_DECAYS[model] if config.weight_decay is None else config.weight_decay,
    )


# What may change when a run is resumed: where things are, and how fast they are read.
FREE_TO_CHANGE = ("data", "weights", "out", "resume", "evaluate", "device", "workers")


def complete_as_saved(config: Config, saved: dict[str, Any]) -> Config:
    """Return the configuration of a run that is resumed; stop where an option has changed."""
    given = {name: value for name, value in asdict(config).items() if value is not None}
    for name, value in given.items():
        if name not in FREE_TO_CHANGE and value != saved[name]:
            option = name.replace("_", "-")
            sys.exit(f"error: the run in {config.out} has --{option} {saved[name]}, not {value}")
    if config.weights and not saved["weights"]:
        sys.exit(f"error: the run in {config.out} did not start from --weights")
    return Config(**{**saved, **given})


def start_processes(config: Config) -> torch.device:
    """Connect the processes that torchrun started; return the device of this one."""
    device = find_device(config.device)
    if WORLD_SIZE > 1:
        if device.type == "cuda":
            device = torch.device("cuda", LOCAL_RANK)
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def find_images(config: Config) -> Images:
    """Return the images of the run; download them first where they are CIFAR-10."""
    if config.data == "cifar10":
        if LOCAL_RANK == 0:
            download_cifar10()
        if WORLD_SIZE > 1:
            dist.barrier()
    return load_images(config.data, config.image_size, val_only=config.evaluate)


def load_start(config: Config) -> Classifier | None:
    """Return the weights to start from, if any."""
    if config.weights:
        return load_file(config.weights, config.model)
    if config.pretrained:
        return load_official(config.model or "resnet18")
    return None


def build_network(config: Config, start: Classifier | None, classes: list[str]) -> nn.Module:
    """Return the network, with a new head where the weights are for other classes."""
    network = MODELS[config.model](num_classes=len(classes))
    if start is None:
        return network

    same_number = len(start.classes) == len(classes)
    if same_number and (start.classes == classes or not start.classes_known):
        return start.network
    if config.evaluate:
        few = ", ".join(start.classes[:3])
        sys.exit(f"error: the weights are for {len(start.classes)} other classes: {few}, …")
    head = HEADS[config.model]
    setattr(start.network, head, getattr(network, head))
    return start.network


def load_checkpoint(config: Config) -> dict[str, Any] | None:
    """Return what the run in --out left to resume from."""
    path = Path(config.out, "last.ckpt")
    if not path.exists():
        return None  # a run that was killed in its first epoch left none: it starts again
    if not config.resume:
        sys.exit(f"error: {config.out} holds a run: add --resume, or choose another --out")
    checkpoint: dict[str, Any] = read_checkpoint(path)
    if "config" not in checkpoint:
        sys.exit(f"error: {path} is not a checkpoint of examples.train")
    if checkpoint["processes"] != WORLD_SIZE:
        number = checkpoint["processes"]
        sys.exit(f"error: the run in {config.out} has {number} processes, not {WORLD_SIZE}")
    return checkpoint


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under another name, then rename it, so that it is never seen half written."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_results(
    config: Config, network: nn.Module, classes: list[str], rows: list[dict[str, float]]
) -> None:
    """Write the table and the curves of all epochs, and the weights if the last is the best."""
    out, table = Path(config.out), pd.DataFrame(rows)
    write_whole(out / "metrics.csv", partial(table.to_csv, index=False))
    title = f"{config.model} on {len(classes)} classes, {config.image_size} × {config.image_size}"
    write_whole(out / "curves.png", partial(draw_curves, table, title))

    if table["val_top1"].idxmax() == len(rows) - 1:  # ties keep the earlier epoch
        weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
        best = {"state_dict": weights, "classes": classes, "image_size": config.image_size}
        write_whole(out / "model.pt", partial(torch.save, best))


def draw_curves(table: pd.DataFrame, title: str, path: Path) -> None:
    """Draw the loss and the top-1 accuracy of each epoch."""
    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    for axes, metric, label in (
        (left, "loss", "cross-entropy loss"),
        (right, "top1", "top-1 accuracy (%)"),
    ):
        axes.plot(table["epoch"], table[f"train_{metric}"], ".-", label="training")
        axes.plot(table["epoch"], table[f"val_{metric}"], ".-", label="validation")
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, format="png")


def make_folder(out: str) -> None:
    """Make the folder for the results."""
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"error: cannot make the folder {out}: {error.strerror}")


def print_once(line: str) -> None:
    """Print a line in the first process."""
    if RANK == 0:
        print(line, flush=True)


def describe_run(
    config: Config, network: nn.Module, images: Images, device: torch.device, steps: int
) -> str:
    """Return what is about to be trained, on what and where."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    ignored = f" ({images.ignored:,} other files ignored)" if images.ignored else ""
    processes = f" in {WORLD_SIZE} processes" if WORLD_SIZE > 1 else ""
    return (
        f"{config.model}, {parameters:,} parameters, on {device}{processes}: "
        f"{len(images.train):,} training and {len(images.val):,} validation images of "
        f"{len(images.classes):,} classes{ignored}, {steps:,} steps an epoch"
    )


def describe_epoch(config: Config, row: dict[str, float]) -> str:
    """Return the results of an epoch in one line."""
    return (
        f"epoch {row['epoch']}/{config.epochs}: "
        f"training loss {row['train_loss']:.3f}, top-1 {row['train_top1']:.2f}%; "
        f"validation loss {row['val_loss']:.3f}, top-1 {row['val_top1']:.2f}%, "
        f"top-5 {row['val_top5']:.2f}%; {row['images/s']:.0f} images/s"
    )


def main(arguments: list[str] | None = None) -> None:
    config = tyro.cli(
        Config,
        prog="python -m examples.train",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    check_options(config)
    reuse_memory()
    try:
        if config.evaluate:
            evaluate_weights(config)
        else:
            train(config)
    except (ImageError, WeightsError) as error:
        sys.exit(f"error: {error}")
    except BackendCompilerFailed as error:
        if isinstance(error.inner_exception, InvalidCxxCompiler):
            sys.exit("error: --compile needs a C++ compiler, such as g++")
        raise
    except KeyboardInterrupt:
        sys.exit("interrupted: --resume continues after the last finished epoch")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
