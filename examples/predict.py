"""Classify photographs.

python -m examples.predict photo.jpg
python -m examples.predict --model alexnet --top 3 --json holiday/ cat.png
python -m examples.predict --weights run/model.pt photo.jpg
"""

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from examples.device import find_device
from examples.images import ImageError, find_images, normalize, read_image, val_transform
from examples.memory import reuse_memory
from examples.weights import Classifier, WeightsError, load_file, load_official


@dataclass(frozen=True)
class Config:
    """Print the likeliest classes of each image."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Images, and folders of images."""
    model: Literal["alexnet", "resnet18"] | None = None
    """Network. Default: that of --weights, or resnet18."""
    weights: Path | None = None
    """File of weights. Default: the official ImageNet weights."""
    top: int = 5
    """Number of classes to print."""
    json: bool = False
    """Print one JSON object per image."""

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Any device of PyTorch."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the network's convolutions and matrix products."""
    batch_size: int = 32
    """Number of images to classify at a time."""


def check_options(config: Config) -> None:
    """Stop with one line where an option has a value that makes no sense."""
    if not config.paths:
        sys.exit("error: give an image or a folder")
    if config.top < 1 or config.batch_size < 1:
        sys.exit("error: --top and --batch-size must be at least 1")


@dataclass(frozen=True)
class Picture:
    """A file that was read; `pixels` is uint8 (3, H, W)."""

    path: Path
    pixels: Tensor


@dataclass(frozen=True)
class Prediction:
    """A class, and the probability that a picture shows it."""

    name: str
    index: int
    probability: float


@dataclass(frozen=True)
class Result:
    """The likeliest classes of a picture, the likeliest first."""

    path: Path
    predictions: list[Prediction]

    def as_text(self) -> str:
        rows = [f"{100 * row.probability:7.2f} %  {row.name}" for row in self.predictions]
        return "\n".join([str(self.path), *rows])

    def as_json(self) -> str:
        rows = [
            {"class": row.name, "index": row.index, "probability": row.probability}
            for row in self.predictions
        ]
        return json.dumps({"file": str(self.path), "predictions": rows})


def find_files(paths: tuple[Path, ...]) -> tuple[list[Path], list[ImageError], int]:
    """Return the files, the folders that cannot be used, and the number of files ignored.

    Of a folder only the images are returned; a file that is given itself is never ignored.
    """
    files: list[Path] = []
    errors: list[ImageError] = []
    ignored = 0
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        try:
            images, others = find_images(path)
        except ImageError as error:
            errors.append(error)
            continue
        if not images:
            errors.append(ImageError(f"{path}: no images in this folder"))
        files += images
        ignored += others
    return files, errors, ignored


def read_batches(
    pool: ThreadPoolExecutor, files: list[Path], size: int, batch_size: int
) -> Iterator[list[Picture | ImageError]]:
    """Yield the files in batches, each as a picture (3, size, size) or as what is wrong with it.

    While the caller works on a batch, the threads of the pool read the next one. Threads are
    enough, since Pillow decodes and resizes outside of Python's global lock.
    """
    transform = val_transform(size)

    def read(path: Path) -> Picture | ImageError:
        try:
            return Picture(path, read_image(path, transform, size))
        except ImageError as error:
            return error

    reading = pool.map(read, files[:batch_size])
    for start in range(batch_size, len(files) + batch_size, batch_size):
        reading_next = pool.map(read, files[start : start + batch_size])
        yield list(reading)
        reading = reading_next


@torch.inference_mode()
def classify(
    network: nn.Module, pictures: list[Picture], device: torch.device, precision: str
) -> Tensor:
    """Return the probabilities (N, num_classes) of the classes, on the CPU."""
    dtype = getattr(torch, precision)
    images = torch.stack([picture.pixels for picture in pictures])
    images = images.to(device, memory_format=torch.channels_last)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        logits = network(normalize(images))
    probabilities: Tensor = logits.float().softmax(dim=1)
    return probabilities.cpu()


def likeliest(probabilities: Tensor, classes: list[str], top: int) -> list[Prediction]:
    """Return the `top` classes with the highest probabilities (num_classes,)."""
    values, indices = probabilities.topk(min(top, len(classes)))
    return [
        Prediction(classes[index], index, value)
        for value, index in zip(values.tolist(), indices.tolist(), strict=True)
    ]


def load_classifier(config: Config) -> Classifier:
    """Return the network that the options name, with its weights and classes."""
    if config.weights is None:
        return load_official(config.model or "resnet18")
    return load_file(config.weights, config.model)


def report(errors: list[ImageError]) -> None:
    """Print what is wrong with files or folders."""
    for error in errors:
        print(f"error: {error}", file=sys.stderr)


def predict(config: Config) -> bool:
    """Print the result of each file as it comes; return whether all files were classified."""
    device = find_device(config.device)
    classifier = load_classifier(config)
    network = fuse(classifier.network.eval()).to(device).to(memory_format=torch.channels_last)

    files, errors, ignored = find_files(config.paths)
    report(errors)
    complete = not errors
    if ignored:
        print(f"ignored {ignored} files that are not images", file=sys.stderr)

    pool = ThreadPoolExecutor()
    try:
        for batch in read_batches(pool, files, classifier.image_size, config.batch_size):
            pictures = [item for item in batch if isinstance(item, Picture)]
            errors = [item for item in batch if isinstance(item, ImageError)]
            report(errors)
            complete = complete and not errors
            if not pictures:
                continue
            probabilities = classify(network, pictures, device, config.precision)
            for picture, row in zip(pictures, probabilities, strict=True):
                result = Result(picture.path, likeliest(row, classifier.classes, config.top))
                print(result.as_json() if config.json else result.as_text(), flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C no more files are read
    return complete


def main(arguments: list[str] | None = None) -> None:
    config = tyro.cli(
        Config,
        prog="python -m examples.predict",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    check_options(config)
    reuse_memory()
    try:
        complete = predict(config)
    except WeightsError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except BrokenPipeError:  # whatever reads the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        sys.exit(1)
    sys.exit(0 if complete else 1)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore  # names need not be text
    main()
