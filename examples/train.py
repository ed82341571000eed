"""Train, fine-tune or evaluate AlexNet or ResNet-18.

python -m examples.train cifar10 --image-size 64 --epochs 20
python -m examples.train DATA --pretrained --lr 0.01 --epochs 5
python -m examples.train DATA --weights run/model.pt --evaluate
torchrun --nproc-per-node 4 -m examples.train DATA
"""

import inspect
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
from tyro.conf import Positional

from examples.data import Images, collate, download_cifar10, load_images
from examples.device import find_device
from examples.images import ImageError, normalize
from examples.memory import reuse_memory
from examples.options import Model, hint
from examples.weights import (
    MODELS,
    Classifier,
    WeightsError,
    load_file,
    load_official,
    read_checkpoint,
)

LEARNING_RATES = {"alexnet": 0.02, "resnet18": 0.1}  # peaks, for a batch of 256 images
WEIGHT_DECAYS = {"alexnet": 5e-4, "resnet18": 1e-4}  # from the two papers
HEAD_NAMES = {"alexnet": "fc3", "resnet18": "fc"}

# torchrun sets these variables in each process that it starts. Without it there is one process.
RANK = int(os.environ.get("RANK", 0))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))


@dataclass(frozen=True)
class Config:
    """Train, fine-tune or evaluate AlexNet or ResNet-18."""

    data: Annotated[Positional[str], hint("DATA", "required")]
    """Folder with train/<class>/ and val/<class>/, or cifar10, which is downloaded to data/."""
    model: Annotated[Model | None, hint("{alexnet,resnet18}", "default: resnet18")] = None
    """Network to train or evaluate. With --weights, the network of that file."""
    pretrained: bool = False
    """Start from the official ImageNet weights."""
    weights: Annotated[str | None, hint("FILE", "optional")] = None
    """Start from the weights in this file."""
    evaluate: bool = False
    """Print the accuracy and loss on DATA/val, then exit."""
    resume: bool = False
    """Continue the run in --out after its last finished epoch."""
    out: str = "run"
    """Folder for the results."""

    epochs: int = 90
    """Number of passes over the training images."""
    batch_size: int = 64
    """Images per training step, in total over all processes."""
    lr: Annotated[float | None, hint("FLOAT", "default: 0.02 for AlexNet, 0.1 for ResNet-18")] = (
        None
    )
    """Peak learning rate for a batch of 256 images. The rate used is lr × batch_size / 256."""
    weight_decay: Annotated[float | None, hint("FLOAT", "default: as in the paper")] = None
    """Weight decay. In the papers, it is 0.0005 for AlexNet and 0.0001 for ResNet-18."""
    label_smoothing: float = 0.0
    """Fraction of each label that is spread evenly over all classes."""
    image_size: Annotated[int | None, hint("INT", "default: as saved in --weights, or 224")] = None
    """Height and width of the images in pixels."""

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the forward pass, which uses autocast. The weights stay in float32."""
    compile: bool = False
    """Compile the network with torch.compile."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """PyTorch device, such as cpu, cuda:1 or mps."""
    workers: int = 2
    """DataLoader workers per training process."""
    seed: int = 0
    """Random seed for the initial weights, the order of the images, the crops and dropout."""


def train(config: Config) -> None:
    """Train or fine-tune a network. Write its weights, metrics and curves to --out."""
    device = join_processes(config)
    checkpoint = load_checkpoint(config)
    if checkpoint:
        initial = None
        config = restore_options(config, checkpoint["config"])
    else:
        initial = load_initial(config)
        config = fill_in_defaults(config, initial)
    check_image_size(config)

    images = prepare_images(config)
    if checkpoint and checkpoint["images"] != images.description:
        before = checkpoint["images"]
        sys.exit(f"error: the run in {config.out} used {before}, not {images.description}")

    sampler: DistributedSampler[Any] = DistributedSampler(
        images.train, WORLD_SIZE, RANK, seed=config.seed, drop_last=True
    )
    train_loader = training_loader(config, images.train, sampler, device)
    val_loader = validation_loader(config, images.val, device)

    torch.manual_seed(config.seed)
    network = build_network(config, initial, images.classes)
    network.to(device).to(memory_format=torch.channels_last)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=config.lr,  # replaced before each step
        momentum=0.9,
        weight_decay=config.weight_decay,
        # On a CPU, a fused step with a scaler makes the weights infinite or NaN (PyTorch 2.14).
        fused=device.type == "cuda" or (device.type == "cpu" and not scaler.is_enabled()),
    )
    rows: list[dict[str, float]] = []  # of metrics.csv, one for each finished epoch
    if checkpoint:
        network.load_state_dict(checkpoint["network"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        scaler.load_state_dict(checkpoint["scaler"])
        rows = checkpoint["rows"]

    if config.compile:
        network.compile()  # in place, so the weights keep their names
    model = network
    if WORLD_SIZE > 1:
        model = average_gradients(network)

    create_folder(config.out)
    print_once(describe_run(config, network, images, device, len(train_loader)))
    for epoch in range(len(rows) + 1, config.epochs + 1):
        sampler.set_epoch(epoch)
        torch.manual_seed(hash((config.seed, epoch, RANK)))  # so a resumed run draws the same crops

        row = train_one_epoch(config, model, optimizer, scaler, train_loader, device, epoch)
        if WORLD_SIZE > 1:
            average_batch_norm(network)  # each process has seen different images
        row |= evaluate(config, network, val_loader, device)
        if not math.isfinite(row["val_loss"]):
            sys.exit(f"error: the validation loss of epoch {epoch} is not finite: try a lower --lr")
        rows.append({"epoch": epoch, **row})

        if RANK == 0:
            save_results(config, network, images.classes, rows)
            save_checkpoint(config, network, optimizer, scaler, images, rows)
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
    """Take one step per batch.

    Returns:
        The last learning rate, the mean training loss, the training accuracy in percent, the
        images per second over all processes, and the seconds that the epoch took.
    """
    model.train()
    dtype = getattr(torch, config.precision)
    autocast = partial(torch.autocast, device.type, dtype, enabled=dtype != torch.float32)
    peak = config.lr * config.batch_size / 256
    loss_sum, correct = torch.zeros(2, device=device)
    seen = 0
    start = time.perf_counter()

    with progress_bar(loader, f"epoch {epoch}/{config.epochs}") as bar:
        for step, (images, labels) in enumerate(normalized_batches(bar, device), start=1):
            # Taken at the middle of the step, so that no step has a learning rate of zero.
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
            if step % 50 == 0 or step == len(loader):  # seldom: reading the loss waits for the GPU
                if not loss_sum.isfinite():
                    sys.exit(
                        f"error: the training loss is not finite by step {step} of epoch {epoch}: "
                        "try a lower --lr"
                    )
                bar.set_postfix(loss=f"{loss.item():.3f}", lr=f"{lr:.2g}")

    seconds = time.perf_counter() - start
    return {
        "lr": lr,
        "train_loss": mean_over_processes(loss_sum, seen),
        "train_top1": 100 * mean_over_processes(correct, seen),
        "images/s": WORLD_SIZE * seen / seconds,
        "seconds": seconds,
    }


@torch.no_grad()
def evaluate(
    config: Config, network: nn.Module, loader: DataLoader[Any], device: torch.device
) -> dict[str, float]:
    """Return the mean loss, and the top-1 and top-5 accuracy in percent.

    With several processes, the results are over the images of all of them.
    """
    network.eval()
    dtype = getattr(torch, config.precision)
    loss_sum, top1, top5 = torch.zeros(3, device=device)
    seen = 0

    with progress_bar(loader, "validation") as bar:
        for images, labels in normalized_batches(bar, device):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = network(images).float()  # (N, num_classes)
            predictions = logits.topk(min(5, logits.shape[1])).indices  # (N, 5)
            hits = predictions == labels[:, None]
            loss_sum += F.cross_entropy(logits, labels, reduction="sum")
            top1 += hits[:, 0].sum()
            top5 += hits.sum()
            seen += len(labels)

    return {
        "val_loss": mean_over_processes(loss_sum, seen),
        "val_top1": 100 * mean_over_processes(top1, seen),
        "val_top5": 100 * mean_over_processes(top5, seen),
    }


def evaluate_weights(config: Config) -> None:
    """Print the accuracy and loss of the weights on the validation images."""
    device = join_processes(config)
    initial = load_initial(config)
    config = fill_in_defaults(config, initial)
    check_image_size(config)

    images = prepare_images(config)
    network = build_network(config, initial, images.classes)
    network.to(device).to(memory_format=torch.channels_last)

    result = evaluate(config, network, validation_loader(config, images.val, device), device)
    print_once(
        f"top-1 {result['val_top1']:.3f}%, top-5 {result['val_top5']:.3f}%, "
        f"loss {result['val_loss']:.3f}: {len(images.val):,} images"
    )


def learning_rate(progress: float, peak: float) -> float:
    """Linear warmup over the first 5 % of the run, then cosine decay to zero.

    Args:
        progress: the finished fraction of the run, from 0 to 1.
        peak: the learning rate at the end of the warmup.
    """
    if progress < 0.05:
        return peak * progress / 0.05
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - 0.05) / 0.95))


def normalized_batches(
    batches: Iterable[Any], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield normalized images (N, 3, H, W) and labels (N,) on the device.

    If a batch is the `ImageError` of a damaged image, exit with its message.
    """
    for batch in batches:
        if isinstance(batch, ImageError):
            sys.exit(f"error: {batch}")
        images, labels = batch
        images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
        yield normalize(images), labels.to(device, non_blocking=True)


