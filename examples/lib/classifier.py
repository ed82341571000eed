"""A classifier: a function from pixels to logits, whatever kind of file its weights are in.

PyTorch is imported for weights only. An exported file, of OpenVINO or ONNX, runs without it.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from examples.lib.command import Model, Precision, WeightsError, require

if TYPE_CHECKING:
    import onnxruntime
    import openvino

EXPORTED = (".xml", ".onnx")  # the extensions of the files that examples.export writes
ONE_OUTPUT = (
    "has one output, a sigmoid's, and these commands take the softmax of at least two: train it "
    "with two classes"
)


@dataclass(frozen=True)
class Metadata:
    """What must be known to use a network, beside its weights.

    Attributes:
        name: "alexnet" or "resnet18".
        classes: the class names. If the file has none, ImageNet's names or "0", "1", and so on. An
            empty list: the file has no last layer, and that of the network is zero.
        classes_known: whether the file names its classes, so that they can be compared with those
            of a data set.
        image_size: height and width, in pixels, of the images to use the network on.
        resize_size: the shorter side to which an image is resized before the crop.
        val_fraction: which part of a folder of classes was for validation, by a hash of each image.
            None: the network was not trained on such a folder.
    """

    name: Model
    classes: list[str]
    classes_known: bool
    image_size: int
    resize_size: int
    val_fraction: float | None = None


@dataclass(frozen=True, kw_only=True)
class Classifier(Metadata):
    """A network that is ready to classify.

    Attributes:
        logits: a function from RGB pixels, uint8 (N, 3, image_size, image_size), to logits, float32
            (N, num_classes). It raises `UserError` if they are not finite.
    """

    logits: Callable[[np.ndarray], np.ndarray]


def default_resize_size(image_size: int) -> int:
    """Return the shorter side before the crop. 256 at 224, as torchvision's weights are tested."""
    return round(image_size * 256 / 224)


def load_classifier(
    weights: Path | None,
    model: Model | None = None,
    device: str | None = None,
    precision: Precision = "float32",
    image_size: int | None = None,
) -> Classifier:
    """Return the network whose weights are in a file, or with the official weights.

    Args:
        weights: a checkpoint, or a file that `examples.export` wrote. None: the official weights.
        model: the network that the file must contain. None: either; of the official weights those
            of ResNet-18.
        device: the PyTorch device. None: the GPU, if there is one, or the CPU.
        precision: of the convolutions and matrix products.
        image_size: of the images to classify. None: as the file says, or 224.

    Raises:
        UserError: the weights cannot be loaded, or not be used as the other arguments say.
    """
    if weights is not None and weights.suffix in EXPORTED:
        require(device in (None, "cpu"), f"--device {device}: {weights} runs on the CPU only")
        require(
            precision == "float32",
            f"--precision {precision}: the precision of {weights} was chosen when it was exported",
        )
        classifier = load_exported(weights, model)
        size = classifier.image_size
        require(
            image_size in (None, size),
            f"--image-size {image_size}: {weights} is for images of {size} x {size} pixels",
        )
        return classifier

    import torch
    from torch.fx.experimental.optimization import fuse

    from examples.lib.checkpoints import load_weights
    from examples.lib.distributed import find_device
    from examples.lib.networks import PixelNetwork, as_function, check_image_size

    torch_device = find_device(device)
    network, metadata = load_weights(weights, model, image_size)
    check_image_size(metadata.name, metadata.image_size)
    fused = fuse(PixelNetwork(network).eval())  # faster: folds batch norm into the convolutions
    fused.to(torch_device).to(memory_format=torch.channels_last)
    logits = finite(as_function(fused, torch_device, precision), precision)
    return Classifier(**asdict(metadata), logits=logits)


