"""Build a network from torchvision's official weights, or from a file.

A file may be a state_dict or the checkpoint of a training run, and its tensors may have the names
of this project, torchvision or timm. Whatever a file holds, none of its code is run.
"""

import contextlib
import hashlib
import http.client
import pickle
import pickletools
import re
import sys
import textwrap
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import safetensors.torch
import torch
import torchvision
from torch import Tensor

from alexnet import AlexNet
from resnet18 import ResNet18

MODELS: dict[str, type[AlexNet] | type[ResNet18]] = {"alexnet": AlexNet, "resnet18": ResNet18}
OFFICIAL = {name: torchvision.models.get_model_weights(name)["IMAGENET1K_V1"] for name in MODELS}

# The weights of the first and of the last layer, by which a network is known. AlexNet's are in the
# names of this project and of torchvision.
LANDMARKS = [
    ("resnet18", "conv1.weight", "fc.weight"),
    ("alexnet", "conv1.weight", "fc3.weight"),
    ("alexnet", "features.0.weight", "classifier.6.weight"),
]

# Where training scripts keep the weights, the likeliest first; None: not under any key.
USUAL_KEYS = [None, "state_dict", "model_state_dict", "model", "network", "net"]


class WeightsError(Exception):
    """Weights cannot be used. The message is one line for the user."""


@dataclass(frozen=True)
class Classifier:
    """A network with what is needed to use it."""

    name: str
    network: AlexNet | ResNet18
    classes: list[str]  # ImageNet's or indices, where the weights do not name them
    classes_known: bool
    image_size: int


@dataclass(frozen=True)
class Weights:
    """The weights of one network, as they were found in a checkpoint."""

    name: str
    key: str | None  # None: the checkpoint itself is the state_dict
    prefix: str  # of the names in the checkpoint
    state_dict: dict[str, Tensor]  # names without the prefix

    @property
    def place(self) -> str:
        parts = [f'"{part}"' for part in (self.prefix, self.key) if part]
        return " in ".join(parts) or "the top level"


def load_official(name: str) -> Classifier:
    """Build a network with torchvision's ImageNet weights, which are downloaded once.

    Raises:
        WeightsError: the weights cannot be downloaded, or their file is damaged.
    """
    url = OFFICIAL[name].url
    file = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    try:
        # PyTorch compares the hash of a download, but not that of a file which is already there.
        if file.exists() and not has_hash_of_its_name(file):
            raise WeightsError(f"{file} is damaged: delete it, and it is downloaded again")
        with contextlib.redirect_stdout(sys.stderr):  # "Downloading: …" is not a result
            state_dict = OFFICIAL[name].get_state_dict(
                model_dir=str(file.parent),
                check_hash=True,
                weights_only=True,
                map_location="cpu",
            )
    except (OSError, http.client.HTTPException, RuntimeError) as error:  # RuntimeError: the hash
        raise WeightsError(
            f"no official weights ({error}): put {url} at {file}, set TORCH_HOME to a folder for "
            "downloads, or give --weights"
        ) from error
    return Classifier(
        name=name,
        network=MODELS[name].from_state_dict(state_dict),
        classes=OFFICIAL[name].meta["categories"],
        classes_known=False,
        image_size=224,
    )


def has_hash_of_its_name(file: Path) -> bool:
    """Return whether the SHA-256 of name-<hash>.pth begins with that hash."""
    return hashlib.sha256(file.read_bytes()).hexdigest().startswith(file.stem.split("-")[-1])


def load_file(path: str | Path, name: str | None = None) -> Classifier:
    """Build the network whose weights a file holds.

    The state_dict may be under a key (`state_dict`, `model`, …), and its names may have a prefix
    (`module.`, `_orig_mod.`, `model.`, …). Of several networks, averaged weights (EMA) are taken,
    as in timm, else those under the most usual key; a note on standard error says so. Where neither
    decides, the file is refused.

    Tensors without the prefix (of a loss, of a metric) are ignored, with a note. Those with it must
    be the network's and no others: a ResNet-34 has all the tensors of a ResNet-18, and more.

    Args:
        path: a file of torch.save, or of safetensors if it is named so.
        name: the network that it has to be. Default: any.

    Raises:
        WeightsError: the file cannot be read, or does not hold such a network.
    """
    saved = read_checkpoint(path)
    try:
        candidates = find_weights(saved)
        if not candidates:
            raise WeightsError(describe(saved))
        if name is not None:
            candidates = of_network(name, candidates)
        weights = choose(candidates)
        network = build(weights)
        num_classes = (network.fc3 if isinstance(network, AlexNet) else network.fc).out_features
        names = class_names(saved, num_classes)
        image_size = saved.get("image_size", 224)
        if not isinstance(image_size, int) or image_size < 1:
            raise WeightsError(
                f"holds the image size {image_size!r}, which is not a side in pixels"
            )
    except WeightsError as error:
        raise WeightsError(f"{path} {error}") from error

    for note in notes(weights, candidates, saved):
        print(f"note: {path} {note}", file=sys.stderr)
    return Classifier(
        name=weights.name,
        network=network,
        classes=names or default_class_names(num_classes),
        classes_known=names is not None,
        image_size=image_size,
    )


