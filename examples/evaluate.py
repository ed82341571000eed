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

from examples.lib.checkpoints import assumed_order, class_indices, describe_other_classes
from examples.lib.classifier import Classifier, load_classifier
from examples.lib.command import Model, Precision, UserError, hint, parse, require, run
from examples.lib.data import LabeledImages
from examples.lib.distributed import (
    RANK,
    find_device,
    join_processes,
    leave_processes,
    note_once,
    print_once,
    rank_0_first,
)
from examples.lib.loaders import CenterCrops, check_loader_options, validation_loader
from examples.lib.metrics import classify
from examples.lib.report import FILES, describe, write_report
from examples.lib.split import VAL_FRACTION, Part, is_split, load_images


@dataclass(frozen=True)
class Options:
    """Judge a network on the images of DATA: what it gets wrong, and how."""

    data: Annotated[Positional[str], hint("DATA", "required")]
    """Folder with <class>/ or val/<class>/, or cifar10, which is downloaded to data/."""
    model: Annotated[Model | None, hint("{alexnet,resnet18}", "default: resnet18")] = None
    """Network to judge. With --weights, the network of that file."""
    pretrained: bool = False
    """Judge the official ImageNet weights."""
    weights: Annotated[Path | None, hint("FILE", "required without --pretrained")] = None
    """File with the weights of the network, or a file that examples.export wrote."""
    out: Annotated[Path | None, hint("OUT", "default: the folder of --weights")] = None
    """Folder for the tables and pictures. With --pretrained, the default is runs/evaluate-MODEL."""

    part: Annotated[Part | None, hint("{train,val,all}", "default: val, or all")] = None
    """Images to judge. A folder of classes is split as it was to train the weights, into train and
    val. If they were not trained so, the default is all."""
    skip_damaged: bool = False
    """Leave out the files that cannot be used."""
    numeric_order: bool = False
    """Number the classes by the numbers that are their names: 2 before 10. Default: as text."""

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
    """Judge the weights. Print the result, and write the tables and pictures to --out."""
    join_processes(find_device(options.device))
    with rank_0_first():  # it may download the weights
        classifier = load_classifier(
            options.weights,
            options.model,
            options.device,
            options.precision,
            options.image_size,
        )
    images, description = find_images_to_judge(options, classifier)
    indices = class_indices(classifier, images.classes)
    if indices is None:
        raise UserError(describe_other_classes(classifier, images.classes, options.data))
    if not classifier.classes_known:
        note_once(assumed_order(images.classes))

    crops = CenterCrops(images, classifier.image_size, classifier.resize_size)
    predictions = classify(
        lambda pixels: classifier.logits(pixels)[:, indices],
        validation_loader(crops, len(images), options.batch_size, options.workers),
        len(images.classes),
    )
    print_once(f"{options.data}: {description}")
    for line in describe(predictions, images.classes):
        print_once(line)
    out = options.out or default_folder(options, classifier)
    if RANK == 0:
        write_report(out, predictions, images)
    print_once(f"{out}: {', '.join(FILES)}")
    leave_processes()


def find_images_to_judge(options: Options, classifier: Classifier) -> tuple[LabeledImages, str]:
    """Return the images of --part, and which these are, in words."""
    split = is_split(options.data)
    trained_on_split = classifier.val_fraction is not None
    part = options.part or ("val" if trained_on_split or not split else "all")
    (images,), _ = load_images(
        options.data,
        (part,),
        classifier.resize_size,
        classifier.val_fraction or VAL_FRACTION,
        options.skip_damaged,
        options.numeric_order,
        options.workers,
    )
    names = {"train": "the training images", "val": "the validation images", "all": "all images"}
    if not split or part == "all":
        return images, names[part]
    fraction = classifier.val_fraction or VAL_FRACTION
    when = "as to train these weights" if trained_on_split else "these weights were not trained so"
    return images, f"{names[part]}, split with {fraction:g} for validation ({when})"


def default_folder(options: Options, classifier: Classifier) -> Path:
    if options.weights is None:
        return Path("runs", f"evaluate-{classifier.name}")
    return options.weights.parent


def main(arguments: list[str]) -> None:
    options = parse("evaluate", Options, arguments)
    check_options(options)
    evaluate(options)


if __name__ == "__main__":
    run(main)