def progress_bar(loader: DataLoader[Any], title: str) -> tqdm:
    """Return the batches with a progress bar, which the first process shows on a terminal."""
    return tqdm(
        loader,
        title,
        unit=" images",
        unit_scale=loader.batch_size * WORLD_SIZE,
        leave=False,
        disable=True if RANK > 0 else None,  # None: disabled unless on a terminal
    )


def mean_over_processes(total: Tensor, count: int) -> float:
    """Return total / count, where both are summed over all processes."""
    sums = torch.stack([total.float(), torch.tensor(float(count), device=total.device)])
    if WORLD_SIZE > 1:
        dist.all_reduce(sums)
    return (sums[0] / sums[1]).item()


def average_gradients(network: nn.Module) -> nn.Module:
    """Wrap the network, so that its gradients are averaged over all processes.

    Each process keeps its own running statistics of batch norm. By default, those of the first
    process would replace the others before each step.
    """
    arguments = inspect.signature(DistributedDataParallel).parameters
    if "forward_sync_buffers" in arguments:  # the name in newer versions of PyTorch
        return DistributedDataParallel(network, forward_sync_buffers=False)
    return DistributedDataParallel(network, broadcast_buffers=False)


def average_batch_norm(network: nn.Module) -> None:
    """Replace the running statistics of batch norm by their mean over all processes."""
    for buffer in network.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= WORLD_SIZE