def finite(
    logits_of: Callable[[np.ndarray], np.ndarray], precision: str
) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function, which now raises `UserError` if a logit is infinite or NaN."""

    def logits(pixels: np.ndarray) -> np.ndarray:
        found = logits_of(pixels)
        require(
            np.isfinite(found).all(),
            f"the logits are not finite in {precision}: the network's values are too large for it",
        )
        return found

    return logits


# Exported files


def load_exported(path: Path, model: Model | None = None) -> Classifier:
    """Load a file that `examples.export` wrote. An .xml file needs the .bin file beside it.

    No code in the file is run.

    Raises:
        WeightsError: the file cannot be read, or holds another network.
        ModuleNotFoundError: the package that runs it is not installed.
    """
    load = load_openvino if path.suffix == ".xml" else load_onnx
    try:
        logits, inputs, strings = load(path)
        metadata = from_strings(strings)
    except ModuleNotFoundError:
        raise
    except OSError as error:
        raise WeightsError(f"{error.filename}: {error.strerror}") from error
    except Exception as error:  # each engine has exceptions of its own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsError(f"{path} is damaged or cannot be used ({lines[-1].strip()})") from error

    if metadata is None:
        raise WeightsError(f"{path} was not written by examples.export: its inputs are {inputs}")
    found = metadata.name
    require(model in (None, found), f"{path} holds {found}, not {model}: use --model {found}")
    require(len(metadata.classes) > 1, f"{path} {ONE_OUTPUT}")
    return Classifier(**asdict(metadata), logits=finite(logits, str(path)))


METADATA_KEYS = (
    *("network", "classes", "classes_known", "image_size", "resize_size", "val_fraction"),
)


def to_strings(metadata: Metadata) -> dict[str, str]:
    """Return what is written beside a network into an exported file."""
    return {
        "network": metadata.name,
        "classes": json.dumps(metadata.classes),
        "classes_known": json.dumps(metadata.classes_known),
        "image_size": str(metadata.image_size),
        "resize_size": str(metadata.resize_size),
        "val_fraction": json.dumps(metadata.val_fraction),
    }


def from_strings(found: dict[str, str]) -> Metadata | None:
    """Return what `to_strings` wrote, or None if it did not write it."""
    if not set(METADATA_KEYS[:4]) <= found.keys():  # earlier versions did not write the others
        return None
    image_size = int(found["image_size"])
    return Metadata(
        name="alexnet" if found["network"] == "alexnet" else "resnet18",
        classes=json.loads(found["classes"]),
        classes_known=json.loads(found["classes_known"]),
        image_size=image_size,
        resize_size=int(found.get("resize_size", default_resize_size(image_size))),
        val_fraction=json.loads(found.get("val_fraction", "null")),
    )


Loaded = tuple[Callable[[np.ndarray], np.ndarray], str, dict[str, str]]


def load_openvino(path: Path) -> Loaded:
    """Return the network in an .xml file, a description of its inputs, and the metadata."""
    import openvino

    weights = path.with_suffix(".bin")
    for file in (path, weights):
        file.open("rb").close()  # raises the usual error if the file cannot be read
    model = openvino.Core().read_model(path)
    keys = (*METADATA_KEYS, "sha256")
    metadata = {key: model.get_rt_info(key).value for key in keys if model.has_rt_info(key)}
    if metadata.get("sha256", sha256(weights)) != sha256(weights):
        raise ValueError(f"{weights.name} is not the file that was written with it")
    inputs = [
        f"{node.any_name} {node.element_type.get_type_name()} {node.partial_shape}"
        for node in model.inputs
    ]
    return run_openvino(model), ", ".join(inputs), metadata


def load_onnx(path: Path) -> Loaded:
    """Return the network in an .onnx file, a description of its inputs, and the metadata."""
    path.open("rb").close()  # raises the usual error if the file cannot be read
    session = onnx_session(path)
    inputs = [f"{node.name} {node.type} {node.shape}" for node in session.get_inputs()]
    metadata = dict(session.get_modelmeta().custom_metadata_map)
    return run_onnx(session), ", ".join(inputs), metadata


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# The engines that run them


def run_openvino(
    model: "openvino.Model | Path", threads: int = 0, precision: str = "f32"
) -> Callable[[np.ndarray], np.ndarray]:
    """Compile an OpenVINO model, or the .xml file of one, for the CPU. Return it as a function.

    Args:
        model: the model, or the path of its .xml file.
        threads: of the CPU. 0: one for each core.
        precision: "f32" or "bf16". Layers that are quantized to int8 stay in int8.
    """
    import openvino

    config: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    network = openvino.compile_model(model, "CPU", config)
    return lambda images: network(np.ascontiguousarray(images))[0]


def onnx_session(path: Path, threads: int = 0) -> "onnxruntime.InferenceSession":
    """Load an ONNX file into ONNX Runtime, for the CPU. Threads: 0 is one for each core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options)


def run_onnx(session: "onnxruntime.InferenceSession") -> Callable[[np.ndarray], np.ndarray]:
    """Return the network in a session as a function."""
    return lambda images: session.run(None, {"images": images})[0]
