"""Train, fine-tune or evaluate AlexNet or ResNet-18 on a folder of images.

The images are in `DATA/train/<class>/` and `DATA/val/<class>/`. The loop, the devices and the
processes are Lightning's; the recipe, SGD with random crops and flips, is the papers'.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from examples.command_line import (
    ArgumentParser,
    fraction,
    positive_float,
    positive_int,
    whole_number,
)
from examples.images import ImageError, open_image
from examples.record import AtomicCheckpoints, save_curves, save_metrics, save_model
from examples.weights import MODELS, WeightsError, load_file, load_official, official_weights, read

LEARNING_RATES = {"alexnet": 0.02, "resnet18": 0.1}  # for 256 images
WEIGHT_DECAYS = {"alexnet": 5e-4, "resnet18": 1e-4}
WARMUP = 0.05  # of all steps
SMALLEST_CROP = 0.35  # of an image; the usual 0.08 wants many epochs


class TrainingError(Exception):
    """A run that cannot start or go on; the message is one line that says why."""


class DamagedImageError(TrainingError):
    """An image that cannot be decoded."""


class Images(ImageFolder):  # type: ignore[misc]
    """The images of a folder; an item's seed decides its augmentation, whatever process makes it.

    Raises:
        TrainingError: there is no such folder, or it has no class or a class without images.
        DamagedImageError: an image cannot be decoded.
    """

    def __init__(self, folder: Path, *transforms: Any) -> None:
        if not folder.is_dir():
            raise TrainingError(f"there is no folder {folder}")
        try:
            super().__init__(str(folder), v2.Compose([*transforms, v2.PILToTensor()]))
        except OSError as error:
            raise TrainingError(str(error)) from error

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        (path, label), seed = self.samples[item[0]], item[1]
        try:
            image = open_image(Path(path))
        except ImageError as error:
            raise DamagedImageError(f"{path} cannot be decoded: replace or delete it") from error
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.transform(image), label  # (3, size, size), bytes


class Shuffle(Sampler[Any]):
    """An epoch's whole batches of indices, each with a seed; a process gets its share of each."""

    def __init__(self, images: int, batch: int, seed: int, rank: int, processes: int) -> None:
        self.images, self.length, self.seed = images, images // batch * batch, seed
        self.share, self.processes = slice(rank, None, processes), processes

    def set_epoch(self, epoch: int) -> None:  # Lightning calls it
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length // self.processes

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        order = torch.randperm(self.images, generator=generator)[: self.length]
        seeds = torch.randint(2**62, (self.length,), generator=generator)
        return zip(order[self.share].tolist(), seeds[self.share].tolist())


