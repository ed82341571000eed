"""Train or fine-tune AlexNet or ResNet-18.

python -m examples.train cifar10 --image-size 64 --epochs 20 --out runs/cifar10
python -m examples.train --resume --out runs/cifar10
python -m examples.train DATA --pretrained --lr 0.0025 --epochs 5 --out runs/tuned
torchrun --nproc-per-node 4 -m examples.train DATA --out runs/four
"""

import math
import time
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tyro.conf import Positional

from examples.lib.checkpoints import is_for_classes, load_weights, read_checkpoint
from examples.lib.classifier import EXPORTED, Metadata, default_resize_size
from examples.lib.command import Model, Precision, UserError, hint, parse, require, run
from examples.lib.data import (
    Data,
    EpochSampler,
    check_loader_options,
    load_data,
    training_loader,
    validation_loader,
)
from examples.lib.distributed import (
    RANK,
    WORLD_SIZE,
    broadcast_buffers,
    find_device,
    join_processes,
    leave_processes,
    mean_over_processes,
    print_once,
    rank_0_first,
)
from examples.lib.metrics import accuracy_and_loss, describe_accuracy, progress_bar, sound_batches
from examples.lib.networks import (
    ARCHITECTURES,
    Network,
    PixelNetwork,
    as_function,
    autocast,
    check_image_size,
)
from examples.lib.results import new_figure, write_atomically


