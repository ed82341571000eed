"""Load the weights of an AlexNet or a ResNet-18 from a checkpoint, or the official weights.

The checkpoint may be a state_dict or the file of a training run. The parameter names may be those
of this project, torchvision or timm. Code in the file is never run.
"""

import contextlib
import hashlib
import http.client
import pickle
import pickletools
import re
import sys
import textwrap
import unicodedata
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

import alexnet
import resnet18
from examples.lib.classifier import ONE_OUTPUT, Metadata, default_resize_size
from examples.lib.command import Model, WeightsError, escape
from examples.lib.networks import ARCHITECTURES, Network

IMAGENET_CLASSES = Path(__file__).with_name("imagenet_classes.txt")
GIT_LFS_POINTER = b"version https://git-lfs"


def load_weights(
    weights: Path | None,
    model: Model | None = None,
    image_size: int | None = None,
    head_optional: bool = False,
) -> tuple[Network, Metadata]:
    """Return a network in float32, on the CPU and in training mode, and what is known of it.

    Args:
        weights: a file that `read_checkpoint` reads. None: the official weights.
        model: the network that the file must contain. None: either; of the official weights those
            of ResNet-18.
        image_size: height and width of the images in pixels. None: as the file says, or 224.
        head_optional: whether the last layer may be missing, as in a backbone of self-supervised
            learning. It is then filled with zeros, and `classes` is empty.

    Raises:
        WeightsError: the weights cannot be read or downloaded, or are not those of such a network.
    """
    if weights is not None:
        return load_file(weights, model, image_size, head_optional)
    network, metadata = load_official(model or "resnet18")
    if image_size is not None:
        resize_size = default_resize_size(image_size)
        metadata = replace(metadata, image_size=image_size, resize_size=resize_size)
    return network, metadata


# Official weights


def load_official(name: Model) -> tuple[Network, Metadata]:
    """Build a network with torchvision's official ImageNet weights, which are downloaded once.

    Raises:
        WeightsError: the weights cannot be downloaded, or their file is damaged.
    """
    url = {"alexnet": alexnet, "resnet18": resnet18}[name].WEIGHTS_URL
    file = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    try:
        # PyTorch checks the hash of a new download only, not that of a file from an earlier one.
        if file.exists() and not hash_matches_name(file):
            raise WeightsError(f"{file} is damaged: delete it to download it again")
        with contextlib.redirect_stdout(sys.stderr):  # "Downloading: …" is not part of the results
            network = ARCHITECTURES[name].network.from_pretrained()
    except (OSError, http.client.HTTPException, RuntimeError) as error:  # RuntimeError: wrong hash
        raise WeightsError(
            f"cannot get the official weights ({error}): save {url} as {file}, set TORCH_HOME to "
            "a folder for downloads, or use --weights"
        ) from error
    return network, Metadata(
        name=name,
        classes=imagenet_classes(),
        classes_known=False,  # ImageNet's folders have other names: WordNet IDs
        image_size=224,
        resize_size=256,
    )


def hash_matches_name(file: Path) -> bool:
    """Return whether the SHA-256 hash of a file begins with the hash in its name, name-<hash>.pth.

    Official weights are named this way.
    """
    hash_in_name = file.stem.split("-")[-1]
    return hashlib.sha256(file.read_bytes()).hexdigest().startswith(hash_in_name)


def imagenet_classes() -> list[str]:
    return IMAGENET_CLASSES.read_text(encoding="utf-8").splitlines()


# Weights in a file


@dataclass(frozen=True)
class Layout:
    """The parameter names by which a network is recognized, without their common prefix.

    Attributes:
        network: "alexnet" or "resnet18".
        first: the weights of the first layer.
        last: the last weights before the head.
        head: the last layer, which gives the logits.
        hidden: the weights of the linear layers before the head.
    """

    network: Model
    first: str
    last: str
    head: str
    hidden: tuple[str, ...] = ()

    @property
    def features(self) -> int:
        return ARCHITECTURES[self.network].features


