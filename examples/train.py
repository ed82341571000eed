"""Train or fine-tune AlexNet or ResNet-18.

python -m examples.train DATA --pretrained --out runs/tuned
python -m examples.train --resume --out runs/tuned
python -m examples.train cifar10 --image-size 64 --epochs 20 --out runs/cifar10
torchrun --nproc-per-node 4 -m examples.train DATA --out runs/four
"""

import math
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tyro.conf import Positional

from examples.lib.checkpoints import (
    assumed_order,
    class_indices,
    load_weights,
)
from examples.lib.classifier import EXPORTED, Metadata, default_resize_size
from examples.lib.command import Model, Precision, UserError, hint, parse, require, run
from examples.lib.data import LabeledImages
from examples.lib.distributed import (
    RANK,
    TORCHRUN_RESTARTS,
    WORLD_SIZE,
    broadcast_buffers,
    find_device,
    join_processes,
    leave_processes,
    mean_over_processes,
    print_once,
    rank_0_first,
)
from examples.lib.features import compute_features
from examples.lib.loaders import (
    CenterCrops,
    EpochSampler,
    RandomCrops,
    check_loader_options,
    training_loader,
    validation_loader,
)
from examples.lib.metrics import Predictions, classify, progress_bar, sound_batches
from examples.lib.networks import (
    ARCHITECTURES,
    Network,
    PixelNetwork,
    as_function,
    autocast,
    check_image_size,
)
from examples.lib.report import FILES, describe, differs_by_class, write_report
from examples.lib.runs import (
    State,
    best_epoch,
    holds_run,
    load_checkpoint,
    load_state,
    lock,
    save_checkpoint,
    save_epoch,
    storable,
)
from examples.lib.split import VAL_FRACTION, Data, Selection, is_split, load_images


@dataclass(frozen=True)
class Options:
    """Train or fine-tune AlexNet or ResNet-18."""

    data: Annotated[Positional[str], hint("DATA", "required, except with --resume")]
    """Folder with <class>/, which is split, or train/<class>/ and val/<class>/, or cifar10."""
    model: Annotated[Model | None, hint("{alexnet,resnet18}", "default: resnet18")] = None
    """Network to train. With --weights, the network of that file."""
    pretrained: bool = False
    """Start from the official ImageNet weights."""
    weights: Annotated[Path | None, hint("FILE", "optional")] = None
    """Start from the weights in this file."""
    resume: bool = False
    """Continue the run in --out after its last finished epoch, with its options."""
    restartable: bool = False
    """Continue the run in --out if there is one, or start it: for schedulers that repeat a command.
    Under torchrun, a restart (--max-restarts) continues the run in any case."""
    out: Path = Path("runs/train")
    """Folder for the results."""

    val_fraction: Annotated[float | None, hint("FLOAT", f"default: {VAL_FRACTION}")] = None
    """Part of the images that is for validation, if DATA has no train/ and val/."""
    skip_damaged: bool = False
    """Train without the files that cannot be used. All images are read before the first step."""
    numeric_order: bool = False
    """Number the classes by the numbers that are their names: 2 before 10. Default: as text."""

    freeze: bool = False
    """Train the last layer only. What the others compute of each image is computed once."""
    epochs: Annotated[int | None, hint("INT", "default: 90, or 10 from weights")] = None
    """Number of passes over the training images."""
    batch_size: int = 64
    """Images per training step, in total over all processes."""
    lr: Annotated[float | None, hint("FLOAT", "default: proportional to --batch-size")] = None
    """Peak learning rate. For a batch of 256 and random weights, the default is 0.02 (AlexNet) or
    0.1 (ResNet-18); from --pretrained or --weights, a tenth of it; with --freeze, ten times it."""
    weight_decay: Annotated[float | None, hint("FLOAT", "default: as in the paper")] = None
    """Weight decay. The default is 0.0005 (AlexNet) or 0.0001 (ResNet-18), as in the papers."""
    label_smoothing: float = 0.0
    """Fraction of each label that is spread evenly over all classes."""
    class_weights: bool = False
    """Weigh the loss of each image by the inverse of the size of its class."""
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
    val_fraction: float
    epochs: int
    lr: float
    weight_decay: float
    image_size: int


FINE_TUNING_EPOCHS = 10
FEW_IMAGES = 10_000  # for training from random weights

# The options that may change when a run is resumed: they do not affect its result,
# except that another device rounds differently.
MAY_CHANGE_ON_RESUME = {"data", "out", "device", "workers", "restartable"}