def training_loader(
    config: Config, images: Dataset[Any], sampler: DistributedSampler[Any], device: torch.device
) -> DataLoader[Any]:
    """Return a loader of full batches in the order of the sampler."""
    if len(images) < config.batch_size:
        sys.exit(
            f"error: {len(images)} training images do not fill a batch of {config.batch_size}: "
            "choose a smaller --batch-size"
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
    """Return a loader of this process's share of the images. Each image is in one share only."""
    indices = range(RANK, len(images), WORLD_SIZE)
    return DataLoader(
        Subset(images, indices),
        batch_size=config.batch_size // WORLD_SIZE,
        num_workers=config.workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
    )


def require(condition: object, message: str) -> None:
    """Exit with a one-line error message unless the condition is true."""
    if not condition:
        sys.exit(f"error: {message}")


def check_options(config: Config) -> None:
    """Exit with a one-line error message if an option is invalid."""
    require(config.epochs >= 1, "--epochs must be at least 1")
    require(config.batch_size >= 1, "--batch-size must be at least 1")
    require(
        config.batch_size % WORLD_SIZE == 0,
        f"--batch-size {config.batch_size} must be divisible by the {WORLD_SIZE} processes",
    )
    require(config.workers >= 0, "--workers must not be negative")
    require(0 <= config.label_smoothing < 1, "--label-smoothing must be at least 0 and less than 1")
    if config.lr is not None:
        require(0 < config.lr < math.inf, "--lr must be positive and finite")
    if config.weight_decay is not None:
        require(
            0 <= config.weight_decay < math.inf, "--weight-decay must be finite and not negative"
        )
    if config.image_size is not None:
        require(config.image_size >= 1, "--image-size must be at least 1")

    require(
        not (config.pretrained and config.weights),
        "--pretrained and --weights cannot be used together",
    )
    if config.evaluate:
        require(config.pretrained or config.weights, "--evaluate needs --weights or --pretrained")
        require(not config.resume, "--evaluate and --resume cannot be used together")


def check_image_size(config: Config) -> None:
    """Exit with a one-line error message if the images are too small for the network."""
    size = config.image_size
    if config.model == "alexnet":
        require(size >= 63, f"--image-size {size} is too small: AlexNet needs at least 63")
    elif not config.evaluate:
        # Up to 32 x 32 pixels, the last layers see one pixel of each image.
        require(
            size > 32 or config.batch_size > WORLD_SIZE,
            "batch norm needs more than one value per channel: raise --batch-size, or raise "
            "--image-size above 32",
        )


def fill_in_defaults(config: Config, initial: Classifier | None) -> Config:
    """Fill in the defaults that depend on the initial weights or on the network."""
    model = initial.name if initial else config.model or "resnet18"
    image_size = initial.image_size if initial else 224
    return replace(
        config,
        model=model,
        image_size=image_size if config.image_size is None else config.image_size,
        lr=LEARNING_RATES[model] if config.lr is None else config.lr,
        weight_decay=WEIGHT_DECAYS[model] if config.weight_decay is None else config.weight_decay,
    )


# Options that may change when a run is resumed, because they do not affect the result.
MAY_CHANGE_ON_RESUME = ("data", "weights", "out", "resume", "evaluate", "device", "workers")


def restore_options(config: Config, saved: dict[str, Any]) -> Config:
    """Combine the options that a run was started with and those that are given now.

    Exit with an error message if an option that affects the result has changed.
    """
    given = {name: value for name, value in asdict(config).items() if value is not None}
    for name, value in given.items():
        if name not in MAY_CHANGE_ON_RESUME and value != saved[name]:
            option = name.replace("_", "-")
            sys.exit(f"error: the run in {config.out} used --{option} {saved[name]}, not {value}")
    if config.weights and not saved["weights"]:
        sys.exit(f"error: the run in {config.out} did not start from --weights")
    return Config(**{**saved, **given})


def join_processes(config: Config) -> torch.device:
    """Connect this process to the others that torchrun started, if any. Return its device."""
    device = find_device(config.device)
    if WORLD_SIZE > 1:
        if device.type == "cuda":
            device = torch.device("cuda", LOCAL_RANK)
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def prepare_images(config: Config) -> Images:
    """Return the images of the run. Download CIFAR-10 if the run uses it."""
    if config.data == "cifar10":
        if LOCAL_RANK == 0:
            download_cifar10()
        if WORLD_SIZE > 1:
            dist.barrier()
    return load_images(config.data, config.image_size, val_only=config.evaluate)


def load_initial(config: Config) -> Classifier | None:
    """Return the network of --weights or --pretrained, or None for random weights."""
    if config.weights:
        return load_file(config.weights, config.model)
    if config.pretrained:
        return load_official(config.model or "resnet18")
    return None


def build_network(config: Config, initial: Classifier | None, classes: list[str]) -> nn.Module:
    """Return the network to train or evaluate.

    If the initial weights are for other classes, the network gets a new head with random weights.
    With --evaluate, exit with an error message instead.
    """
    network = MODELS[config.model](num_classes=len(classes))
    if initial is None:
        return network

    same_number = len(initial.classes) == len(classes)
    if same_number and (initial.classes == classes or not initial.classes_known):
        return initial.network

    if config.evaluate:
        few = ", ".join(initial.classes[:3])
        sys.exit(f"error: the weights are for {len(initial.classes)} other classes: {few}, …")
    head = HEAD_NAMES[config.model]
    setattr(initial.network, head, getattr(network, head))
    return initial.network


def save_checkpoint(
    config: Config,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    images: Images,
    rows: list[dict[str, float]],
) -> None:
    """Write last.ckpt, from which --resume continues."""
    checkpoint = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "rows": rows,
        "config": asdict(config),
        "processes": WORLD_SIZE,
        "images": images.description,
        "classes": images.classes,  # with the image size, so that --weights accepts the file too
        "image_size": config.image_size,
    }
    write_atomically(Path(config.out, "last.ckpt"), partial(torch.save, checkpoint))


