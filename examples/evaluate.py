"""Measure the accuracy of AlexNet or ResNet-18 on the validation images of a data set.

python -m examples.evaluate DATA --weights runs/tuned/model.pt
python -m examples.evaluate DATA --weights runs/fast/resnet18.xml
python -m examples.evaluate IMAGENET --pretrained --model alexnet
torchrun --nproc-per-node 4 -m examples.evaluate IMAGENET --pretrained
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.distributed as dist
import tyro
from tyro.conf import Positional

from examples.command import Model, UserError, hint, require, run
from examples.data import check_loader_options, load_images, validation_loader
from examples.device import DEFAULT_DEVICE
from examples.distributed import first_process_first, join_processes, print_once
from examples.engines import Network
from examples.exported import Exported, check_exported_options, is_exported, load_exported
from examples.metrics import accuracy_and_loss, as_classifier, describe_accuracy
from examples.weights import (
    Classifier,
    check_image_size,
    describe_other_classes,
    is_for_classes,
    load_file,
    load_official,
)


@dataclass(frozen=True)
class Config:
    """Print the accuracy and the loss of a network on the validation images of DATA."""

    data: Annotated[Positional[str], hint("DATA", "required")]
    """Folder with val/<class>/, or cifar10, which is downloaded to data/."""
    model: Annotated[Model | None, hint("{alexnet,resnet18}", "default: resnet18")] = None
    """Network to evaluate. With --weights, the network of that file."""
    pretrained: bool = False
    """Evaluate the official ImageNet weights."""
    weights: Annotated[Path | None, hint("FILE", "required without --pretrained")] = None
    """File with the weights of the network, or a file that examples.export wrote."""

    image_size: Annotated[int | None, hint("INT", "default: as saved in --weights, or 224")] = None
    """Height and width of the images in pixels."""
    batch_size: int = 64
    """Number of images to classify at once, in total over all processes."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the forward pass, which uses autocast. The weights stay in float32."""
    device: str = DEFAULT_DEVICE
    """PyTorch device, such as cpu, cuda:1 or mps."""
    workers: Annotated[int | None, hint("INT", "default: one for each CPU core, at most 16")] = None
    """Processes that read images, for each evaluating process. They do not affect the result."""


def check_options(config: Config) -> None:
    """Raise `UserError` if an option is invalid."""
    check_loader_options(config.batch_size, config.workers, config.image_size)
    require(
        config.pretrained != (config.weights is not None),
        "give either --weights FILE or --pretrained",
    )


def load(config: Config) -> Classifier | Exported:
    """Return the network that the options select."""
    if is_exported(config.weights):
        check_exported_options(config.weights, config.device, config.precision)
        exported = load_exported(config.weights, config.model)
        require(
            config.image_size in (None, exported.image_size),
            f"--image-size {config.image_size}: {config.weights} is for images of "
            f"{exported.image_size} x {exported.image_size} pixels",
        )
        return exported
    if config.weights is not None:
        return load_file(config.weights, config.model)
    with first_process_first():
        return load_official(config.model or "resnet18")


def evaluate(config: Config) -> None:
    """Print the accuracy and loss of the weights on the validation images."""
    device = join_processes("cpu" if is_exported(config.weights) else config.device)
    found = load(config)
    image_size = config.image_size or found.image_size
    check_image_size(found.name, image_size)
    images = load_images(config.data, image_size, val_only=True)
    if not is_for_classes(found, images.classes):
        raise UserError(describe_other_classes(found, images.classes, config.data))

    classify = ready_to_classify(found, device, config.precision)
    loader = validation_loader(images.val, config.batch_size, config.workers, device)
    row = accuracy_and_loss(classify, loader, device)
    accuracy = describe_accuracy(row, len(images.classes), digits=3)
    print_once(f"{accuracy}, loss {row['val_loss']:.3f}: {len(images.val):,} images")
    if dist.is_initialized():  # not after an error: it would wait for the other processes
        dist.destroy_process_group()


def ready_to_classify(
    found: Classifier | Exported, device: torch.device, precision: str
) -> Network:
    """Return the network as a function from pixels to logits."""
    if isinstance(found, Exported):
        return found.network
    network = found.network.to(device).to(memory_format=torch.channels_last)
    return as_classifier(network, device, precision)


def main(arguments: list[str]) -> None:
    config = tyro.cli(
        Config,
        prog="python -m examples.evaluate",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    check_options(config)
    evaluate(config)


if __name__ == "__main__":
    run(main)