@dataclass(frozen=True)
class Options:
    """Train or fine-tune AlexNet or ResNet-18."""

    data: Annotated[Positional[str], hint("DATA", "required, except with --resume")]
    """Folder with train/<class>/ and val/<class>/, or cifar10, which is downloaded to data/."""
    model: Annotated[Model | None, hint("{alexnet,resnet18}", "default: resnet18")] = None
    """Network to train. With --weights, the network of that file."""
    pretrained: bool = False
    """Start from the official ImageNet weights."""
    weights: Annotated[Path | None, hint("FILE", "optional")] = None
    """Start from the weights in this file."""
    resume: bool = False
    """Continue the run in --out after its last finished epoch, with its options."""
    out: Path = Path("runs/train")
    """Folder for the results."""

    epochs: int = 90
    """Number of passes over the training images."""
    batch_size: int = 64
    """Images per training step, in total over all processes."""
    lr: Annotated[float | None, hint("FLOAT", "default: proportional to --batch-size")] = None
    """Peak learning rate. For a batch of 256, the default is 0.02 (AlexNet) or 0.1 (ResNet-18)."""
    weight_decay: Annotated[float | None, hint("FLOAT", "default: as in the paper")] = None
    """Weight decay. The default is 0.0005 (AlexNet) or 0.0001 (ResNet-18), as in the papers."""
    label_smoothing: float = 0.0
    """Fraction of each label that is spread evenly over all classes."""
    image_size: Annotated[int | None, hint("INT", "default: as saved in --weights, or 224")] = None
    """Height and width of the images in pixels."""
    precision: Precision = "float32"
    """Precision of the forward pass, which uses autocast. The weights stay in float32."""
    seed: int = 0
    """Random seed for the initial weights, the order of the images, the crops and dropout."""

    device: Annotated[str | None, hint("NAME", "default: cuda if there is a GPU, else cpu")] = None
    """PyTorch device, such as cpu, cuda:1 or mps."""
    workers: Annotated[int | None, hint("INT", "default: one for each CPU core, at most 16")] = None
    """Processes that read images, for each training process. They do not affect the result."""


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options of a run, of which none is left open. None: whatever this machine has."""

    model: Model
    lr: float
    weight_decay: float
    image_size: int


# The options that may change when a run is resumed: they do not affect its result,
# except that another device rounds differently.
MAY_CHANGE_ON_RESUME = {"data", "out", "device", "workers"}


def train(
    config: Config,
    device: torch.device,
    initial: tuple[Network, Metadata] | None,
    checkpoint: dict[str, Any] | None,
) -> None:
    """Train or fine-tune a network. Write its weights, metrics and curves to --out.

    Args:
        config: the options.
        device: where to compute.
        initial: the network to start from. None: random weights.
        checkpoint: what `save_checkpoint` wrote, to continue from. None: start a new run.
    """
    check_image_size(config.model, config.image_size)
    check_batch_norm(config)
    resize_size = default_resize_size(config.image_size)
    data = load_data(config.data, resize_size)
    check_data(config, data, checkpoint)
    sampler = EpochSampler(data.train, config.seed)
    train_loader = training_loader(
        data.train, config.image_size, sampler, config.batch_size, config.workers
    )
    val_loader = validation_loader(
        data.val, config.image_size, resize_size, config.batch_size, config.workers
    )

    torch.manual_seed(config.seed)
    network = build_network(config, initial, data.val.classes)
    pixel_network = PixelNetwork(network).to(device).to(memory_format=torch.channels_last)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=config.lr,  # replaced before each step
        momentum=0.9,
        nesterov=True,
        weight_decay=config.weight_decay,
        # On a CPU, fused steps ruin the weights if the scaler skips the first one (see findings/).
        fused=device.type == "cuda" or (device.type == "cpu" and not scaler.is_enabled()),
    )
    rows: list[dict[str, float]] = []  # of metrics.csv, one for each finished epoch

    if checkpoint:  # with --resume
        network.load_state_dict(checkpoint["network"])
        # Not the saved groups: another device may have another value of `fused`.
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({**checkpoint["optimizer"], "param_groups": groups})
        scaler.load_state_dict(checkpoint["scaler"])
        rows = checkpoint["rows"]

    model = DistributedDataParallel(pixel_network) if WORLD_SIZE > 1 else pixel_network
    logits_of = as_function(pixel_network, device, config.precision)

    if RANK == 0 and not checkpoint:  # now, to learn before the first step if --out is read-only
        save_checkpoint(config, network, optimizer, scaler, data, rows)
    print_once(describe_run(config, network, data, device, len(train_loader)))
    if checkpoint:
        print_once(describe_resume(config, rows))

    for epoch in range(len(rows) + 1, config.epochs + 1):
        sampler.set_epoch(epoch)
        torch.manual_seed(hash((config.seed, epoch, RANK)))  # for dropout, also in a resumed run

        row = train_one_epoch(config, model, optimizer, scaler, train_loader, device, epoch)
        broadcast_buffers(network)
        model.eval()
        row |= accuracy_and_loss(logits_of, val_loader)
        if not math.isfinite(row["val_loss"]):
            raise UserError(f"the validation loss of epoch {epoch} is not finite: try a lower --lr")
        rows.append({"epoch": epoch, **row})

        if RANK == 0:
            save_results(config, network, data.val.classes, rows)
            save_checkpoint(config, network, optimizer, scaler, data, rows)
        print_once(describe_epoch(config, rows[-1], len(data.val.classes)))


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
        The last learning rate, the mean training loss, the training accuracy in percent, the images
        per second over all processes, and the seconds that the epoch took.
    """
    model.train()
    loss_sum, correct = torch.zeros(2, device=device)
    seen = 0
    start = time.perf_counter()

    with progress_bar(loader, f"epoch {epoch}/{config.epochs}") as bar:
        for step, (images, labels) in enumerate(sound_batches(bar), start=1):
            # Taken at the middle of the step, so that no step has a learning rate of zero.
            progress = (epoch - 1 + (step - 0.5) / len(loader)) / config.epochs
            lr = learning_rate(progress, config.lr)
            for group in optimizer.param_groups:
                group["lr"] = lr

            images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            labels = labels.to(device, non_blocking=True)
            with autocast(device, config.precision):
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
                    raise UserError(
                        f"the training loss is not finite by step {step} of epoch {epoch}: "
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


def learning_rate(progress: float, peak: float) -> float:
    """Linear warmup over the first 5 % of the run, then cosine decay to zero.

    Args:
        progress: the finished fraction of the run, from 0 to 1.
        peak: the learning rate at the end of the warmup.
    """
    if progress < 0.05:
        return peak * progress / 0.05
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - 0.05) / 0.95))


# The checkpoint of a run


def save_checkpoint(
    config: Config,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    data: Data,
    rows: list[dict[str, float]],
) -> None:
    """Write last.ckpt, from which --resume continues."""
    checkpoint = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "rows": rows,
        "config": {key: storable(value) for key, value in asdict(config).items()},
        "processes": WORLD_SIZE,
        "images": data.description,
        "classes": data.val.classes,  # with the sizes, so that --weights accepts the file too
        "image_size": config.image_size,
        "resize_size": default_resize_size(config.image_size),
    }
    write_atomically(config.out / "last.ckpt", partial(torch.save, checkpoint))


def storable(value: Any) -> Any:
    """Return an option as torch.load reads it without running code: a path as text."""
    return str(value) if isinstance(value, Path) else value