def load_checkpoint(config: Config) -> dict[str, Any] | None:
    """Return the checkpoint in --out, or None if the run has not finished an epoch.

    Exit with an error message if there is a checkpoint but no --resume, or if the run cannot
    continue from the checkpoint.
    """
    path = Path(config.out, "last.ckpt")
    if not path.exists():
        return None  # also with --resume: a run that was killed in its first epoch starts again
    if not config.resume:
        sys.exit(f"error: {config.out} already holds a run: add --resume or choose another --out")
    checkpoint: dict[str, Any] = read_checkpoint(path)
    if "config" not in checkpoint:
        sys.exit(f"error: {path} is not a checkpoint of examples.train")
    if checkpoint["processes"] != WORLD_SIZE:
        before = checkpoint["processes"]
        sys.exit(f"error: the run in {config.out} used {before} process(es), not {WORLD_SIZE}")
    return checkpoint


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a temporary file, then rename it to `path`, so that `path` is never half written."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_results(
    config: Config, network: nn.Module, classes: list[str], rows: list[dict[str, float]]
) -> None:
    """Write metrics.csv and curves.png, and model.pt if the last epoch has the best top-1."""
    out = Path(config.out)
    table = pd.DataFrame(rows)
    write_atomically(out / "metrics.csv", partial(table.to_csv, index=False))
    title = f"{config.model} on {len(classes)} classes, {config.image_size} × {config.image_size}"
    write_atomically(out / "curves.png", partial(draw_curves, table, title))

    if table["val_top1"].idxmax() == len(rows) - 1:  # on a tie, the first epoch is kept
        weights = {
            name: tensor.cpu().contiguous()  # not channels-last
            for name, tensor in network.state_dict().items()
        }
        best = {"state_dict": weights, "classes": classes, "image_size": config.image_size}
        write_atomically(out / "model.pt", partial(torch.save, best))


