"""Build a network from torchvision's official weights or from a file of weights.

The file may be a state_dict or the checkpoint of a training run, of this project or another, in the
names of this project, torchvision or timm. No code in a file is ever run.
"""

import contextlib
import hashlib
import sys
import textwrap
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
from torch import Tensor

from alexnet import AlexNet
from resnet18 import ResNet18

MODELS: dict[str, type[AlexNet] | type[ResNet18]] = {"alexnet": AlexNet, "resnet18": ResNet18}
OFFICIAL = {name: torchvision.models.get_model_weights(name)["IMAGENET1K_V1"] for name in MODELS}

# The weights of the last layer, in the names of this project and of torchvision.
LAST_LAYER = {"fc3.weight": "alexnet", "classifier.6.weight": "alexnet", "fc.weight": "resnet18"}

# Where training scripts keep the weights: the first that a file has is taken. Averaged weights
# (EMA) come first: they are what timm and torchvision evaluate and publish.
USUAL_KEYS = [
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model_state_dict",
    "model",
    "network",
    "net",
]


class WeightsError(Exception):
    """Weights cannot be used; the message is one line for the user."""


@dataclass(frozen=True)
class Classifier:
    """A network with what is needed to use it."""

    name: str
    network: AlexNet | ResNet18
    classes: list[str]  # ImageNet's or indices, where the weights do not name them
    classes_known: bool
    image_size: int


def load_official(name: str) -> Classifier:
    """Build the network called `name` with torchvision's ImageNet weights, downloaded once.

    Raises:
        WeightsError: the weights cannot be downloaded, or the downloaded file is damaged.
    """
    url = OFFICIAL[name].url
    file = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    try:
        # PyTorch checks the hash of a download, but not that of a file that is already there.
        if file.exists() and not hash_fits(file):
            raise WeightsError(f"{file} is damaged: delete it, and it is downloaded again")
        with contextlib.redirect_stdout(sys.stderr):  # "Downloading: …" is no result
            state_dict = OFFICIAL[name].get_state_dict(
                model_dir=str(file.parent),
                check_hash=True,
                weights_only=True,
                map_location="cpu",
            )
    except (OSError, RuntimeError) as error:  # RuntimeError: the download's hash does not fit
        raise WeightsError(
            f"cannot download {url} ({error}): put that file at {file}, or give --weights"
        ) from error
    return Classifier(
        name=name,
        network=MODELS[name].from_state_dict(state_dict),
        classes=OFFICIAL[name].meta["categories"],
        classes_known=False,
        image_size=224,
    )


def hash_fits(file: Path) -> bool:
    """Whether a file called name-<start of its SHA-256>.pth has that hash."""
    with file.open("rb") as opened:
        digest = hashlib.sha256(opened.read()).hexdigest()
    return digest.startswith(file.stem.rpartition("-")[2])


def load_file(path: str | Path, name: str | None = None) -> Classifier:
    """Build the network whose weights a file holds.

    Args:
        path: a file that torch.save or safetensors wrote.
        name: refuse the weights of any other network.

    Raises:
        WeightsError: the file cannot be read, or does not hold one network of the two.
    """
    saved = read_checkpoint(path)
    key, prefix, found = find_network(path, saved, name)
    state_dict = saved if key is None else saved[key]
    weights = take_off_prefix(state_dict, prefix)
    try:
        network = MODELS[found].from_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        reason = textwrap.shorten(str(error), 300)
        raise WeightsError(f"{path} holds no weights of {found}: {reason}") from error

    channels = network.conv1.in_channels
    if channels != 3:
        raise WeightsError(f"{path} is for images of {channels} channels, not 3")
    num_classes = (network.fc3 if isinstance(network, AlexNet) else network.fc).out_features
    classes = saved.get("classes")
    classes_known = isinstance(classes, list)
    if not isinstance(classes, list):
        imagenet = OFFICIAL[found].meta["categories"]
        classes = imagenet if num_classes == 1000 else range(num_classes)
    if len(classes) != num_classes:
        raise WeightsError(f"{path} names {len(classes)} classes for {num_classes} outputs")
    image_size = saved.get("image_size", 224)
    if not isinstance(image_size, int) or image_size < 1:
        raise WeightsError(f"{path} has an image size of {image_size}")
    return Classifier(
        name=found,
        network=network,
        classes=[str(label) for label in classes],
        classes_known=classes_known,
        image_size=image_size,
    )


def find_state_dicts(saved: Any) -> Iterator[tuple[str | None, Mapping[str, Any]]]:
    """Yield the checkpoint and each value in it that maps names to tensors, with their keys."""
    if isinstance(saved, Mapping):
        for key, value in [(None, saved), *saved.items()]:
            if isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values()):
                yield key, value


def find_network(path: str | Path, saved: Any, name: str | None) -> tuple[str | None, str, str]:
    """Return the key, the prefix and the name of the network that a checkpoint holds."""
    places = []
    for key, state_dict in find_state_dicts(saved):
        for tensor_name in state_dict:
            for last_layer, found in LAST_LAYER.items():
                prefix = str(tensor_name).removesuffix(last_layer)
                if prefix != tensor_name and (not prefix or prefix.endswith(".")):
                    places.append((key, prefix, found))
    if not places:
        raise WeightsError(f"{path} holds no weights of AlexNet or ResNet-18: no {set(LAST_LAYER)}")
    if name is not None and all(found != name for _, _, found in places):
        found = places[0][2]
        raise WeightsError(f"{path} holds {found}, not {name}: use --model {found}")
    for usual in [None, *USUAL_KEYS]:
        for place in places:
            if place[0] == usual:
                return place
    return places[0]


def take_off_prefix(state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {
        name.removeprefix(prefix).replace(".module.", "."): value
        for name, value in state_dict.items()
        if name.startswith(prefix)
    }


class Ignored:
    """Stands for an object of any class that is not PyTorch's: keeps nothing and does nothing."""

    def __new__(cls, *arguments: Any) -> "Ignored":
        return super().__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_checkpoint(path: str | Path) -> Any:
    """Return what torch.save or safetensors wrote to a file, with all tensors on the CPU.

    Objects of classes that are not PyTorch's are replaced by `Ignored`: no code in the file is run.

    Raises:
        WeightsError: the file cannot be read, or is damaged.
    """
    path = Path(path)
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        if zipfile.is_zipfile(path):  # torch.load does not look at the checksums
            with zipfile.ZipFile(path) as archive:
                if archive.testzip():
                    raise WeightsError(f"{path} is damaged")
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        else:
            unknown = []
        standins: list[Any] = []
        for full_name in unknown:
            module, _, name = full_name.rpartition(".")
            standins.append(type(name, (Ignored,), {"__module__": module}))
        with torch.serialization.safe_globals(standins):
            return torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # a file of another kind may raise anything
        raise WeightsError(f"{path} is damaged, or torch.save did not write it") from error