def load_checkpoint(out: Path) -> dict[str, Any]:
    """Return the checkpoint of the run in the folder `out`.

    Raises:
        UserError: there is none, or this version or these processes cannot continue from it.
    """
    path = out / "last.ckpt"
    require(path.exists(), f"no run to resume in {out}: it has no last.ckpt")
    checkpoint: dict[str, Any] = read_checkpoint(path)
    require("config" in checkpoint, f"{path} is not a checkpoint of examples.train")
    require(
        checkpoint["config"].keys() == {field.name for field in fields(Config)},
        f"{path} is from another version of examples.train: start a new run with --weights {path}",
    )
    before = checkpoint["processes"]
    require(before == WORLD_SIZE, f"the run in {out} used {before} process(es), not {WORLD_SIZE}")
    return checkpoint


def resumed_config(arguments: list[str], checkpoint: dict[str, Any], out: Path) -> Config:
    """Return the options of the run in the folder `out`, and those given now that may change.

    Raises:
        UserError: another option is given and has changed.
    """
    options = {**checkpoint["config"], "out": out, "resume": True}
    if options["weights"] is not None:
        options["weights"] = Path(options["weights"])
    saved = Config(**options)
    config = parse("train", Config, arguments, default=saved)
    changed = [
        name
        for name, value in asdict(config).items()
        if name not in MAY_CHANGE_ON_RESUME and value != getattr(saved, name)
    ]
    if "epochs" in changed and len(checkpoint["rows"]) == saved.epochs:
        raise UserError(
            f"the run in {out} has ended after its {saved.epochs} epochs: to train its "
            f"network further, start a new run with --weights {out / 'model.pt'}"
        )
    if changed:
        name = changed[0]
        option, before, now = name.replace("_", "-"), getattr(saved, name), getattr(config, name)
        raise UserError(f"the run in {out} used --{option} {before}, not {now}")
    return config


def check_no_run(out: Path) -> None:
    """Raise `UserError` if the folder `out` holds a run with at least one finished epoch."""
    path = out / "last.ckpt"
    if path.exists():
        require(
            read_checkpoint(path).get("rows") == [],
            f"{out} already holds a run: add --resume or choose another --out",
        )


# The results of a run


def save_results(
    config: Config, network: nn.Module, classes: list[str], rows: list[dict[str, float]]
) -> None:
    """Write metrics.csv and curves.png, and model.pt if the last epoch has the best top-1."""
    import pandas as pd

    table = pd.DataFrame(rows)
    write_atomically(config.out / "metrics.csv", partial(table.to_csv, index=False))
    title = f"{config.model} on {len(classes)} classes, {config.image_size} × {config.image_size}"
    write_atomically(config.out / "curves.png", partial(draw_curves, table, title))

    if table["val_top1"].idxmax() == len(rows) - 1:  # on a tie, the first epoch is kept
        weights = {
            name: tensor.cpu().contiguous()  # not channels-last
            for name, tensor in network.state_dict().items()
        }
        best = {
            "state_dict": weights,
            "classes": classes,
            "image_size": config.image_size,
            "resize_size": default_resize_size(config.image_size),
        }
        write_atomically(config.out / "model.pt", partial(torch.save, best))


def draw_curves(table: Any, title: str, file: BinaryIO) -> None:
    """Plot the loss and the top-1 accuracy over the epochs, as a PNG file."""
    figure = new_figure(10, 4)
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
    figure.savefig(file, format="png")


# The network


def load_initial(options: Options) -> tuple[Network, Metadata] | None:
    """Return the network of --weights or --pretrained, or None for random weights."""
    if options.weights is None and not options.pretrained:
        return None
    with rank_0_first():  # it may download the weights
        return load_weights(options.weights, options.model, head_optional=True)


def build_network(
    config: Config, initial: tuple[Network, Metadata] | None, classes: list[str]
) -> Network:
    """Return the network to train.

    If the initial weights are for other classes, the network gets a new head with random weights.
    """
    architecture = ARCHITECTURES[config.model]
    if initial is None:
        return architecture.network(num_classes=len(classes))
    network, metadata = initial
    if not is_for_classes(metadata, classes):
        new = architecture.network(num_classes=len(classes))
        setattr(network, architecture.head, getattr(new, architecture.head))
    return network


# The options


def read_options(arguments: list[str]) -> tuple[Options, dict[str, Any] | None]:
    """Return the options, and with --resume a `Config` and the checkpoint to continue from.

    With --resume, the options that are not given are those of the run.
    """
    if "--resume" in arguments:
        out = parse("train", Options, arguments, default=Options(data="")).out
        checkpoint = load_checkpoint(out)
        return resumed_config(arguments, checkpoint, out), checkpoint

    options = parse("train", Options, arguments)
    check_no_run(options.out)
    return options, None


