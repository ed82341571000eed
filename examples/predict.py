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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor
from torch.fx.experimental.optimization import fuse
from tyro.conf import Positional

from examples.command import (
    ImageError,
    Model,
    escape,
    hint,
    print_result,
    require,
    run,
)
from examples.device import DEFAULT_DEVICE, autocast, find_device
from examples.exported import check_exported_options, is_exported, load_exported
from examples.images import find_images, normalize, read_image, val_transform
from examples.weights import load_file, load_official


@dataclass(frozen=True)
class Config:
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

    device: str = DEFAULT_DEVICE
    """PyTorch device, such as cpu, cuda:1 or mps."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the forward pass, which uses autocast. The weights stay in float32."""
    batch_size: int = 32
    """Number of images to classify at once."""


def check_options(config: Config) -> None:
    """Raise `UserError` if an option is invalid."""
    require(config.paths, "give at least one image or folder")
    require(config.top >= 1 and config.batch_size >= 1, "--top and --batch-size must be at least 1")


@dataclass(frozen=True)
class Picture:
    """An image file and its pixels, uint8 (3, H, W)."""

    path: Path
    pixels: Tensor


@dataclass(frozen=True)
class Prediction:
    """A class, and the probability that the picture shows it, from 0 to 1."""

    name: str
    index: int
    probability: float


@dataclass(frozen=True)
class Result:
    """The most likely classes of a picture, in descending order of probability."""

    path: Path
    predictions: list[Prediction]

    def as_text(self) -> str:
        rows = [f"{100 * row.probability:7.2f}%  {escape(row.name)}" for row in self.predictions]
        return "\n".join([escape(str(self.path)), *rows])

    def as_json(self) -> str:
        rows = [
            {"class": row.name, "index": row.index, "probability": row.probability}
            for row in self.predictions
        ]
        return json.dumps({"file": str(self.path), "predictions": rows})


@dataclass(frozen=True)
class Predictor:
    """A network that is ready to classify.

    Attributes:
        classify: a function from pixels, uint8 (N, 3, image_size, image_size), to logits, float32
            (N, num_classes), both on the CPU.
        classes: the class names.
        image_size: height and width of the images in pixels.
    """

    classify: Callable[[Tensor], Tensor]
    classes: list[str]
    image_size: int


def load_predictor(config: Config) -> Predictor:
    """Return the network that the options select.

    Raises:
        UserError: it cannot be loaded, or not be run as the options say.
    """
    if is_exported(config.weights):
        check_exported_options(config.weights, config.device, config.precision)
        exported = load_exported(config.weights, config.model)
        return Predictor(exported.network, exported.classes, exported.image_size)

    device = find_device(config.device)
    if config.weights is None:
        classifier = load_official(config.model or "resnet18")
    else:
        classifier = load_file(config.weights, config.model)
    network = fuse(classifier.network.eval())  # faster: folds batch norm into the convolutions
    network.to(device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def classify(pixels: Tensor) -> Tensor:
        images = pixels.to(device, memory_format=torch.channels_last)
        with autocast(device, config.precision):
            logits: Tensor = network(normalize(images))
        return logits.float().cpu()

    return Predictor(classify, classifier.classes, classifier.image_size)


def find_files(paths: tuple[Path, ...]) -> tuple[list[Path], list[ImageError], int]:
    """Find the files to classify.

    A path to a file is always kept, whatever its name. A folder is searched for images.

    Returns:
        The files, an error for each folder that cannot be used, and the number of other files in
        the folders.
    """
    files: list[Path] = []
    errors: list[ImageError] = []
    ignored = 0
    for path in paths:
        if not os.path.isdir(path):
            files.append(path)
            continue
        images, others, unreadable = find_images(path)
        if not (images or unreadable):
            errors.append(ImageError(f"{path}: no images in this folder"))
        files += images
        ignored += others
        errors += unreadable
    return files, errors, ignored


def read_batches(
    pool: ThreadPoolExecutor, files: list[Path], size: int, batch_size: int
) -> Iterator[list[Picture | ImageError]]:
    """Yield the files in batches: a picture (3, size, size) or an error for each file.

    While the caller classifies a batch, the threads of the pool read the next one. Threads run in
    parallel here, because Python's global interpreter lock (GIL) is released while Pillow decodes
    an image and PyTorch resizes it.
    """
    transform = val_transform(size)

    def read(path: Path) -> Picture | ImageError:
        pixels = read_image(path, transform, size)
        return pixels if isinstance(pixels, ImageError) else Picture(path, pixels)

    reading = pool.map(read, files[:batch_size])
    for start in range(batch_size, len(files) + batch_size, batch_size):
        reading_next = pool.map(read, files[start : start + batch_size])
        yield list(reading)
        reading = reading_next


def most_likely(probabilities: Tensor, classes: list[str], top: int) -> list[Prediction]:
    """Return the `top` classes of one picture whose probabilities (num_classes,) are highest."""
    values, indices = probabilities.topk(min(top, len(classes)))
    return [
        Prediction(classes[index], index, value)
        for value, index in zip(values.tolist(), indices.tolist(), strict=True)
    ]


def print_errors(errors: list[ImageError]) -> None:
    """Print one line on standard error for each file or folder that cannot be used."""
    for error in errors:
        print(f"error: {error}", file=sys.stderr)


def predict(config: Config) -> bool:
    """Print the result of each file, batch by batch. Return whether all files were classified."""
    predictor = load_predictor(config)
    files, errors, ignored = find_files(config.paths)
    print_errors(errors)
    all_classified = not errors
    if ignored:
        print(f"ignored {ignored} files that are not images", file=sys.stderr)

    pool = ThreadPoolExecutor(max_workers=max(2, torch.get_num_threads()))
    try:
        for batch in read_batches(pool, files, predictor.image_size, config.batch_size):
            pictures = [item for item in batch if isinstance(item, Picture)]
            errors = [item for item in batch if isinstance(item, ImageError)]
            print_errors(errors)
            all_classified = all_classified and not errors
            if not pictures:
                continue

            logits = predictor.classify(torch.stack([picture.pixels for picture in pictures]))
            for picture, row in zip(pictures, logits.softmax(dim=1), strict=True):
                result = Result(picture.path, most_likely(row, predictor.classes, config.top))
                print_result(result.as_json() if config.json else result.as_text())
    finally:
        pool.shutdown(cancel_futures=True)  # stop reading files after Ctrl-C
    return all_classified


def main(arguments: list[str]) -> int:
    config = tyro.cli(
        Config,
        prog="python -m examples.predict",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    check_options(config)
    return 0 if predict(config) else 1


if __name__ == "__main__":
    run(main)