LAYOUTS = [
    Layout("resnet18", "conv1.weight", "layer4.1.conv2.weight", "fc"),
    Layout("alexnet", "conv1.weight", "fc2.weight", "fc3", hidden=("fc1.weight", "fc2.weight")),
    Layout(  # torchvision's names
        network="alexnet",
        first="features.0.weight",
        last="classifier.4.weight",
        head="classifier.6",
        hidden=("classifier.1.weight", "classifier.4.weight"),
    ),
]

# What PyTorch's wrappers put into the names of parameters, at any depth.
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

# The keys under which training scripts save the weights, the most likely first. "": no key, the
# checkpoint itself is the state_dict.
USUAL_KEYS = ["", "state_dict", "model_state_dict", "model", "network", "net"]


@dataclass(frozen=True)
class Weights:
    """The weights of one network in a checkpoint.

    Attributes:
        layout: how the parameters are named.
        key: the key of the state_dict, such as "model", or "state.model" if it is two keys deep.
        prefix: what the parameter names in the checkpoint begin with, such as "module.".
        tensors: the weights, by their names without the prefix.
        ignored: the names of the tensors beside them that belong to no network.
    """

    layout: Layout
    key: str
    prefix: str
    tensors: dict[str, Tensor]
    ignored: list[str]

    @property
    def has_head(self) -> bool:
        return f"{self.layout.head}.weight" in self.tensors

    @property
    def is_averaged(self) -> bool:
        """Whether key or prefix mark an exponential moving average: state_dict_ema, ema_model."""
        return "ema" in re.split(r"[._]", f"{self.key}.{self.prefix}")

    def __str__(self) -> str:
        parts = [f'"{part}"' for part in (self.prefix, self.key) if part]
        return " in ".join(parts) or "the top level"


def load_file(
    path: Path, model: Model | None, image_size: int | None, head_optional: bool
) -> tuple[Network, Metadata]:
    """Build the network whose weights are in a file.

    The state_dict may be under keys (`state_dict`, `model`, …), and its parameter names may have a
    prefix (`module.`, `_orig_mod.`, `model.`, …). The tensors whose names have it must be exactly
    those of the network. Otherwise a ResNet-34, which has all tensors of a ResNet-18 and more,
    would be taken for one. Notes on standard error say what else the file holds.

    The arguments are those of `load_weights`.

    Raises:
        WeightsError: the file cannot be read, or does not contain such a network.
    """
    saved = read_checkpoint(path)
    try:
        found = find_weights(saved)
        weights, network = choose_weights(found, model, head_optional)
        classes, classes_known = find_classes(saved, weights)
        if not head_optional and len(classes) == 1:
            raise WeightsError(ONE_OUTPUT)
        saved_size = find_size(saved, "image_size")
        size = image_size or saved_size or 224
        resize_size = find_size(saved, "resize_size") if size == saved_size else None
    except WeightsError as error:
        raise WeightsError(f"{path} {error}") from error

    notes = list(describe_notes(weights, found))
    if not classes_known:
        names = (
            "ImageNet's names" if len(classes) == 1000 else f"the numbers 0 to {len(classes) - 1}"
        )
        notes.append(f"does not name its classes: they get {names}")
    if not (image_size or saved_size):
        notes.append("holds no image size: 224 is assumed (--image-size)")
    for note in notes:
        print(escape(f"note: {path} {note}"), file=sys.stderr)
    return network, Metadata(
        name=weights.layout.network,
        classes=classes,
        classes_known=classes_known,
        image_size=size,
        resize_size=resize_size or default_resize_size(size),
        val_fraction=saved.get("val_fraction"),  # written by examples.train
    )


