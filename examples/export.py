"""Write AlexNet or ResNet-18 to a file that runs faster than PyTorch, and check the file.

python -m examples.export --weights runs/first/model.pt --calibrate DATA/train --out runs/fast
python -m examples.export --format onnx --out runs/onnx
python -m examples.predict --weights runs/fast/resnet18.xml photo.jpg
"""

import contextlib
import io
import json
import logging
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2

from examples.command import ImageError, Model, UserError, hint, print_result, require, run
from examples.data import CIFAR10_FOLDER, download_cifar10
from examples.engines import (
    Network,
    channels_last,
    to_onnx,
    to_onnx_int8,
    to_openvino,
    to_openvino_int8,
)
from examples.exported import load_exported, sha256
from examples.images import (
    MEAN,
    STD,
    find_images,
    normalize,
    open_image,
    read_image,
    val_transform,
)
from examples.weights import Classifier, load_file, load_official

PHOTOGRAPH = Path(__file__).parents[1] / "docs" / "cat.jpg"
CALIBRATION_IMAGES = 256
MAX_FLOAT32_ERROR = 1e-3  # correct logits are off by 1e-5
MIN_INT8_AGREEMENT = 0.9


@dataclass(frozen=True)
class Config:
    """Write AlexNet or ResNet-18 to a file for OpenVINO or ONNX Runtime, and check the file."""

    model: Annotated[Model | None, hint("{alexnet,resnet18}", "default: resnet18")] = None
    """Network to export. With --weights, the network of that file."""
    weights: Annotated[Path | None, hint("FILE", "default: the official ImageNet weights")] = None
    """File with the weights of the network."""
    format: Literal["openvino", "onnx"] = "openvino"
    """Format of the file: OpenVINO's is the fastest on CPUs, ONNX is read by most engines."""
    calibrate: Annotated[str | None, hint("FOLDER", "default: stay in float32")] = None
    """Quantize to int8, calibrated on 256 training images of this folder, or of cifar10."""
    seed: int = 0
    """Random seed for the choice of these images."""
    out: Path = Path("runs/export")
    """Folder for the file, which is named after the network."""


class PixelNetwork(nn.Module):
    """A network that takes pixels and normalizes them itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map RGB images, uint8 (N, 3, H, W), to logits (N, num_classes)."""
        logits: Tensor = self.network((images.float() / 255 - self.mean) / self.std)
        return logits


def export(config: Config) -> None:
    """Write the network to --out.

    Raises:
        UserError: this is not possible, or the written file is wrong.
    """
    check_packages(config)
    classifier = load_classifier(config)
    if config.calibrate is not None:
        images = choose_images(config.calibrate, classifier.image_size, config.seed)
    else:
        images = crop_photograph(classifier.image_size, count=32)

    with unchecked_folder(config.out) as folder:
        with silence():
            file = write(config, classifier, images, Path(folder))
        report = check(file, classifier, images, int8=config.calibrate is not None)
        parts = sorted(Path(folder).iterdir())
        sizes = [f"{config.out / part.name}: {part.stat().st_size / 1e6:.1f} MB" for part in parts]
        for part in parts:
            part.replace(config.out / part.name)
    print_result("\n".join([*sizes, *report]))


def load_classifier(config: Config) -> Classifier:
    """Return the network that the options select, with its weights and class names."""
    if config.weights is None:
        return load_official(config.model or "resnet18")
    return load_file(config.weights, config.model)


# Images to calibrate and to compare with


def choose_images(data: str, size: int, seed: int) -> Tensor:
    """Return the center crops of up to 256 random images, uint8 (N, 3, size, size).

    Files that cannot be read are left out, with a note.

    Args:
        data: a folder of images, or "cifar10" for its training images.
        size: height and width of the crops in pixels.
        seed: decides which images are chosen.

    Raises:
        ImageError: a folder cannot be read, or no image.
    """
    if data == "cifar10":
        download_cifar10()
        images = CIFAR10(CIFAR10_FOLDER, train=True, transform=val_transform(size))
        count = min(CALIBRATION_IMAGES, len(images))
        chosen = random.Random(seed).sample(range(len(images)), count)
        return torch.stack([images[index][0] for index in chosen])

    files, _, errors = find_images(Path(data))
    if errors:
        raise errors[0]
    random.Random(seed).shuffle(files)
    transform = val_transform(size)
    crops: list[Tensor] = []
    for file in files:
        if len(crops) == CALIBRATION_IMAGES:
            break
        crop = read_image(file, transform, size)
        if isinstance(crop, ImageError):
            print(f"note: left out {crop}", file=sys.stderr)
        else:
            crops.append(crop)
    if not crops:
        raise ImageError(f"{data}: no images in this folder")
    return torch.stack(crops)


def crop_photograph(size: int, count: int) -> Tensor:
    """Return random crops of the repository's photograph, uint8 (count, 3, size, size)."""
    crop = v2.Compose([v2.PILToTensor(), v2.RandomResizedCrop(size)])
    torch.manual_seed(0)
    with open_image(PHOTOGRAPH) as photograph:
        return torch.stack([crop(photograph) for _ in range(count)])


# Writing


def write(config: Config, classifier: Classifier, images: Tensor, folder: Path) -> Path:
    """Write the network, its class names and its image size to a file, and return its path.

    Args:
        config: the options.
        classifier: the network.
        images: crops, uint8 (N, 3, H, W). They calibrate int8.
        folder: the folder for the file.
    """
    network = PixelNetwork(classifier.network).eval()
    metadata = {
        "network": classifier.name,
        "classes": json.dumps(classifier.classes),
        "classes_known": json.dumps(classifier.classes_known),
        "image_size": str(classifier.image_size),
    }
    write_file = write_openvino if config.format == "openvino" else write_onnx
    return write_file(network, images, config.calibrate is not None, metadata, folder)


def write_openvino(
    network: nn.Module, images: Tensor, int8: bool, metadata: dict[str, str], folder: Path
) -> Path:
    """Write an .xml file, and the weights to a .bin file. The metadata are in the `rt_info`."""
    import openvino

    model = to_openvino_int8(network, images) if int8 else to_openvino(network, images)
    model.reshape([-1, *images.shape[1:]])
    model.output(0).tensor.set_names({"logits"})
    for key, value in metadata.items():
        model.set_rt_info(value, key)
    file = folder / f"{metadata['network']}.xml"
    openvino.save_model(model, file, compress_to_fp16=False)
    # OpenVINO itself does not notice the .bin file of another export beside the .xml file.
    model.set_rt_info(sha256(file.with_suffix(".bin")), "sha256")
    openvino.save_model(model, file, compress_to_fp16=False)
    return file


def write_onnx(
    network: nn.Module, images: Tensor, int8: bool, metadata: dict[str, str], folder: Path
) -> Path:
    """Write an .onnx file. The metadata are in its `metadata_props`."""
    import onnx

    file = to_onnx(network, images, folder / f"{metadata['network']}.onnx")
    if int8:
        to_onnx_int8(file, images).replace(file)
    model = onnx.load(file)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, file)
    return file


# Checking


@torch.inference_mode()
def check(file: Path, classifier: Classifier, images: Tensor, int8: bool) -> list[str]:
    """Load a written file, and compare its logits and its speed with PyTorch's.

    Returns:
        Lines that tell the results.

    Raises:
        UserError: the logits are wrong.
    """
    exported = load_exported(file).network
    network = channels_last(fuse(classifier.network.eval()))

    def pytorch(images: Tensor) -> Tensor:
        return network(normalize(images).to(memory_format=torch.channels_last))

    expected = torch.cat([pytorch(batch) for batch in images.split(32)])
    logits = torch.cat([exported(batch) for batch in images.split(32)])
    agreement = (logits.argmax(1) == expected.argmax(1)).float().mean().item()
    error = ((logits - expected).norm(dim=1) / expected.norm(dim=1)).max().item()
    require(
        not int8 or agreement >= MIN_INT8_AGREEMENT,
        f"the exported network is wrong: its most likely class is PyTorch's for "
        f"{agreement:.1%} of {len(images)} images, but must be for {MIN_INT8_AGREEMENT:.0%}",
    )
    require(
        int8 or error <= MAX_FLOAT32_ERROR,
        f"the exported network is wrong: the relative error of its logits is {error:.2g}, "
        f"but must be at most {MAX_FLOAT32_ERROR:g}",
    )

    lines = [
        f"agreement of the most likely class with PyTorch: {agreement:.1%} of {len(images)} images",
        f"largest relative error of the logits: {error:.2g}",
    ]
    for batch_size in (1, 32):
        fast, slow = milliseconds_per_image([exported, pytorch], images, batch_size)
        lines.append(
            f"milliseconds per image at batch {batch_size}: {fast:.2f}, "
            f"in PyTorch {slow:.2f} ({slow / fast:.2f} times as long)"
        )
    return lines


def milliseconds_per_image(networks: list[Network], images: Tensor, batch_size: int) -> list[float]:
    """Return the median time of each network. The networks take turns."""
    batch = images[torch.arange(batch_size) % len(images)]
    times: list[list[float]] = [[] for _ in networks]
    for network in networks:
        network(batch)  # the first call with a batch size takes longer
    for _ in range(max(5, 40 // batch_size)):
        for network, seconds in zip(networks, times, strict=True):
            start = time.perf_counter()
            network(batch)
            seconds.append(time.perf_counter() - start)
    return [1e3 * statistics.median(seconds) / batch_size for seconds in times]


# The command


def check_packages(config: Config) -> None:
    """Raise `UserError` if a package that the options need is not installed."""
    packages = (
        ["openvino"] if config.format == "openvino" else ["onnx", "onnxscript", "onnxruntime"]
    )
    if config.format == "openvino" and config.calibrate is not None:
        packages.append("nncf")
    missing = [package for package in packages if not find_spec(package)]
    require(not missing, f"this needs other packages: pip install {' '.join(missing)}")


def unchecked_folder(out: Path) -> tempfile.TemporaryDirectory[str]:
    """Create the folder `out`, and in it a folder for the file until it is checked.

    Raises:
        UserError: this is not possible.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".unchecked-", dir=out)
    except OSError as error:
        raise UserError(f"cannot create a folder in {out}: {error.strerror}") from error


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Hide the progress and the warnings of the converters."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def main(arguments: list[str]) -> None:
    export(tyro.cli(Config, prog="python -m examples.export", args=arguments))


if __name__ == "__main__":
    run(main)