def train(
    config: Config,
    device: torch.device,
    initial: tuple[Network, Metadata] | None,
    checkpoint: dict[str, Any] | None,
) -> None:
    """Train or fine-tune a network. Write its weights, metrics and judgment to --out.

    Args:
        config: the options.
        device: where to compute.
        initial: the network to start from. None: random weights.
        checkpoint: what `save_checkpoint` wrote, to continue from. None: start a new run.
    """
    check_image_size(config.model, config.image_size)
    check_batch_norm(config)
    data = find_data(config, checkpoint)
    check_data(config, data, checkpoint)

    torch.manual_seed(config.seed)
    network, kept_head = build_network(config, initial, data.val.classes)
    if checkpoint:  # with --resume
        network.load_state_dict(checkpoint["network"])
    pixel_network = PixelNetwork(network).to(device).to(memory_format=torch.channels_last)
    trained, train_set, val_set = what_is_trained(config, pixel_network, data, device)
    workers = 0 if config.freeze else config.workers  # features are read from memory
    sampler = EpochSampler(data.train, config.seed)
    train_loader = training_loader(train_set, sampler, config.batch_size, workers)
    val_loader = validation_loader(val_set, len(data.val), config.batch_size, workers)

    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
    optimizer = torch.optim.SGD(
        trained.parameters(),
        lr=config.lr,  # replaced before each step
        momentum=0.9,
        nesterov=True,
        weight_decay=config.weight_decay,
        # On a CPU, fused steps ruin the weights if the scaler skips the first one (see findings/).
        fused=device.type == "cuda" or (device.type == "cpu" and not scaler.is_enabled()),
    )
    state = State(network, optimizer, scaler)
    if checkpoint:
        load_state(state, checkpoint, config.out)
    model = DistributedDataParallel(trained) if WORLD_SIZE > 1 else trained
    logits_of = as_function(trained, device, config.precision)
    class_weights = torch.ones(len(data.train.classes), device=device)
    if config.class_weights:
        class_weights = balanced_weights(data.train).to(device)

    description, metadata = describe_for_resume(config, data), metadata_of(config, data)
    locked = lock(config.out) if RANK == 0 else None  # until this function ends
    if RANK == 0 and not checkpoint:  # now, to learn before the first step if --out is read-only
        save_checkpoint(config.out, state, {**description, **metadata})
    print_once(describe_run(config, network, data, device, len(train_loader)))
    if checkpoint:
        print_once(describe_resume(config, state.rows))
    else:
        print_once(describe_start(config, initial, kept_head, data))

    if state.rows and state.best is None:  # model.pt was lost
        trained.eval()
        state.best = classify(logits_of, val_loader, len(data.val.classes))
        if RANK == 0:
            save_epoch(config.out, state, description, metadata)

    for epoch in range(len(state.rows) + 1, config.epochs + 1):
        sampler.set_epoch(epoch)
        torch.manual_seed(hash((config.seed, epoch, RANK)))  # for dropout, also in a resumed run

        row = train_one_epoch(config, model, state, train_loader, class_weights, device)
        broadcast_buffers(network)
        model.eval()
        predictions = classify(logits_of, val_loader, len(data.val.classes))
        if not math.isfinite(predictions.loss):
            raise UserError(f"the validation loss of epoch {epoch} is not finite: try a lower --lr")
        state.rows.append({"epoch": epoch, **row, **predictions.metrics})
        if best_epoch(state) == epoch:
            state.best = predictions

        if RANK == 0:
            save_epoch(config.out, state, description, metadata)
        print_once(describe_epoch(config, state.rows[-1], predictions))

    assert state.best is not None  # of the last epoch at least
    print_once(f"best epoch: {best_epoch(state)}, on the validation images")
    for line in describe(state.best, data.val.classes):
        print_once(line)
    if RANK == 0:
        write_report(config.out, state.best, data.val)
    print_once(f"{config.out}: model.pt, {', '.join(FILES)}")
    del locked


def train_one_epoch(
    config: Config,
    model: nn.Module,
    state: State,
    loader: DataLoader[Any],
    class_weights: Tensor,
    device: torch.device,
) -> dict[str, float]:
    """Take one step per batch.

    Args:
        config: the options.
        model: what is trained, in all processes.
        state: its optimizer takes the steps.
        loader: yields images, or features with --freeze, and labels.
        class_weights: of the loss of the images of each class (num_classes,).
        device: where to compute.

    Returns:
        The last learning rate, the mean training loss, the training accuracy in percent, the images
        per second over all processes, and the seconds that the epoch took.
    """
    epoch = len(state.rows) + 1
    optimizer, scaler = state.optimizer, state.scaler
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
                losses = F.cross_entropy(
                    logits, labels, reduction="none", label_smoothing=config.label_smoothing
                )
                # Not the argument `weight`: it would weigh the smoothed labels too.
                loss = (losses * class_weights[labels]).mean()
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


# What is saved beside the weights


def metadata_of(config: Config, data: Data) -> dict[str, Any]:
    """Return what `load_weights` reads beside the weights."""
    return {
        "classes": data.val.classes,
        "image_size": config.image_size,
        "resize_size": data.resize_size,
        "val_fraction": config.val_fraction if data.selection.val else None,
    }


def describe_for_resume(config: Config, data: Data) -> dict[str, Any]:
    """Return what must be known to continue a run."""
    return {
        "config": storable(asdict(config)),
        "processes": WORLD_SIZE,
        "images": data.description,
        "selection": {name: sorted(names) for name, names in vars(data.selection).items()},
    }


# The images


def find_data(config: Config, checkpoint: dict[str, Any] | None) -> Data:
    """Return the images of --data. A resumed run does not read them again to choose them."""
    resize_size = default_resize_size(config.image_size)
    selection = None
    if checkpoint:
        names = checkpoint["selection"]
        selection = Selection(**{name: frozenset(names[name]) for name in names})
    (train_images, val_images), selection = load_images(
        config.data,
        ("train", "val"),
        resize_size,
        config.val_fraction,
        config.skip_damaged,
        config.numeric_order,
        config.workers,
        selection,
    )
    return Data(train_images, val_images, selection, resize_size)


def balanced_weights(images: LabeledImages) -> Tensor:
    """Return a weight for each class (num_classes,): the larger, the fewer images it has.

    All classes then contribute as much to the loss, and the mean weight of an image is 1.
    """
    counts = torch.bincount(torch.tensor(images.labels()))
    return len(images) / (len(images.classes) * counts)


# The network


def load_initial(options: Options) -> tuple[Network, Metadata] | None:
    """Return the network of --weights or --pretrained, or None for random weights."""
    if options.weights is None and not options.pretrained:
        return None
    with rank_0_first():  # it may download the weights
        return load_weights(
            options.weights,
            options.model,
            options.image_size,
            head_optional=True,
        )


def build_network(
    config: Config, initial: tuple[Network, Metadata] | None, classes: list[str]
) -> tuple[Network, bool]:
    """Return the network to train, and whether it has the head of the initial weights.

    If they are for other classes, it gets a new head with random weights. If they have the same
    classes in another order, the rows of the head are put into the order of `classes`.
    """
    architecture = ARCHITECTURES[config.model]
    if initial is None:
        return architecture.network(num_classes=len(classes)), False
    network, metadata = initial
    indices = class_indices(metadata, classes)
    if indices is None:
        new = architecture.network(num_classes=len(classes))
        setattr(network, architecture.head, getattr(new, architecture.head))
        return network, False
    head = getattr(network, architecture.head)
    for parameter in head.parameters():
        parameter.data = parameter.data[indices]
    return network, True


def what_is_trained(
    config: Config, network: PixelNetwork, data: Data, device: torch.device
) -> tuple[nn.Module, Dataset[Any], Dataset[Any]]:
    """Return the module that is trained, and what it takes for each training and validation image.

    This is the whole network and pixels. With --freeze, it is the head, and the features that the
    network without its head gives for the center crop of each image.
    """
    if not config.freeze:
        return (
            network,
            RandomCrops(data.train, config.image_size, config.seed),
            CenterCrops(data.val, config.image_size, data.resize_size),
        )

    name = ARCHITECTURES[config.model].head
    head: nn.Module = getattr(network.network, name)
    setattr(network.network, name, nn.Identity())
    features_of = as_function(network.eval(), device, config.precision)
    train_set, val_set = (
        compute_features(
            features_of,
            validation_loader(
                CenterCrops(images, config.image_size, data.resize_size),
                len(images),
                config.batch_size,
                config.workers,
            ),
        )
        for images in (data.train, data.val)
    )
    setattr(network.network, name, head)
    return nn.Sequential(nn.Flatten(), head), train_set, val_set


# The options