def draw_curves(table: pd.DataFrame, title: str, path: Path) -> None:
    """Plot the loss and the top-1 accuracy over the epochs, as a PNG file."""
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


def create_folder(out: str) -> None:
    """Create the folder for the results. Exit with a one-line error message on failure."""
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"error: cannot create the folder {out}: {error.strerror}")


def print_once(line: str) -> None:
    """Print a line, in the first process only."""
    if RANK == 0:
        print(line, flush=True)


def describe_run(
    config: Config, network: nn.Module, images: Images, device: torch.device, steps: int
) -> str:
    """Return one line with the network, the device and the sizes of the data set."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    ignored = f" ({images.ignored:,} other files ignored)" if images.ignored else ""
    processes = f" in {WORLD_SIZE} processes" if WORLD_SIZE > 1 else ""
    return (
        f"{config.model}, {parameters:,} parameters, on {device}{processes}: "
        f"{len(images.train):,} training and {len(images.val):,} validation images of "
        f"{len(images.classes):,} classes{ignored}, {steps:,} steps per epoch"
    )


def describe_epoch(config: Config, row: dict[str, float]) -> str:
    """Return one line with the metrics of an epoch."""
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
        advice = "" if config.evaluate else ": --resume continues after the last finished epoch"
        sys.exit(f"interrupted{advice}")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