def find_weights(saved: Any) -> list[Weights]:
    """Find every AlexNet and ResNet-18 in a checkpoint by its parameter names.

    Raises:
        WeightsError: there is none.
    """
    found = []
    for key, tensors in find_state_dicts(saved):
        bodies = find_bodies(tensors)
        prefixes = tuple(prefix for _, prefix in bodies)
        outside = {name: tensors[name] for name in tensors if not name.startswith(prefixes)}
        for layout, prefix in bodies:
            inside = {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }
            weights, ignored = complete(layout, prefix, inside, outside)
            found.append(Weights(layout, key, prefix, weights, ignored))
    if not found:
        raise WeightsError(describe_contents(saved))
    return found


def find_state_dicts(saved: Any, key: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the key and the named tensors of each mapping in a checkpoint, the checkpoint first.

    Raises:
        WeightsError: a tensor is distributed, so that the file may hold one part of it only.
    """
    if not isinstance(saved, Mapping):
        return
    if any(type(value).__name__.endswith("DTensor") for value in saved.values()):
        raise WeightsError("holds DTensors: call full_tensor() on each before they are saved")
    tensors = {
        # PyTorch's ImageNet example wraps only the features of AlexNet in DataParallel.
        name.replace("features.module.", "features."): tensor
        for name, tensor in saved.items()
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }
    unwrapped = {WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
    if len(unwrapped) == len(tensors):  # otherwise it holds a network and the wrapped one
        tensors = unwrapped
    if tensors:
        yield key, tensors
    for name, value in saved.items():
        yield from find_state_dicts(value, f"{key}.{name}".removeprefix("."))


def find_bodies(tensors: Mapping[str, Tensor]) -> list[tuple[Layout, str]]:
    """Return the layout and the prefix of each network, with or without a head."""
    bodies = []
    for layout in LAYOUTS:
        for name in tensors:
            prefix = name.removesuffix(layout.last)
            is_last = name == layout.last or name.endswith(f".{layout.last}")
            if is_last and prefix + layout.first in tensors:
                bodies.append((layout, prefix))
    return bodies


def complete(
    layout: Layout, prefix: str, inside: dict[str, Tensor], outside: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Find the head of a network, if it has another name: it is the only other linear layer near.

    That is, with the same prefix, or else with the longest part of it that any other has.

    Returns:
        The tensors of the network, and the names of those outside that do not belong to it.
    """
    if f"{layout.head}.weight" in inside:
        return inside, list(outside)

    matrices = [
        name for name, tensor in inside.items() if tensor.dim() == 2 and name not in layout.hidden
    ]
    while not matrices and prefix:
        prefix = "".join(re.findall(r"[^.]*\.", prefix)[:-1])  # "model.backbone." → "model."
        matrices = [
            name for name in outside if outside[name].dim() == 2 and name.startswith(prefix)
        ]
    tensors = {**inside, **outside}
    head = {}
    if len(matrices) == 1 and tensors[matrices[0]].shape[1] == layout.features:
        name = matrices[0].removesuffix("weight")
        head = {
            f"{layout.head}.{kind}": tensors[name + kind]
            for kind in ("weight", "bias")
            if name + kind in tensors
        }
        matrices.append(name + "bias")

    # What else has the name of the head is something in its place, such as a projection.
    body = {
        name: tensor
        for name, tensor in inside.items()
        if name not in matrices and not name.startswith(f"{layout.head}.")
    }
    ignored = [name for name in outside if not head or name not in matrices]
    return {**body, **head}, ignored


def choose_weights(
    found: list[Weights], model: Model | None, head_optional: bool
) -> tuple[Weights, Network]:
    """Return the weights to use: those with a head, averaged (as in timm), under a usual key.

    Weights that do not fit are passed over, if others do.

    Raises:
        WeightsError: none of them can be used, or the two best rank equally and differ.
    """

    def rank(weights: Weights) -> tuple[bool, bool, int]:
        key = weights.key.rpartition(".")[2]
        position = USUAL_KEYS.index(key) if key in USUAL_KEYS else len(USUAL_KEYS)
        return not weights.has_head, not weights.is_averaged, position

    wanted = [weights for weights in found if model in (None, weights.layout.network)]
    if not wanted:
        held = found[0].layout.network
        raise WeightsError(f"holds {held}, not {model}: use --model {held}")
    fitting: list[tuple[Weights, Network]] = []
    errors = []
    for weights in sorted(wanted, key=rank):
        try:
            fitting.append((weights, build_network(weights)))
        except WeightsError as error:
            errors.append(error)
    if not fitting:
        raise errors[0]

    (best, network), *others = fitting
    for other, other_network in others:
        if rank(other) == rank(best) and not have_equal_weights(network, other_network):
            raise WeightsError(
                f"holds weights under {best} and under {other}, and it is unclear which to use: "
                "save the state_dict of one network only"
            )
    if not (best.has_head or head_optional):
        raise WeightsError(
            f"holds {best.layout.network} without its last layer {best.layout.head}, so it has no "
            "classes yet: train it with examples.train --weights"
        )
    return best, network


def have_equal_weights(one: Network, other: Network) -> bool:
    tensors, others = one.state_dict(), other.state_dict()
    return tensors.keys() == others.keys() and all(
        torch.equal(tensors[name], others[name]) for name in tensors
    )


def build_network(weights: Weights) -> Network:
    """Build the network with these weights, in float32. A head that is missing gets zeros.

    Raises:
        WeightsError: a tensor is missing, unexpected or of another shape, a value is not finite, or
            the network is not for images with three channels.
    """
    layout, tensors = weights.layout, weights.tensors
    if not weights.has_head:
        head = {"weight": torch.zeros(1, layout.features), "bias": torch.zeros(1)}
        tensors = {**tensors, **{f"{layout.head}.{name}": head[name] for name in head}}
    architecture = ARCHITECTURES[layout.network].network
    try:
        network = architecture.from_state_dict(tensors).float()
    except (IndexError, RuntimeError) as error:  # IndexError: too few dimensions
        reason = textwrap.shorten(str(error), 300)
        raise WeightsError(f"does not fit {architecture.__name__}: {reason}") from error

    if network.conv1.in_channels != 3:
        raise WeightsError(f"is for images with {network.conv1.in_channels} channels, not 3")
    for name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise WeightsError(f"holds values that are infinite or NaN, in {name}")
    return network


def find_classes(saved: Mapping[str, Any], weights: Weights) -> tuple[list[str], bool]:
    """Return the class names, and whether they come from the checkpoint.

    Raises:
        WeightsError: the checkpoint has another number of names.
    """
    if not weights.has_head:
        return [], True
    num_classes = len(weights.tensors[f"{weights.layout.head}.weight"])
    for key in ("classes", "class_names", "class_to_idx"):
        names = read_names(saved.get(key))
        if names is not None:
            if len(names) != num_classes:
                raise WeightsError(f"holds {len(names)} class names for {num_classes} classes")
            return [unicodedata.normalize("NFC", name) for name in names], True
    if num_classes == 1000:
        return imagenet_classes(), False
    return [str(index) for index in range(num_classes)], False


def read_names(value: Any) -> list[str] | None:
    """Return class names in the order of their indices, or None if the value is something else.

    It may be a list, or a dictionary from names to indices or from indices to names.
    """
    if isinstance(value, (list, tuple)):
        return [str(name) for name in value]
    if not isinstance(value, Mapping):
        return None
    names = value
    if all(isinstance(index, int) for index in value.values()):
        names = {index: name for name, index in value.items()}
    if sorted(map(str, names)) != sorted(map(str, range(len(value)))):
        return None
    return [str(names.get(index, names.get(str(index)))) for index in range(len(value))]


def find_size(saved: Mapping[str, Any], key: str) -> int | None:
    """Return a size in pixels that the checkpoint holds under the key, or None.

    Raises:
        WeightsError: it is no size, or that of images that are not square.
    """
    size = saved.get(key)
    if isinstance(size, (list, tuple)) and len(set(size)) == 1:
        size = size[0]  # height and width
    if size is not None and (not isinstance(size, int) or size < 1):
        found = textwrap.shorten(repr(size), 100)
        raise WeightsError(f"holds the {key.replace('_', ' ')} {found}, not a positive integer")
    return size


# Messages


def describe_notes(weights: Weights, found: list[Weights]) -> Iterator[str]:
    """Yield a note for what is not used, for a head that is missing, and for an assumed stem."""
    others = [str(other) for other in found if other is not weights]
    if others:
        yield f"holds several networks: using {weights}, not {' or '.join(others)}"
    if weights.ignored:
        yield f"ignored: {summarize_names(weights.ignored)}"
    if not weights.has_head:
        yield f"holds no last layer {weights.layout.head}: it starts anew"
    if weights.layout.network == "resnet18" and weights.tensors["conv1.weight"].shape[-1] == 3:
        yield "has a first convolution of 3 x 3: stride 1 and no max pooling are assumed"


def describe_contents(saved: Any) -> str:
    """Return what is in a checkpoint in which no network was found."""
    values = list(saved.values()) if isinstance(saved, Mapping) else [saved]
    objects = [type(value).__name__ for value in values if isinstance(value, Placeholder)]
    names = [name for _, tensors in find_state_dicts(saved) for name in tensors]
    if names:
        wanted = [f"{layout.first} and {layout.last} ({layout.network})" for layout in LAYOUTS]
        return f"holds {summarize_names(names)}, but not both {', nor both '.join(wanted)}"
    if objects:
        kinds = textwrap.shorten(", ".join(objects), 200)
        return (
            f"holds an object of class {kinds}, which cannot be read without running code: save "
            "the model's state_dict(), not the model"
        )
    keys = f"the keys {', '.join(map(str, saved))}" if isinstance(saved, Mapping) else ""
    return "holds no named tensors, but " + textwrap.shorten(keys or type(saved).__name__, 200)


def summarize_names(names: list[str]) -> str:
    """Return the number of tensors, with the names of the first and the last."""
    if len(names) == 1:
        return f"the tensor {names[0]}"
    return f"{len(names)} tensors ({names[0]} … {names[-1]})"


# The classes of a data set


def class_indices(found: Metadata, classes: list[str]) -> list[int] | None:
    """Return, for each of these classes, its index in the weights. None: they are for others.

    If the file does not name its classes, it is assumed to have them in this order.
    """
    if len(found.classes) != len(classes):
        return None
    if not found.classes_known:
        return list(range(len(classes)))
    if sorted(found.classes) != sorted(classes):
        return None
    return [found.classes.index(name) for name in classes]


def assumed_order(classes: list[str]) -> str:
    """Return what is assumed where weights do not name their classes."""
    text = (
        "the weights do not name their classes, which are assumed to be the folders in this order: "
        + textwrap.shorten(", ".join(classes), 60, placeholder=" …")
    )
    if all(name.isdecimal() for name in classes) and classes != sorted(classes, key=int):
        text += " (as text; --numeric-order takes them as numbers)"
    return text


def describe_other_classes(found: Metadata, classes: list[str], data: str) -> str:
    """Return how the classes of the weights differ from those of the data set."""
    if not found.classes_known:
        return f"the weights are for {len(found.classes)} classes, and {data} has {len(classes)}"
    differences = [
        f"only {owner} {verb} {textwrap.shorten(', '.join(names), 200)}"
        for owner, verb, names in (
            ("the weights", "have", [name for name in found.classes if name not in classes]),
            (data, "has", [name for name in classes if name not in found.classes]),
        )
        if names
    ]
    difference = "; ".join(differences)
    return f"the classes of the weights differ from those of {data}: {difference}"


# What torch.save or safetensors wrote


def read_checkpoint(path: Path) -> Any:
    """Return what a file holds, with all tensors on the CPU.

    An object of a class that torch.load does not allow is replaced by a `Placeholder`.

    Args:
        path: a file written by torch.save, or a file of safetensors with that extension.

    Raises:
        WeightsError: the file cannot be read, is damaged, or contains an object that cannot be
            replaced. Changed tensor values go unnoticed in files without checksums: those of
            safetensors, those of PyTorch before 1.6, and those that were saved without.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(GIT_LFS_POINTER))
    except IsADirectoryError as error:
        raise WeightsError(f"{path} is a folder: give a file in it") from error
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error

    if start == GIT_LFS_POINTER:
        raise WeightsError(f"{path} is a Git LFS pointer, not the file itself: run git lfs pull")
    if path.suffix == ".safetensors":
        import safetensors.torch

        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise WeightsError(f"{path} is damaged or not a safetensors file ({error})") from error
    if start.startswith(b"PK") or zipfile.is_zipfile(path):
        check_archive(path)
        return load(path, unknown_classes(path))
    if start.startswith(pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)):
        return load(path, unknown_classes_before_1_6(path))
    raise WeightsError(f"{path} was not written by torch.save: it begins with {start[:16]!r}")


def check_archive(path: Path) -> None:
    """Check the zip file that torch.save writes: torch.load does not verify its checksums.

    Raises:
        WeightsError: the file is damaged, or was not written by torch.save.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.serialization.set_crc32_options(False) saves 0 in the place of each checksum.
            has_checksums = any(entry.CRC for entry in archive.infolist())
            damaged = archive.testzip() if has_checksums else None
            names = {PurePosixPath(name).name for name in archive.namelist()}
    except Exception as error:  # damaged files raise many kinds of exceptions
        raise WeightsError(f"{path} is damaged or incomplete ({error})") from error
    if damaged:
        raise WeightsError(f"{path} is damaged: the checksum of {damaged!r} is wrong")
    if "constants.pkl" in names:
        raise WeightsError(f"{path} is a TorchScript file: save the state_dict() of the model")
    if "data.pkl" not in names:
        found = textwrap.shorten(", ".join(sorted(names)), 100)
        raise WeightsError(f"{path} was not written by torch.save: it is a zip file of {found}")


def unknown_classes(path: Path) -> list[str]:
    """Return the names of the classes in a file that torch.load does not allow.

    Raises:
        WeightsError: the file is damaged, or was saved with an unusual pickle protocol.
    """
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, ValueError) as error:
        raise WeightsError(f"{path} is damaged") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} cannot be read without running code: save it again, without the argument "
            "pickle_protocol of torch.save"
        ) from error