def read_options(arguments: list[str]) -> tuple[Options, dict[str, Any] | None]:
    """Return the options, and with --resume a `Config` and the checkpoint to continue from.

    With --resume, the options that are not given are those of the run.

    Raises:
        UserError: there is no run to resume, or a run where a new one was to start.
    """
    if "--resume" in arguments:
        options = parse("train", Options, arguments, default=Options(data=""))
    else:
        options = parse("train", Options, arguments)
        if not holds_run(options.out):
            return options, None
        require(
            options.restartable or TORCHRUN_RESTARTS > 0,
            f"{options.out} already holds a run: add --resume or choose another --out",
        )
    checkpoint = load_checkpoint(options.out)
    check_checkpoint(checkpoint, options.out)
    return resumed_config(arguments, checkpoint, options.out), checkpoint


def check_checkpoint(checkpoint: dict[str, Any], out: Path) -> None:
    """Raise `UserError` if this version or these processes cannot continue from a checkpoint."""
    weights = out / "last.ckpt"
    require(
        checkpoint["config"].keys() == {field.name for field in fields(Config)},
        f"{weights} is from another version of examples.train: start a new run with --weights "
        f"{weights}",
    )
    before = checkpoint["processes"]
    require(before == WORLD_SIZE, f"the run in {out} used {before} process(es), not {WORLD_SIZE}")


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


def check_options(config: Options) -> None:
    """Raise `UserError` if an option is invalid."""
    require(config.epochs is None or config.epochs >= 1, "--epochs must be at least 1")
    require(
        config.val_fraction is None or 0 < config.val_fraction < 1,
        "--val-fraction must be between 0 and 1",
    )
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


def check_new_run(options: Options) -> None:
    """Raise `UserError` if options do not fit together, or the data. A run's own options do."""
    require(
        options.val_fraction is None or is_split(options.data),
        f"--val-fraction is for a folder that is split: {options.data} has training and validation "
        "images",
    )
    require(
        not options.freeze or options.pretrained or options.weights is not None,
        "--freeze trains the last layer only: give the weights of the others with --pretrained or "
        "--weights",
    )


def check_batch_norm(config: Config) -> None:
    """Raise `UserError` if the images and batches are too small for the batch norm of ResNet-18."""
    # Up to 32 x 32 pixels, the last layers see one pixel of each image.
    require(
        config.model == "alexnet"
        or config.freeze
        or config.image_size > 32
        or config.batch_size > WORLD_SIZE,
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
    lr = architecture.learning_rate * options.batch_size / 256
    if options.freeze:
        lr *= 10  # the last layer alone takes larger steps
    elif initial:
        lr /= 10  # the network keeps what it knows
    defaults = {
        "model": model,
        "val_fraction": VAL_FRACTION,
        "epochs": FINE_TUNING_EPOCHS if initial else 90,
        "lr": lr,
        "weight_decay": architecture.weight_decay,
        "image_size": initial[1].image_size if initial else 224,
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


def describe_start(
    config: Config, initial: tuple[Network, Metadata] | None, kept_head: bool, data: Data
) -> str:
    """Return one line that says what the weights of a new run are."""
    head = ARCHITECTURES[config.model].head
    if initial is None:
        few = ""
        if len(data.train) < FEW_IMAGES:
            few = f": {len(data.train):,} images are few for that, --pretrained needs less"
        return f"all weights are random{few}"
    metadata = initial[1]
    if not kept_head:
        return f"the last layer {head} is new"
    assumed = "" if metadata.classes_known else f": {assumed_order(data.train.classes)}"
    return f"the last layer {head} is that of the weights{assumed}"


def describe_resume(config: Config, rows: list[dict[str, float]]) -> str:
    """Return one line that says where a resumed run continues."""
    if not rows:
        return f"the run in {config.out} was stopped in its first epoch and starts again"
    if len(rows) == config.epochs:
        return f"the run in {config.out} has ended after its {config.epochs} epochs"
    return f"the run in {config.out} continues after epoch {len(rows)}/{config.epochs}"


def describe_epoch(config: Config, row: dict[str, float], predictions: Predictions) -> str:
    """Return one line with the metrics of an epoch."""
    accuracies = f"top-1 {row['val_top1']:.2f}%"
    if predictions.num_classes > 5:
        accuracies += f", top-5 {row['val_top5']:.2f}%"
    if differs_by_class(predictions):
        accuracies += f", mean over the classes {row['val_class_mean']:.2f}%"
    return (
        f"epoch {row['epoch']}/{config.epochs}: "
        f"training loss {row['train_loss']:.3f}, top-1 {row['train_top1']:.2f}%; "
        f"validation loss {row['val_loss']:.3f}, {accuracies}; "
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
        check_new_run(options)
        initial = load_initial(options)
        train(fill_in_defaults(options, initial), device, initial, None)
    leave_processes()


if __name__ == "__main__":
    run(main, "interrupted: --resume continues a run after its last finished epoch")