def check_options(config: Options) -> None:
    """Raise `UserError` if an option is invalid."""
    require(config.epochs >= 1, "--epochs must be at least 1")
    check_loader_options(config.batch_size, config.workers, config.image_size)
    require(0 <= config.label_smoothing < 1, "--label-smoothing must be at least 0 and less than 1")
    if config.lr is not None:
        require(0 < config.lr < math.inf, "--lr must be positive and finite")
    if config.weight_decay is not None:
        require(
            0 <= config.weight_decay < math.inf, "--weight-decay must be finite and not negative"
        )
    require(0 <= config.seed < 2**32, "--seed must be at least 0 and less than 2**32")

    require(
        not (config.pretrained and config.weights is not None),
        "--pretrained and --weights cannot be used together",
    )
    require(
        config.weights is None or config.weights.suffix not in EXPORTED,
        f"{config.weights} is an exported network, which cannot be trained: use its weights",
    )


def check_batch_norm(config: Config) -> None:
    """Raise `UserError` if the images and batches are too small for the batch norm of ResNet-18."""
    # Up to 32 x 32 pixels, the last layers see one pixel of each image.
    require(
        config.model == "alexnet" or config.image_size > 32 or config.batch_size > WORLD_SIZE,
        "batch norm needs more than one value per channel: raise --batch-size, or raise "
        "--image-size above 32",
    )


def check_data(config: Config, data: Data, checkpoint: dict[str, Any] | None) -> None:
    """Raise `UserError` if the images do not fill a batch or are not those of the run."""
    require(
        len(data.train) >= config.batch_size,
        f"{len(data.train)} training images do not fill a batch of {config.batch_size}: "
        "choose a smaller --batch-size",
    )
    if checkpoint:
        before = checkpoint["images"]
        require(
            before == data.description,
            f"the run in {config.out} used {before}, not {data.description}",
        )


def fill_in_defaults(options: Options, initial: tuple[Network, Metadata] | None) -> Config:
    """Fill in the defaults that depend on the initial weights, the network or the batch size."""
    model = options.model or (initial[1].name if initial else "resnet18")
    architecture = ARCHITECTURES[model]
    defaults = {
        "model": model,
        "image_size": initial[1].image_size if initial else 224,
        "lr": architecture.learning_rate * options.batch_size / 256,
        "weight_decay": architecture.weight_decay,
    }
    given = {name: value for name, value in vars(options).items() if value is not None}
    return Config(**{**defaults, **given})


# What is printed


def describe_run(
    config: Config, network: nn.Module, data: Data, device: torch.device, steps: int
) -> str:
    """Return one line with the network, the device, the size of the data set and the steps."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    ignored = f" ({data.ignored:,} other files ignored)" if data.ignored else ""
    processes = f" in {WORLD_SIZE} processes" if WORLD_SIZE > 1 else ""
    return (
        f"{config.model}, {parameters:,} parameters, on {device}{processes}: "
        f"{len(data.train):,} training and {len(data.val):,} validation images of "
        f"{len(data.val.classes):,} classes{ignored}, {steps:,} steps per epoch, "
        f"learning rate {config.lr:g}"
    )


def describe_resume(config: Config, rows: list[dict[str, float]]) -> str:
    """Return one line that says where a resumed run continues."""
    if not rows:
        return f"the run in {config.out} was stopped in its first epoch and starts again"
    if len(rows) == config.epochs:
        return f"the run in {config.out} has ended after its {config.epochs} epochs"
    return f"the run in {config.out} continues after epoch {len(rows)}/{config.epochs}"


def describe_epoch(config: Config, row: dict[str, float], num_classes: int) -> str:
    """Return one line with the metrics of an epoch."""
    return (
        f"epoch {row['epoch']}/{config.epochs}: "
        f"training loss {row['train_loss']:.3f}, top-1 {row['train_top1']:.2f}%; "
        f"validation loss {row['val_loss']:.3f}, {describe_accuracy(row, num_classes, digits=2)}; "
        f"{row['images/s']:.0f} images/s"
    )


def main(arguments: list[str]) -> None:
    options, checkpoint = read_options(arguments)
    check_options(options)
    device = find_device(options.device)
    join_processes(device)
    if isinstance(options, Config):
        train(options, device, None, checkpoint)
    else:
        initial = load_initial(options)
        train(fill_in_defaults(options, initial), device, initial, None)
    leave_processes()


if __name__ == "__main__":
    run(main, "interrupted: --resume continues a run after its last finished epoch")