class Training(LightningModule):
    """A network, how it is trained, and what is noted after each epoch."""

    mean: Tensor
    std: Tensor

    allow_zero_length_dataloader_with_multiple_devices = True  # fewer images than processes

    def __init__(self, network: nn.Module, train: Images, val: Images, args: Namespace) -> None:
        super().__init__()
        self.network, self.train_images, self.val_images, self.args = network, train, val, args
        self.history: list[dict[str, float]] = []
        self.losses: list[Tensor] = []
        self.start = time.perf_counter()
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]) * 255  # ImageNet's
        self.register_buffer("mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(3, 1, 1), persistent=False)

    def train_dataloader(self) -> DataLoader[Any]:
        rank, processes = self.global_rank, self.trainer.world_size
        batch, seed = self.args.batch_size, self.args.seed
        sampler = Shuffle(len(self.train_images), batch, seed, rank, processes)
        sampler.set_epoch(len(self.history))  # current_epoch is behind where a run resumes
        return self.loader(self.train_images, sampler)

    def val_dataloader(self) -> DataLoader[Any]:  # no padding: each image is counted once
        share = range(self.global_rank, len(self.val_images), self.trainer.world_size)
        return self.loader(self.val_images, [(index, 0) for index in share])

    def loader(self, images: Images, sampler: Any) -> DataLoader[Any]:
        return DataLoader(
            images,
            batch_size=self.args.batch_size // self.trainer.world_size,
            sampler=sampler,
            num_workers=self.args.workers,
            persistent_workers=self.args.workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # the global one is dropout's
        )

    def configure_optimizers(self) -> Any:
        # Lightning's own estimate would start the workers before a checkpoint tells the epoch.
        steps: int = len(self.train_images) // self.args.batch_size * self.args.epochs
        warmup = max(1, round(WARMUP * steps))
        optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=self.args.lr * self.args.batch_size / 256,
            momentum=0.9,
            weight_decay=WEIGHT_DECAYS[self.args.model],
            fused=True,
        )

        def factor(step: int) -> float:  # linear, then a half cosine
            done = (step - warmup) / max(1, steps - warmup)
            return min((step + 1) / (warmup + 1), (1 + math.cos(math.pi * max(0, done))) / 2)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def forward(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last).float()
        logits: Tensor = self.network(images.sub_(self.mean).div_(self.std))
        return logits

    def on_train_epoch_start(self) -> None:
        # What is random depends on the seed and the epoch alone: a resumed run repeats it.
        torch.manual_seed(mix(self.args.seed, len(self.history), self.global_rank))
        self.losses, self.hits = [], torch.zeros((), device=self.device)
        self.start = time.perf_counter()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.args.label_smoothing)
        self.losses.append(loss.detach())
        self.hits += (logits.argmax(1) == labels).sum()
        if index % 50 == 0:  # seldom, as a GPU has to be waited for
            self.check_losses()
        return loss

    def check_losses(self) -> Tensor:
        """Return the loss of each step of this epoch, over all processes; refuse one not finite."""
        losses: Tensor = self.trainer.strategy.reduce(torch.stack(self.losses), reduce_op="mean")
        for index in (~losses.isfinite()).nonzero()[:1].flatten().tolist():
            step = self.trainer.num_training_batches * len(self.history) + index + 1
            raise TrainingError(
                f"the loss became {losses[index]:g} at step {step}, in epoch "
                f"{len(self.history) + 1}: try a smaller --lr; earlier checkpoints are kept"
            )
        return losses

    def on_validation_epoch_start(self) -> None:
        self.seconds = time.perf_counter() - self.start
        self.sums = torch.zeros(4, device=self.device)
        if self.trainer.world_size > 1:  # batch norm, as each process has seen other images
            for buffer in filter(torch.is_floating_point, self.network.buffers()):
                buffer.copy_(self.trainer.strategy.reduce(buffer, reduce_op="mean"))

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        images, labels = batch
        logits = self(images).float()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        count = loss.new_full((), len(labels))
        self.sums += torch.stack([loss, hits[:, 0].sum(), hits.sum(), count])

    def on_validation_epoch_end(self) -> None:
        sums = self.trainer.strategy.reduce(self.sums, reduce_op="sum").tolist()
        loss, top1, top5 = (value / sums[3] for value in sums[:3])
        self.result = {"val_loss": loss, "val_top1": 100 * top1, "val_top5": 100 * top5}

    def on_train_epoch_end(self) -> None:
        losses = self.check_losses()
        hits = self.trainer.strategy.reduce(self.hits, reduce_op="sum")
        seen, epoch = len(losses) * self.args.batch_size, len(self.history) + 1
        best = max((row["val_top1"] for row in self.history), default=-1.0)
        row = {"epoch": epoch, "train_loss": losses.mean().item()}
        row.update(train_top1=100 * hits.item() / seen, **self.result)
        row.update(images_per_second=seen / self.seconds)
        self.history.append(row)

        # The last checkpoint comes last: killed before it is there, the run repeats this epoch.
        out, model, main = self.args.out, self.args.model, self.trainer.is_global_zero
        if main:
            save_metrics(self.history, out / "metrics.csv")
            save_curves(self.history, model, out / "curves.png")
        if row["val_top1"] > best:
            if main:
                classes, size = self.val_images.classes, self.args.image_size
                save_model(self.network, model, classes, size, out / "model.pt")
            self.trainer.save_checkpoint(out / "best.ckpt")
        self.trainer.save_checkpoint(out / "last.ckpt")
        self.print(
            f"epoch {epoch}/{self.args.epochs}: "
            f"loss {row['train_loss']:.3f}, top-1 {row['train_top1']:.1f} %; "
            f"val loss {row['val_loss']:.3f}, top-1 {row['val_top1']:.1f} %; "
            f"{row['images_per_second']:.0f} images/s"
        )
        sys.stdout.flush()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["model"], checkpoint["classes"] = self.args.model, self.val_images.classes
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = checkpoint["history"]


class ProgressBar(TQDMProgressBar):
    def get_metrics(self, trainer: Trainer, module: Any) -> dict[str, Any]:
        if not module.losses:
            return {}
        rate = len(module.losses) * module.args.batch_size / (time.perf_counter() - module.start)
        return {"loss": f"{module.losses[-1].item():.3f}", "images/s": f"{rate:.0f}"}