def class_names(saved: Mapping[str, Any], num_classes: int) -> list[str] | None:
    """Return the names of the classes in a checkpoint, or None."""
    names = saved.get("classes")
    if not isinstance(names, list):  # other scripts may keep something else under this key
        return None
    if len(names) != num_classes:
        raise WeightsError(f"holds {len(names)} names for {num_classes} classes")
    return [str(name) for name in names]


def default_class_names(num_classes: int) -> list[str]:
    """Return ImageNet's names for 1,000 classes, else indices."""
    if num_classes == 1000:
        return list(OFFICIAL["resnet18"].meta["categories"])
    return [str(index) for index in range(num_classes)]


def find_weights(saved: Any) -> list[Weights]:
    """Return the weights of every AlexNet and ResNet-18 in a checkpoint, if only by their names."""
    found = []
    for key, tensors in find_state_dicts(saved):
        for name, first, last in LANDMARKS:
            for tensor_name in tensors:
                prefix = tensor_name.removesuffix(last)
                is_last = tensor_name == last or tensor_name.endswith(f".{last}")
                if is_last and prefix + first in tensors:
                    found.append(Weights(name, key, prefix, take_off_prefix(prefix, tensors)))
    return found


def find_state_dicts(saved: Any) -> Iterator[tuple[str | None, dict[str, Tensor]]]:
    """Yield the named tensors of a checkpoint and of each mapping in it, and the mapping's key."""
    if not isinstance(saved, Mapping):
        return
    for key, value in [(None, saved), *saved.items()]:
        if isinstance(value, Mapping):
            tensors = {
                # PyTorch's ImageNet example trains AlexNet with only its features in DataParallel.
                name.replace("features.module.", "features."): tensor
                for name, tensor in value.items()
                if isinstance(name, str) and isinstance(tensor, Tensor)
            }
            if tensors:
                yield key, tensors


def take_off_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, under the rest of their names."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def of_network(name: str, candidates: list[Weights]) -> list[Weights]:
    """Return the candidates for one of the two networks."""
    others = [weights.name for weights in candidates if weights.name != name]
    if len(others) == len(candidates):
        raise WeightsError(f"holds {others[0]}, not {name}: use --model {others[0]}")
    return [weights for weights in candidates if weights.name == name]


def choose(candidates: list[Weights]) -> Weights:
    """Return the averaged weights if there are any, else those under the most usual key."""

    def rank(weights: Weights) -> tuple[bool, int]:
        is_usual = weights.key in USUAL_KEYS
        position = USUAL_KEYS.index(weights.key) if is_usual else len(USUAL_KEYS)
        return not is_averaged(weights), position

    best, *others = sorted(candidates, key=rank)
    if others and rank(others[0]) == rank(best):
        raise WeightsError(
            f"holds weights under {best.place} and under {others[0].place}, and nothing tells "
            "which are wanted: save the state_dict of one"
        )
    return best


def is_averaged(weights: Weights) -> bool:
    """Return whether weights are under a key or prefix like state_dict_ema or ema_model."""
    return "ema" in re.split(r"[._]", f"{weights.key}.{weights.prefix}")


def build(weights: Weights) -> AlexNet | ResNet18:
    """Build the network, for images of three channels."""
    model = MODELS[weights.name]
    try:
        network = model.from_state_dict(weights.state_dict)
    except (IndexError, RuntimeError) as error:  # IndexError: too few dimensions
        reason = textwrap.shorten(str(error), 300)
        raise WeightsError(f"does not fit {model.__name__}: {reason}") from error

    if network.conv1.in_channels != 3:
        raise WeightsError(f"is for images of {network.conv1.in_channels} channels, not 3")
    for name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise WeightsError(f"holds values that are not finite, in {name}")
    return network


def notes(weights: Weights, candidates: list[Weights], saved: Any) -> Iterator[str]:
    """Say what a checkpoint holds besides the weights that were taken."""
    others = [other.place for other in candidates if other is not weights]
    if others:
        yield f"holds several networks: using {weights.place}, not {' or '.join(others)}"

    prefixes = tuple(other.prefix for other in candidates if other.key == weights.key)
    tensors = dict(find_state_dicts(saved))[weights.key]
    ignored = [name for name in tensors if not name.startswith(prefixes)]
    if ignored:
        yield f"ignored: {enumerate_names(ignored)}"


def describe(saved: Any) -> str:
    """Say what a checkpoint holds in which no network was found."""
    values = list(saved.values()) if isinstance(saved, Mapping) else [saved]
    whole = [type(value).__name__ for value in values if isinstance(value, Ignored)]
    names = [name for _, tensors in find_state_dicts(saved) for name in tensors]
    if names:
        wanted = [f"{first} with {last} ({name})" for name, first, last in LANDMARKS]
        return f"holds {enumerate_names(names)}, but no {', no '.join(wanted)}"
    if whole:
        return (
            f"holds an object of {', '.join(whole)}, which cannot be read without running code: "
            "save the model's state_dict(), not the model"
        )
    if isinstance(saved, Mapping):
        keys = textwrap.shorten(", ".join(map(str, saved)), 200)
        return f"holds no tensors with names (its keys: {keys or 'none'})"
    return f"holds no tensors with names, but an object of type {type(saved).__name__}"


def enumerate_names(names: list[str]) -> str:
    """Return the number of some tensors, with the names of the first and the last."""
    if len(names) == 1:
        return f"the tensor {names[0]}"
    return f"{len(names)} tensors ({names[0]} … {names[-1]})"


def read_checkpoint(path: str | Path) -> Any:
    """Return what torch.save or safetensors wrote to a file, with all tensors on the CPU.

    No code in the file is run: objects of classes that torch.load does not know are replaced by
    objects of `Ignored`.

    Raises:
        WeightsError: the file cannot be read, is damaged or holds what cannot be replaced. Damaged
            values are found by checksums, which safetensors and PyTorch before 1.6 do not write.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error

    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise WeightsError(f"{path} is damaged or not a safetensors file ({error})") from error
    if start.startswith(b"PK") or zipfile.is_zipfile(path):
        check_archive(path)
        return load_data(path, unknown_classes(path))
    if start.startswith(pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)):
        return load_data(path, unknown_classes_before_1_6(path))
    raise WeightsError(f"{path} was not written by torch.save: it begins with {start!r}")


def check_archive(path: Path) -> None:
    """Raise where a zip file is damaged or not of torch.save; torch.load reads no checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            names = {PurePosixPath(name).name for name in archive.namelist()}
    except Exception as error:  # damaged bytes may raise anything
        raise WeightsError(f"{path} is damaged or incomplete ({error})") from error
    if damaged:
        raise WeightsError(f"{path} is damaged: the checksum of {damaged!r} is wrong")
    if "data.pkl" not in names or "constants.pkl" in names:
        raise WeightsError(f"{path} was not written by torch.save, but may be a TorchScript file")


def unknown_classes(path: Path) -> list[str]:
    """Return the names of the classes in a file of torch.save that torch.load does not know."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, ValueError) as error:
        raise WeightsError(f"{path} is damaged") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} cannot be read without running code: save it without a pickle_protocol"
        ) from error


def unknown_classes_before_1_6(path: Path) -> list[str]:
    """Return the same for a file in the format of PyTorch before 1.6, which is no zip file."""
    names = set()
    try:
        with path.open("rb") as file:
            for _ in range(4):  # two numbers, the kind of machine, and what was saved
                for opcode, argument, _ in pickletools.genops(file):
                    if opcode.name == "GLOBAL":  # "module name"
                        names.add(str(argument).replace(" ", "."))
    except Exception as error:  # damaged bytes may raise anything
        raise WeightsError(f"{path} is damaged") from error
    known = ("torch.", "collections.OrderedDict")
    return [name for name in names if not name.startswith(known)]


def load_data(path: Path, unknown: list[str]) -> Any:
    """Return what torch.save wrote, with `Ignored` in place of the unknown classes."""
    try:
        stand_ins: list[Any] = [(type(name, (Ignored,), {}), name) for name in unknown]
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes may raise anything
        if not unknown:
            raise WeightsError(f"{path} is damaged") from error
        names = textwrap.shorten(", ".join(sorted(unknown)), 200)
        raise WeightsError(
            f"{path} is damaged or cannot be read without running code: it refers to {names}. If "
            "you trust it, load it with weights_only=False and save only its state_dict"
        ) from error


class Ignored:
    """An object in a checkpoint whose class is not known to torch.load. It keeps nothing."""

    def __new__(cls, *arguments: Any) -> "Ignored":
        return super().__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass
