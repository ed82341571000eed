"""Measure the accuracy of AlexNet or ResNet-18 on the validation images of a data set.

python -m examples.evaluate DATA --weights runs/tuned/model.pt
python -m examples.evaluate DATA --weights runs/fast/resnet18.xml
python -m examples.evaluate IMAGENET --pretrained --model alexnet
torchrun --nproc-per-node 4 -m examples.evaluate IMAGENET --pretrained
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from examples.lib.checkpoints import describe_other_classes, is_for_classes
from examples.lib.classifier import load_classifier
from examples.lib.command import Model, Precision, hint, parse, require, run
from examples.lib.data import check_loader_options, load_validation_images, validation_loader
from examples.lib.distributed import (
    find_device,
    join_processes,
    leave_processes,
    print_once,
    rank_0_first,
)
from examples.lib.metrics import accuracy_and_loss, describe_accuracy


@dataclass(frozen=True)
class Options:
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
    precision: Precision = "float32"
    """Precision of the forward pass, which uses autocast. The weights stay in float32."""
    device: Annotated[str | None, hint("NAME", "default: cuda if there is a GPU, else cpu")] = None
    """PyTorch device, such as cpu, cuda:1 or mps."""
    workers: Annotated[int | None, hint("INT", "default: one for each CPU core, at most 16")] = None
    """Processes that read images, for each evaluating process. They do not affect the result."""


def check_options(options: Options) -> None:
    """Raise `UserError` if an option is invalid."""
    check_loader_options(options.batch_size, options.workers, options.image_size)
    require(
        options.pretrained != (options.weights is not None),
        "give either --weights FILE or --pretrained",
    )


def evaluate(options: Options) -> None:
    """Print the accuracy and loss of the weights on the validation images."""
    join_processes(find_device(options.device))
    with rank_0_first():  # it may download the weights
        classifier = load_classifier(
            options.weights,
            options.model,
            options.device,
            options.precision,
            options.image_size,
        )
    images = load_validation_images(options.data, classifier.resize_size)
    require(
        is_for_classes(classifier, images.classes),
        describe_other_classes(classifier, images.classes, options.data),
    )

    loader = validation_loader(
        images,
        classifier.image_size,
        classifier.resize_size,
        options.batch_size,
        options.workers,
    )
    row = accuracy_and_loss(classifier.logits, loader)
    accuracy = describe_accuracy(row, len(images.classes), digits=3)
    print_once(f"{accuracy}, loss {row['val_loss']:.3f}: {len(images):,} images")
    leave_processes()


def main(arguments: list[str]) -> None:
    options = parse("evaluate", Options, arguments)
    check_options(options)
    evaluate(options)


if __name__ == "__main__":
    run(main)