def mix(*numbers: int) -> int:
    """Return one seed made of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def build_network(args: Namespace, classes: list[str]) -> Any:
    """Return the network to start from; its name becomes `args.model`.

    Raises:
        TrainingError, WeightsError: there are no such weights, or they are for other classes.
    """
    if args.weights:
        classifier = load_file(args.weights, args.model)
    elif args.pretrained:
        classifier = load_official(args.model or "resnet18")
    else:
        args.model = args.model or "resnet18"
        return MODELS[args.model](num_classes=len(classes))
    network, known = classifier.model, classifier.classes
    args.model = next(name for name, model in MODELS.items() if isinstance(network, model))
    # ImageNet's categories and bare numbers are not what the folders of classes are called.
    unnamed = [str(index) for index in range(len(classes))]
    if known in (official_weights(args.model).meta["categories"], unnamed):
        known = classes if len(known) == len(classes) else known
    if known != classes:
        if args.evaluate:
            ours, theirs = describe(classes), describe(known)
            raise TrainingError(f"val/ has the classes {ours}, the weights are for {theirs}")
        head = {"alexnet": "fc3", "resnet18": "fc"}[args.model]
        setattr(network, head, getattr(MODELS[args.model](num_classes=len(classes)), head))
    return network


def describe(classes: list[str]) -> str:
    return f"{', '.join(classes[:3])}{', …' * (len(classes) > 3)} ({len(classes)})"


def prepare(args: Namespace) -> tuple[Training, Path | None]:
    """Return what is to be trained, and the checkpoint to go on from; fill in the arguments.

    Raises:
        TrainingError, WeightsError: the arguments do not fit the images, the weights or each other.
    """
    torchrun, gpus = "TORCHELASTIC_RUN_ID" in os.environ, torch.cuda.device_count()
    devices = int(os.environ["LOCAL_WORLD_SIZE"]) if torchrun else args.devices or 1
    nodes = int(os.environ["GROUP_WORLD_SIZE"]) if torchrun else args.nodes or 1
    processes = devices * nodes
    if (args.devices or devices, args.nodes or nodes) != (devices, nodes):
        raise TrainingError(f"torchrun started {devices} processes on each of {nodes} machines")
    if nodes > 1 and not torchrun:
        raise TrainingError(f"--nodes {nodes} needs torchrun to start it on each machine")
    if devices > gpus > 0:
        raise TrainingError(f"--devices {devices} is more than the {gpus} GPUs of this machine")
    if args.precision == "16-mixed" and not gpus:
        raise TrainingError("--precision 16-mixed needs a GPU: use bf16-mixed")
    if args.batch_size % processes:
        raise TrainingError(
            f"--batch-size {args.batch_size} is no multiple of {processes} processes"
        )
    if args.evaluate and not (args.pretrained or args.weights):
        raise TrainingError("--evaluate needs --pretrained or --weights FILE")
    args.devices, args.nodes = devices, nodes
    if args.workers is None:
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        args.workers = max(0, min(8, cores // devices - (not gpus)))  # a CPU trains as well

    size = args.image_size
    val = Images(args.data / "val", v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size))
    crop = v2.RandomResizedCrop(size, scale=(SMALLEST_CROP, 1))
    train = val if args.evaluate else Images(args.data / "train", crop, v2.RandomHorizontalFlip())
    if train.classes != val.classes:
        lone = ", ".join(sorted(set(train.classes) ^ set(val.classes))[:3])
        raise TrainingError(f"of train/ and val/ in {args.data} only one has the class {lone}")
    if len(train) < args.batch_size and not args.evaluate:
        raise TrainingError(
            f"--batch-size {args.batch_size} is more than train/'s {len(train)} images"
        )

    torch.manual_seed(args.seed)
    network = build_network(args, val.classes)
    args.lr = args.lr or LEARNING_RATES[args.model]
    with torch.device("meta"):  # the network itself knows which images are too small
        try:
            probe = MODELS[args.model]().train(not args.evaluate)
            probe(torch.empty(args.batch_size // processes, 3, size, size))
        except ValueError as error:
            raise TrainingError(f"--image-size {size}: {error}") from error
    module = Training(network.to(memory_format=torch.channels_last), train, val, args)
    if args.compile:
        network.compile()  # in place: the weights keep their names
    if args.evaluate:
        return module, None

    checkpoint = args.out / "last.ckpt"
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot make the folder {args.out}: {error.strerror}") from error
    if not checkpoint.exists():  # nor does a run have one that was killed in its first epoch
        return module, None
    if not args.resume:
        raise TrainingError(f"{args.out} holds a run: add --resume, or name another with --out")
    saved = read(checkpoint)
    if not isinstance(saved, dict) or not {"model", "classes", "history"} <= saved.keys():
        raise TrainingError(f"{checkpoint} was not written by this command")
    if saved["model"] != args.model:
        raise TrainingError(f"{checkpoint} holds {saved['model']}, not {args.model}")
    if saved["classes"] != val.classes:
        ours, theirs = describe(val.classes), describe(saved["classes"])
        raise TrainingError(f"{checkpoint} is for the classes {theirs}, not {ours}")
    if len(saved["history"]) >= args.epochs:
        raise TrainingError(f"{args.out} has its {len(saved['history'])} epochs: nothing is left")
    return module, checkpoint


def run(args: Namespace) -> None:
    """Train or evaluate as the arguments say."""
    module, checkpoint = prepare(args)
    ddp = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    bar = sys.stdout.isatty()
    trainer = Trainer(
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        devices=args.devices,
        num_nodes=args.nodes,
        strategy=ddp if args.devices * args.nodes > 1 else "auto",
        precision=args.precision,
        max_epochs=args.epochs,
        plugins=[AtomicCheckpoints()],
        callbacks=[ProgressBar(refresh_rate=10)] if bar else None,
        enable_progress_bar=bar,
        enable_checkpointing=False,  # the module's on_train_epoch_end saves
        enable_model_summary=False,
        logger=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        benchmark=True,
    )
    if not args.evaluate:
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
        return
    trainer.validate(module, verbose=False)
    val, top = module.val_images, min(5, len(module.val_images.classes))
    top1, top5 = module.result["val_top1"], module.result["val_top5"]
    module.print(f"top-1 {top1:.3f} %, top-{top} {top5:.3f} % of {len(val):,} images")


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m examples.train",
        description="Train, fine-tune or evaluate a network on a folder of images. "
        "An image that cannot be decoded stops the run, which names it.",
    )
    add, default = parser.add_argument, "default: %(default)s"
    rates = ", ".join(f"{rate} for {name}" for name, rate in LEARNING_RATES.items())
    add("data", metavar="DATA", type=Path, help="folder with train/<class>/ and val/<class>/")
    add("--model", choices=list(MODELS), help="default: what --weights holds, else resnet18")
    start = parser.add_mutually_exclusive_group().add_argument
    new_head = "with a new head where the classes differ; default: from scratch"
    start("--pretrained", action="store_true", help=f"start from official weights, {new_head}")
    start("--weights", metavar="FILE", type=Path, help=f"start from those in FILE, {new_head}")
    only = parser.add_mutually_exclusive_group().add_argument
    only(
        "--evaluate", action="store_true", help="only print top-1 and top-5 on val/; default: train"
    )
    resume = "go on, with the same options, after the last finished epoch in --out; default: start"
    only("--resume", action="store_true", help=resume)
    left = "folder for metrics.csv, curves.png, last.ckpt, best.ckpt and model.pt, the best weights"
    add("--out", type=Path, default=Path("run"), help=f"{left}; {default}")
    add("--epochs", type=positive_int, default=90, help=default)
    batch = f"images in a step, shared by all processes; {default}"
    add("--batch-size", type=positive_int, default=64, help=batch)
    lr = f"learning rate for 256 images, scaled with the batch; default: {rates}"
    add("--lr", type=positive_float, help=lr)
    add("--label-smoothing", type=fraction, default=0.0, help=default)
    add("--image-size", type=positive_int, default=224, help=f"width and height; {default}")
    add("--precision", choices=["32", "bf16-mixed", "16-mixed"], default="32", help=default)
    workers = (
        "processes that read images, beside each that trains; default: cores to spare, up to 8"
    )
    add("--workers", type=whole_number, help=workers)
    add("--seed", type=whole_number, default=0, help=default)
    devices = (
        "processes that train, each on a GPU or a share of the cores; default: 1 or torchrun's"
    )
    add("--devices", type=positive_int, help=devices)
    add("--nodes", type=positive_int, help="machines; default: 1 or torchrun's")
    add("--compile", action="store_true", help="compile the network; default: no")
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    for part in "pytorch", "fabric":
        logging.getLogger(f"lightning.{part}").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")  # advice to whoever writes the loop
    rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))  # unset before the launch
    try:
        run(args)
    except DamagedImageError as error:  # one process meets it; a worker puts its traceback above it
        parser.error(str(error).splitlines()[-1].split("DamagedImageError: ")[-1])
    except (TrainingError, WeightsError, OSError) as error:
        return rank or parser.error(str(error))
    except (KeyboardInterrupt, SystemExit):  # Lightning turns one into the other
        return rank or parser.error("interrupted: --resume goes on after the last finished epoch")
    except RuntimeError as error:
        if "gloo" not in str(error):
            raise
        return rank or parser.error("another process of this run has stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
