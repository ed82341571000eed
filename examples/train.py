"""Train, fine-tune or evaluate AlexNet or ResNet-18 on a folder of images.

The images are in `DATA/train/<class>/` and `DATA/val/<class>/`. The loop, the devices and the
processes are Lightning's; the recipe, SGD with random crops and flips, is the papers'.
"""

from __future__ import annotations

import logging
import math
import os
import sys
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
from torch.utils.data import DataLoader, DistributedSampler
from torchmetrics import MeanMetric
from torchvision.transforms import v2

from examples.command_line import CommandError, reuse_memory
from examples.images import DamagedImageError, ImageError, LabelledImages
from examples.record import METRICS, AtomicCheckpoints, Record, find_checkpoint
from examples.train_setup import build_network, build_parser, check_folders, complete
from examples.weights import WeightsError

MOMENTUM = 0.9
WEIGHT_DECAYS = {"alexnet": 5e-4, "resnet18": 1e-4}
WARMUP = 0.05  # of all steps
SMALLEST_CROP = 0.35  # of an image; the usual 0.08 wants many epochs


class Training(LightningModule):
    """A network, the images it learns from, and how."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, train: LabelledImages, val: LabelledImages, args: Namespace
    ) -> None:
        super().__init__()
        self.network, self.train_images, self.val_images, self.args = network, train, val, args
        self.means = nn.ModuleDict({name: MeanMetric(nan_strategy="disable") for name in METRICS})
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]) * 255  # ImageNet's
        self.register_buffer("mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map bytes (N, 3, H, W) to logits (N, num_classes)."""
        images = images.contiguous(memory_format=torch.channels_last).float()
        logits: Tensor = self.network(images.sub_(self.mean).div_(self.std))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.args.label_smoothing)
        self.log("loss", loss, prog_bar=True)
        self.note(train_loss=loss, train_top1=100 * (logits.argmax(1) == labels))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        images, labels = batch
        logits = self(images).float()
        losses = F.cross_entropy(logits, labels, reduction="none")
        hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]  # (N, 5)
        self.note(val_loss=losses, val_top1=100 * hits[:, 0], val_top5=100 * hits.any(1))

    def note(self, **values: Tensor) -> None:
        """Add a batch's values to the means over the epoch's images in all processes."""
        for name, value in values.items():
            mean: Any = self.means[name]
            mean.update(value.detach().float())
            self.log(name, mean, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> Any:
        # Lightning's own estimate would start the workers before a checkpoint tells the epoch.
        steps: int = len(self.train_images) // self.args.batch_size * self.args.epochs
        warmup = max(1, round(WARMUP * steps))
        optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=self.args.lr * self.args.batch_size / 256,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAYS[self.args.model],
            fused=True,
        )

        def factor(step: int) -> float:  # linear, then a half cosine
            done = (step - warmup) / max(1, steps - warmup)
            return min((step + 1) / (warmup + 1), (1 + math.cos(math.pi * max(0, done))) / 2)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def train_dataloader(self) -> DataLoader[Any]:
        rank, processes, seed = self.global_rank, self.trainer.world_size, self.args.seed
        sampler = Shuffle(self.train_images, processes, rank, seed=seed, drop_last=True)
        sampler.set_epoch(self.epochs_done())  # Lightning does so too late for a resumed run
        return self.loader(self.train_images, sampler)

    def val_dataloader(self) -> DataLoader[Any]:  # no padding: each image is counted once
        share = range(self.global_rank, len(self.val_images), self.trainer.world_size)
        return self.loader(self.val_images, [(index, 0) for index in share])

    def loader(self, images: LabelledImages, sampler: Any) -> DataLoader[Any]:
        return DataLoader(
            images,
            batch_size=self.args.batch_size // self.trainer.world_size,
            sampler=sampler,
            num_workers=self.args.workers,
            persistent_workers=self.args.workers > 0,
            pin_memory=torch.cuda.is_available(),
            drop_last=isinstance(sampler, Shuffle),
            generator=torch.Generator(),  # the global one is dropout's
        )

    def epochs_done(self) -> int:  # current_epoch is behind where a run resumes
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        return int(progress.processed)

    def on_train_epoch_start(self) -> None:  # so that a resumed run repeats what is random
        torch.manual_seed(mix(self.args.seed, self.epochs_done(), self.global_rank))

    def on_validation_epoch_start(self) -> None:
        if self.trainer.world_size > 1:  # batch norm, as each process has seen other images
            for buffer in filter(torch.is_floating_point, self.network.buffers()):
                buffer.copy_(self.trainer.strategy.reduce(buffer, reduce_op="mean"))


class Shuffle(DistributedSampler[Any]):
    """A process's share of the shuffled images, each with the seed of its augmentation."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((index, mix(self.seed, self.epoch, index)) for index in super().__iter__())


def mix(*numbers: int) -> int:
    """Return one seed made of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def prepare(args: Namespace) -> tuple[Training, Path | None]:
    """Return what is to be trained, and the checkpoint to go on from; fill in the options.

    Raises:
        CommandError, ImageError, WeightsError: options, images and weights do not fit each other.
    """
    complete(args)
    size = args.image_size
    val = LabelledImages(args.data / "val", v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size))
    augment = v2.RandomResizedCrop(size, scale=(SMALLEST_CROP, 1)), v2.RandomHorizontalFlip()
    train = val if args.evaluate else LabelledImages(args.data / "train", *augment)
    check_folders(args, train, val)
    torch.manual_seed(args.seed)
    network = build_network(args, val.classes).to(memory_format=torch.channels_last)
    if args.compile:
        network.compile()  # in place: the weights keep their names
    module = Training(network, train, val, args)
    return module, None if args.evaluate else find_checkpoint(args, val.classes)


def run(args: Namespace) -> None:
    """Train or evaluate as the options say."""
    module, checkpoint = prepare(args)
    classes = module.val_images.classes
    ddp = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    bar = [TQDMProgressBar(refresh_rate=10)] if sys.stdout.isatty() else []
    trainer = Trainer(
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        devices=args.devices,
        num_nodes=args.nodes,
        strategy=ddp if args.processes > 1 else "auto",
        precision=args.precision,
        max_epochs=args.epochs,
        plugins=[AtomicCheckpoints()],
        callbacks=[Record(args, classes), *bar],
        enable_progress_bar=bool(bar),
        enable_checkpointing=False,  # Record saves
        enable_model_summary=False,
        logger=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        benchmark=True,
    )
    if not args.evaluate:
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
        return
    [result] = trainer.validate(module, verbose=False)
    module.print(
        f"top-1 {result['val_top1']:.3f} %, top-{min(5, len(classes))} {result['val_top5']:.3f} % "
        f"of {len(module.val_images):,} images"
    )


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
    except (CommandError, ImageError, WeightsError, OSError) as error:
        return rank or parser.error(str(error))
    except (KeyboardInterrupt, SystemExit):  # Lightning turns one into the other
        return rank or parser.error("interrupted: --resume goes on after the last finished epoch")
    except RuntimeError as error:
        if "gloo" not in str(error) and "DataLoader worker (pid" not in str(error):
            raise
        return rank or parser.error("another process of this run has stopped")
    return 0


if __name__ == "__main__":
    reuse_memory()
    sys.exit(main())
