"""Classify photographs with AlexNet or ResNet-18.

python -m examples.predict docs/cat.jpg
python -m examples.predict --model alexnet --top 3 --json holiday/ cat.png
python -m examples.predict --weights runs/first/model.pt docs/cat.jpg
python -m examples.predict --weights runs/fast/resnet18.xml docs/cat.jpg
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from tyro.conf import Positional

from examples.lib.classifier import Classifier, load_classifier
from examples.lib.command import (
    ImageError,
    Model,
    Precision,
    escape,
    hint,
    parse,
    print_result,
    require,
    run,
    without_garbage_collection,
)
from examples.lib.images import find_images, read_image


@dataclass(frozen=True)
class Options:
    """Print the most likely classes of each image, with their probabilities."""

    paths: Annotated[Positional[tuple[Path, ...]], hint("PATH [PATH ...]", "required")]
    """Image files and folders of images."""
    model: Annotated[Model | None, hint("{alexnet,resnet18}", "default: resnet18")] = None
    """Network to classify with. With --weights, the network of that file."""
    weights: Annotated[Path | None, hint("FILE", "default: the official ImageNet weights")] = None
    """File with the weights of the network, or a file that examples.export wrote."""
    top: int = 5
    """Number of classes to print per image."""
    json: bool = False
    """Print one JSON object per image, on a line of its own."""

    image_size: Annotated[int | None, hint("INT", "default: as saved in --weights, or 224")] = None
    """Height and width, in pixels, of the images that the network sees."""
    device: Annotated[str | None, hint("NAME", "default: cuda if there is a GPU, else cpu")] = None
    """PyTorch device, such as cpu, cuda:1 or mps."""
    precision: Precision = "float32"
    """Precision of the forward pass, which uses autocast. The weights stay in float32."""
    batch_size: int = 32
    """Number of images to classify at once."""


def check_options(options: Options) -> None:
    """Raise `UserError` if an option is invalid."""
    require(options.paths, "give at least one image or folder")
    require(
        options.top >= 1 and options.batch_size >= 1, "--top and --batch-size must be at least 1"
    )
    require(options.image_size is None or options.image_size >= 1, "--image-size must be positive")


@dataclass(frozen=True)
class Prediction:
    """A class, and the probability that the image shows it, from 0 to 1."""

    name: str
    index: int
    probability: float


def predict(options: Options) -> bool:
    """Print the result of each file, batch by batch. Return whether all files were classified."""
    with without_garbage_collection():
        classifier = load_classifier(
            options.weights,
            options.model,
            options.device,
            options.precision,
            options.image_size,
        )
    errors: list[ImageError] = []

    def report(error: ImageError) -> None:
        print(f"error: {error}", file=sys.stderr)
        errors.append(error)

    files = find_files(options.paths, report)
    for batch in read_batches(files, classifier, options.batch_size):
        paths, images = [], []
        for path, reading in batch:
            try:
                images.append(reading.result())
                paths.append(path)
            except ImageError as error:
                report(error)
        if not images:
            continue

        logits = classifier.logits(np.stack(images))
        for path, probabilities in zip(paths, softmax(logits), strict=True):
            predictions = most_likely(probabilities, classifier.classes, options.top)
            print_result((as_json if options.json else as_text)(path, predictions))
    return not errors


def find_files(paths: tuple[Path, ...], on_error: Callable[[ImageError], None]) -> list[Path]:
    """Return the files to classify.

    A path to a file is always kept, whatever its name. A folder is searched for images.
    """
    files: list[Path] = []
    ignored = 0
    for path in paths:
        if not os.path.isdir(path):
            files.append(path)
            continue
        unreadable: list[ImageError] = []
        images, others = find_images(path, unreadable.append)
        if not (images or unreadable):
            unreadable.append(ImageError(f"{path}: no images in this folder"))
        for error in unreadable:
            on_error(error)
        files += images
        ignored += others
    if ignored:
        print(f"ignored {ignored} files that are not images", file=sys.stderr)
    return files


def read_batches(
    files: list[Path], classifier: Classifier, batch_size: int
) -> Iterator[list[tuple[Path, Future[np.ndarray]]]]:
    """Yield the files in batches, each with its pixels (3, size, size), which are being read.

    While the caller classifies a batch, threads read the next one. They run in parallel, because
    Pillow decodes and resizes an image without Python's global interpreter lock (GIL).
    """
    pool = ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 1))

    def start_reading(start: int) -> list[tuple[Path, Future[np.ndarray]]]:
        return [
            (path, pool.submit(read_image, path, classifier.image_size, classifier.resize_size))
            for path in files[start : start + batch_size]
        ]

    try:
        reading = start_reading(0)
        for start in range(batch_size, len(files) + batch_size, batch_size):
            reading_next = start_reading(start)
            yield reading
            reading = reading_next
    finally:
        pool.shutdown(cancel_futures=True)  # stop reading files after Ctrl-C


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits (N, num_classes)."""
    exponentials: np.ndarray = np.exp(logits - logits.max(axis=1, keepdims=True))
    exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials


def most_likely(probabilities: np.ndarray, classes: list[str], top: int) -> list[Prediction]:
    """Return the `top` classes with the highest probabilities (num_classes,), in this order."""
    indices = np.argsort(-probabilities, kind="stable")[:top]
    return [
        Prediction(classes[index], int(index), float(probabilities[index])) for index in indices
    ]


def as_text(path: Path, predictions: list[Prediction]) -> str:
    rows = [f"{100 * row.probability:7.2f}%  {escape(row.name)}" for row in predictions]
    return "\n".join([escape(str(path)), *rows])


def as_json(path: Path, predictions: list[Prediction]) -> str:
    rows = [
        {"class": row.name, "index": row.index, "probability": row.probability}
        for row in predictions
    ]
    return json.dumps({"file": str(path), "predictions": rows})


def main(arguments: list[str]) -> int:
    options = parse("predict", Options, arguments)
    check_options(options)
    return 0 if predict(options) else 1


if __name__ == "__main__":
    run(main)
