"""Load a network that `examples.export` wrote: an OpenVINO or ONNX file in the place of weights.

No code in such a file is run.
"""

import hashlib
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from examples.command import UserError, WeightsError
from examples.device import DEFAULT_DEVICE
from examples.engines import Network, in_openvino, onnx_session

ENGINES = {".xml": "openvino", ".onnx": "onnxruntime"}  # the package that runs a file
METADATA = ("network", "classes", "classes_known", "image_size")  # written beside the network


@dataclass(frozen=True)
class Exported:
    """A network from an exported file, and what is needed to use it.

    Attributes:
        name: "alexnet" or "resnet18".
        network: a function from RGB pixels, uint8 (N, 3, image_size, image_size), to logits,
            float32 (N, num_classes). It normalizes the pixels itself, and runs on the CPU.
        classes: the class names.
        classes_known: whether the names come from the weights, so that they can be compared with
            those of a data set.
        image_size: height and width of the images in pixels.
    """

    name: str
    network: Network
    classes: list[str]
    classes_known: bool
    image_size: int


def is_exported(path: str | Path | None) -> bool:
    """Return whether a file is an exported network, by its extension."""
    return path is not None and Path(path).suffix in ENGINES


def check_exported_options(path: str | Path, device: str, precision: str) -> None:
    """Refuse --device and --precision, which an exported file does not take.

    Raises:
        UserError: one of them is not its default.
    """
    if device not in ("cpu", DEFAULT_DEVICE):
        raise UserError(f"--device {device}: {path} runs on the CPU only")
    if precision != "float32":
        raise UserError(
            f"--precision {precision}: the precision of {path} was chosen when it was exported"
        )


def load_exported(path: str | Path, name: str | None = None) -> Exported:
    """Load a file that `examples.export` wrote. An .xml file needs the .bin file beside it.

    Args:
        path: a file for which `is_exported` returns True.
        name: the network that the file must contain, "alexnet" or "resnet18". None: either.

    Raises:
        WeightsError: the file cannot be read, holds another network, or the package that runs it is
            not installed.
    """
    path = Path(path)
    engine = ENGINES[path.suffix]
    if not find_spec(engine):
        raise WeightsError(f"{path} needs another package: pip install {engine}")
    load = load_openvino if engine == "openvino" else load_onnx
    try:
        network, inputs, metadata = load(path)
    except OSError as error:
        raise WeightsError(f"{error.filename}: {error.strerror}") from error
    except Exception as error:  # each engine has exceptions of its own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsError(f"{path} is damaged or cannot be used ({lines[-1].strip()})") from error

    if metadata.keys() != set(METADATA):
        raise WeightsError(
            f"{path} was not written by examples.export: its inputs are {', '.join(inputs)}"
        )
    if name not in (None, metadata["network"]):
        raise WeightsError(
            f"{path} holds {metadata['network']}, not {name}: use --model {metadata['network']}"
        )
    return Exported(
        name=metadata["network"],
        network=network,
        classes=json.loads(metadata["classes"]),
        classes_known=json.loads(metadata["classes_known"]),
        image_size=int(metadata["image_size"]),
    )


def load_openvino(path: Path) -> tuple[Network, list[str], dict[str, str]]:
    """Return the network in an .xml file, a description of each input, and the metadata."""
    import openvino

    weights = path.with_suffix(".bin")
    for file in (path, weights):
        file.open("rb").close()  # raises the usual error if the file cannot be read
    model = openvino.Core().read_model(path)
    if model.has_rt_info("sha256") and model.get_rt_info("sha256").value != sha256(weights):
        raise ValueError(f"{weights.name} is not the file that was written with it")
    inputs = [
        f"{node.any_name} {node.element_type.get_type_name()} {node.partial_shape}"
        for node in model.inputs
    ]
    metadata = {key: model.get_rt_info(key).value for key in METADATA if model.has_rt_info(key)}
    return in_openvino(model), inputs, metadata


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_onnx(path: Path) -> tuple[Network, list[str], dict[str, str]]:
    """Return the network in an .onnx file, a description of each input, and the metadata."""
    path.open("rb").close()  # raises the usual error if the file cannot be read
    session = onnx_session(path)
    inputs = [f"{node.name} {node.type} {node.shape}" for node in session.get_inputs()]
    found = session.get_modelmeta().custom_metadata_map
    metadata = {key: found[key] for key in METADATA if key in found}

    def network(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return network, inputs, metadata