def unknown_classes_before_1_6(path: Path) -> list[str]:
    """Return the same for a file of PyTorch before 1.6, which is not a zip file.

    Raises:
        WeightsError: the file is damaged.
    """
    names = set()
    try:
        with path.open("rb") as file:
            for _ in range(4):  # four pickles: two numbers, the system, the object
                for opcode, argument, _ in pickletools.genops(file):
                    if opcode.name == "GLOBAL":  # the argument is "module name"
                        names.add(str(argument).replace(" ", "."))
    except Exception as error:  # damaged files raise many kinds of exceptions
        raise WeightsError(f"{path} is damaged") from error
    known, modules = ("torch.", "collections.OrderedDict"), "torch.nn.modules."
    return [name for name in names if not name.startswith(known) or name.startswith(modules)]


def load(path: Path, unknown: list[str]) -> Any:
    """Return what torch.save wrote, with a `Placeholder` for each object of an unknown class.

    Raises:
        WeightsError: the file is damaged, or contains an object that cannot be replaced.
    """
    try:
        placeholders: list[Any] = [(type(name, (Placeholder,), {}), name) for name in unknown]
        with torch.serialization.safe_globals(placeholders):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise many kinds of exceptions
        if not unknown:
            raise WeightsError(f"{path} is damaged") from error
        names = textwrap.shorten(", ".join(sorted(unknown)), 200)
        raise WeightsError(
            f"{path} is damaged or cannot be read without running code: it refers to {names}. If "
            "you trust the file, load it with weights_only=False and save only its state_dict"
        ) from error


class Placeholder:
    """Replaces an object in a checkpoint whose class torch.load does not allow. It has no data."""

    def __new__(cls, *arguments: Any) -> "Placeholder":
        return super().__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass
