"""Write AlexNet or ResNet-18 to a file that runs faster than PyTorch, and check the file.

python -m examples.export --weights runs/first/model.pt --calibrate DATA/train --out runs/fast
python -m examples.export --format onnx --out runs/onnx
python -m examples.predict --weights runs/fast/resnet18.xml photo.jpg
"""

import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from examples.engines import (
    to_onnx,
    to_onnx_int8,
    to_openvino,
    to_openvino_int8,
)
from examples.lib.checkpoints import load_weights
from examples.lib.classifier import load_exported, sha256, to_strings
from examples.lib.command import Model, UserError, hint, parse, print_result, require, run
from examples.lib.compare import TOLERANCES, relative_error, silence, time_in_turns
from examples.lib.networks import PixelNetwork, as_function, check_image_size
from examples.lib.unlabeled import choose_images, crop_photograph

CALIBRATION_IMAGES = 256
MIN_INT8_AGREEMENT = 0.9
GOOD_INT8_AGREEMENT = 0.99


@dataclass(frozen=True)
class Options:
    """Write AlexNet or ResNet-18 to a file for OpenVINO or ONNX Runtime, and check the file."""

    model: Annotated[Model | None, hint("{alexnet,resnet18}", "default: resnet18")] = None
    """Network to export. With --weights, the network of that file."""
    weights: Annotated[Path | None, hint("FILE", "default: the official ImageNet weights")] = None
    """File with the weights of the network."""
    format: Literal["openvino", "onnx"] = "openvino"
    """Format of the file: OpenVINO's is the fastest on CPUs, ONNX is read by most engines."""
    image_size: Annotated[int | None, hint("INT", "default: as saved in --weights, or 224")] = None
    """Height and width, in pixels, of the images that the file will take."""
    calibrate: Annotated[str | None, hint("FOLDER", "default: stay in float32")] = None
    """Quantize to int8, calibrated on 256 training images of this folder, or of cifar10."""
    seed: int = 0
    """Random seed for the choice of these images."""
    out: Path = Path("runs/export")
    """Folder for the file, which is named after the network."""


def export(options: Options) -> None:
    """Write the network to --out.

    Raises:
        UserError: this is not possible, or the written file is wrong.
    """
    # OpenVINO and NNCF report their use to their makers, unless this package cannot be imported.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    network, metadata = load_weights(options.weights, options.model, options.image_size)
    check_image_size(metadata.name, metadata.image_size)
    pixel_network = PixelNetwork(network).eval()
    int8 = options.calibrate is not None
    if options.calibrate is not None:
        images, unseen = choose_images(
            options.calibrate, metadata, CALIBRATION_IMAGES, options.seed
        )
    else:
        images = unseen = crop_photograph(metadata.image_size, count=32)

    write = write_openvino if options.format == "openvino" else write_onnx
    with unchecked_folder(options.out) as folder:
        with silence():
            tensor = torch.from_numpy(images)
            file = write(pixel_network, tensor, int8, to_strings(metadata), Path(folder))
        report = check(file, pixel_network, unseen, int8)
        parts = sorted(Path(folder).iterdir())
        sizes = [f"{options.out / part.name}: {part.stat().st_size / 1e6:.1f} MB" for part in parts]
        for part in parts:
            part.replace(options.out / part.name)
    print_result("\n".join([*sizes, *report]))


# Writing


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


def check(file: Path, network: PixelNetwork, images: np.ndarray, int8: bool) -> list[str]:
    """Load a written file, and compare its logits and its speed with PyTorch's.

    Returns:
        Lines that tell the results.

    Raises:
        UserError: the logits are wrong.
    """
    exported = load_exported(file).logits
    fused = fuse(network).to(memory_format=torch.channels_last)
    pytorch = as_function(fused, torch.device("cpu"), "float32")

    batches = [images[start : start + 32] for start in range(0, len(images), 32)]
    expected = np.concatenate([pytorch(batch) for batch in batches])
    logits = np.concatenate([exported(batch) for batch in batches])
    agreement = (logits.argmax(1) == expected.argmax(1)).mean()
    error = relative_error(logits, expected)
    tolerance = TOLERANCES["float32"]
    require(
        not int8 or agreement >= MIN_INT8_AGREEMENT,
        f"the exported network is wrong: its most likely class is PyTorch's for "
        f"{agreement:.1%} of {len(images)} images, but must be for {MIN_INT8_AGREEMENT:.0%}",
    )
    require(
        int8 or error <= tolerance,
        f"the exported network is wrong: the relative error of its logits is {error:.2g}, "
        f"but must be at most {tolerance:g}",
    )

    below = f", below {GOOD_INT8_AGREEMENT:.0%}" if agreement < GOOD_INT8_AGREEMENT else ""
    lines = [
        f"agreement of the most likely class with PyTorch: {agreement:.1%} of {len(images)} images"
        f"{below}",
        f"largest relative error of the logits: {error:.2g}",
    ]
    for batch_size in (1, 32):
        batch = np.resize(images, (batch_size, *images.shape[1:]))  # repeats them if there are few
        times = time_in_turns([partial(exported, batch), partial(pytorch, batch)], seconds=1)
        fast, slow = (median(milliseconds) / batch_size for milliseconds in times)
        lines.append(
            f"milliseconds per image at batch {batch_size}: {fast:.2f}, "
            f"in PyTorch {slow:.2f} ({slow / fast:.2f} times as long)"
        )
    return lines


# The command


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


def main(arguments: list[str]) -> None:
    export(parse("export", Options, arguments))


if __name__ == "__main__":
    run(main)
