"""`examples.weights` reads the checkpoints that people have, and says why it refuses others."""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.optim.swa_utils import AveragedModel

safetensors = pytest.importorskip("safetensors.torch")

import resnet18  # noqa: E402
from examples.lib.classifier import load_classifier  # noqa: E402
from examples.lib.command import WeightsError  # noqa: E402
from tests.examples.weights import load  # noqa: E402
from tests.official import let_be_official, publish  # noqa: E402
from tests.oracle import deviation, oracle  # noqa: E402

MODULE = oracle("resnet18", num_classes=3).eval()
WEIGHTS = MODULE.state_dict()
OTHER_WEIGHTS = {name: tensor / 2 for name, tensor in WEIGHTS.items()}
TRAINING = {
    "epoch": 3,
    "optimizer": torch.optim.SGD(MODULE.parameters(), lr=0.1, momentum=0.9).state_dict(),
}
OLD_FORMAT = {"_use_new_zipfile_serialization": False}
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def prefixed(prefix: str, weights=WEIGHTS) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


def saved(content: object, path: Path, **options: object) -> Path:
    torch.save(content, path, **options)
    return path


@torch.inference_mode()
def check(path: Path, module: nn.Module = MODULE) -> None:
    """Compare the logits of the network in a file with those of torchvision's."""
    network = load(path).network.eval()
    assert deviation(network(IMAGES), module(IMAGES)) <= 1e-5


def refusal(path: Path, name: str | None = None) -> str:
    """Return why a file is refused."""
    with pytest.raises(WeightsError) as error:
        load(path, name)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def notes(capsys) -> str:
    """Return what was printed, but for the notes on what a file of weights alone does not say."""
    assumed = "does not name its classes", "holds no image size"
    lines = capsys.readouterr().err.splitlines(keepends=True)
    return "".join(line for line in lines if not any(text in line for text in assumed))


# What is read


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, AveragedModel])
def test_the_prefix_of_a_wrapper_is_taken_off(wrap, tmp_path):
    check(saved(wrap(MODULE).state_dict(), tmp_path / "weights.pth"))


@pytest.mark.parametrize("prefix", ["", "model.", "module._orig_mod.", "a_name.of_their_own."])
def test_any_prefix_is_taken_off(prefix, tmp_path, capsys):
    check(saved(prefixed(prefix), tmp_path / "weights.pth"))
    assert notes(capsys) == ""


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"state_dict": nn.DataParallel(MODULE).state_dict(), "best_acc1": torch.tensor(5.0)},
        {"model": WEIGHTS, "args": argparse.Namespace(lr=0.1, output_dir=PurePosixPath("out"))},
        {"state_dict": WEIGHTS, "best_acc": np.float64(55.2), "history": np.arange(3)},
        {"network": WEIGHTS, "config": {"model": "resnet18"}, "rows": [{"epoch": 1}]},
        {"a name of their own": WEIGHTS},
        {"state": {"model": WEIGHTS}, "rng": []},
    ],
    ids=["ImageNet example", "torchvision", "NumPy", "last.ckpt", "other", "two keys deep"],
)
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before 1.6"])
def test_weights_are_found_under_any_key_of_a_training_file(checkpoint, is_zip, tmp_path, capsys):
    path = tmp_path / "checkpoint.pth.tar"
    check(saved({**checkpoint, **TRAINING}, path, _use_new_zipfile_serialization=is_zip))
    assert notes(capsys) == ""


def test_alexnet_with_only_its_features_in_data_parallel(tmp_path):
    module = oracle("alexnet", num_classes=3).eval()
    for layer in module.classifier[1], module.classifier[4]:  # equal rows: a file of 13 MB
        layer.weight = nn.Parameter(layer.weight[:1].clone().expand_as(layer.weight))
    module.features = nn.DataParallel(module.features)
    path = saved({"arch": "alexnet", "state_dict": module.state_dict()}, tmp_path / "alexnet.pth")
    assert load(path).name == "alexnet"
    check(path, module)


def test_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.save_file(prefixed("model."), path, metadata={"format": "pt"})
    check(path)


def test_a_training_file_of_timm(tmp_path, capsys):
    utils = pytest.importorskip("timm.utils")
    averaged = utils.ModelEmaV3(MODULE)
    model = oracle("resnet18", num_classes=3)
    nn.init.zeros_(model.fc.weight)
    saver = utils.CheckpointSaver(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        args=argparse.Namespace(model="resnet18", mean=(0.5, 0.5, 0.5)),
        model_ema=averaged,
        checkpoint_dir=tmp_path,
    )
    saver.save_checkpoint(epoch=1, metric=np.float64(50.1))
    check(tmp_path / "model_best.pth.tar")
    assert 'using "state_dict_ema", not "state_dict"' in capsys.readouterr().err


def test_a_file_without_checksums(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(WEIGHTS, tmp_path / "weights.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    check(path)


BODY = {name: WEIGHTS[name] for name in WEIGHTS if not name.startswith("fc.")}


@pytest.mark.parametrize("head", ["head.fc.", "fc.", "classifier.", "model.head."])
def test_a_head_that_is_not_beside_the_body(head, tmp_path, capsys):
    names = {**prefixed("backbone.", BODY), "loss.weight": torch.ones(3)}
    for kind in "weight", "bias":
        names[head + kind] = WEIGHTS[f"fc.{kind}"]
    path = saved({"state_dict": names}, tmp_path / "weights.pth")
    check(path)
    assert notes(capsys) == f"note: {path} ignored: the tensor loss.weight\n"


def test_the_head_of_another_network_is_not_taken(tmp_path, capsys):
    both = {**prefixed("student.", BODY), **prefixed("teacher.")}
    check(saved(both, tmp_path / "weights.pth"))
    assert 'using "teacher.", not "student."' in capsys.readouterr().err


# Backbones


PROJECTION = {"fc.0.weight": torch.ones(128, 512), "fc.2.weight": torch.ones(64, 128)}


@pytest.mark.parametrize(
    "tensors",
    [
        BODY,
        {**BODY, **PROJECTION},
        {**prefixed("backbone.", BODY), **prefixed("projector.", PROJECTION)},
    ],
    ids=["alone", "projection in place of the head", "projection beside it"],
)
def test_a_backbone_without_a_head_is_loaded_for_training_only(tensors, tmp_path, capsys):
    path = saved({"state_dict": tensors}, tmp_path / "weights.pth")
    assert "holds resnet18 without its last layer fc, so it has no classes yet" in refusal(path)
    classifier = load(path, head_optional=True)
    assert (classifier.classes, classifier.classes_known) == ([], True)
    loaded = classifier.network.state_dict()
    for name, tensor in BODY.items():
        assert torch.equal(loaded[name.replace("downsample", "shortcut")], tensor)
    assert "holds no last layer fc" in capsys.readouterr().err


def test_the_assumed_stem_of_a_network_for_small_images_is_said(tmp_path, capsys):
    network = resnet18.ResNet18(num_classes=3, cifar_stem=True)
    path = saved({"state_dict": network.state_dict()}, tmp_path / "weights.pth")
    assert str(load(path).network) == str(network)
    note = f"note: {path} has a first convolution of 3 x 3: stride 1 and no max pooling are assumed"
    assert notes(capsys) == f"{note}\n"


def test_a_network_with_a_head_is_preferred_to_a_backbone(tmp_path):
    path = saved({"model": BODY, "a name of their own": WEIGHTS}, tmp_path / "weights.pth")
    assert load(path, head_optional=True).classes == ["0", "1", "2"]
    check(path)


# Which of several networks is taken


@pytest.mark.parametrize(
    "checkpoint, used",
    [
        ({"state_dict": OTHER_WEIGHTS, "state_dict_ema": WEIGHTS}, '"state_dict_ema"'),
        (
            {"model": OTHER_WEIGHTS, "model_ema": AveragedModel(MODULE).state_dict()},
            '"module." in "model_ema"',
        ),
        (
            {"state_dict": {**prefixed("net.", OTHER_WEIGHTS), **prefixed("ema_net.module.")}},
            '"ema_net.module." in "state_dict"',
        ),
        ({"state_dict": WEIGHTS, "current_model_state": OTHER_WEIGHTS}, '"state_dict"'),
    ],
    ids=["timm", "torchvision", "in one state_dict", "Lightning"],
)
def test_averaged_weights_are_preferred_and_said_to_be_used(checkpoint, used, tmp_path, capsys):
    path = saved(checkpoint, tmp_path / "checkpoint.pth")
    check(path)
    note = capsys.readouterr().err.splitlines()[0]
    assert note.startswith(f"note: {path} holds several networks: using {used}, not ")


def test_two_networks_on_equal_terms_are_refused(tmp_path):
    both = {**prefixed("encoder_q."), **prefixed("encoder_k.", OTHER_WEIGHTS)}
    line = refusal(saved({"state_dict": both}, tmp_path / "weights.pth"))
    assert '"encoder_q." in "state_dict"' in line
    assert '"encoder_k." in "state_dict"' in line


def test_the_same_network_twice_is_no_question(tmp_path):
    check(saved({**prefixed("encoder_q."), **prefixed("encoder_k.")}, tmp_path / "weights.pth"))


def test_of_two_networks_the_one_that_fits_is_used(tmp_path):
    teacher = torchvision.models.resnet34(num_classes=3).state_dict()
    networks = ("teacher.", teacher), ("student.", WEIGHTS)
    both = {
        f"{network}{'head' if name.startswith('fc') else 'backbone'}.{name}": tensor
        for network, weights in networks
        for name, tensor in weights.items()
    }
    check(saved(both, tmp_path / "weights.pth"))


def test_names_of_wrappers_are_dropped_inside_a_name(tmp_path):
    names = {name: name.replace(".conv1.", ".conv1._orig_mod.") for name in WEIGHTS}
    names |= {"fc.weight": "fc._fsdp_wrapped_module.weight"}
    wrapped = {names[name]: tensor for name, tensor in WEIGHTS.items()}
    check(saved(wrapped, tmp_path / "weights.pth"))


@pytest.mark.parametrize("head", ["last_linear.", "linear.", "fc.1.", "head.fc."])
def test_a_head_of_another_name_at_the_top_level_is_found(head, tmp_path, capsys):
    renamed = {name.replace("fc.", head): tensor for name, tensor in WEIGHTS.items()}
    check(saved(renamed, tmp_path / "weights.pth"))
    assert notes(capsys) == ""


def test_a_network_with_one_output_is_refused_wherever_its_head_is_used(tmp_path):
    weights = oracle("resnet18", num_classes=1).state_dict()
    path = saved(weights, tmp_path / "weights.pth")
    assert "has one output, a sigmoid's" in refusal(path)
    assert load(path, head_optional=True).classes == ["0"]  # training replaces the head


def test_tensors_beside_the_network_are_ignored_with_a_note(tmp_path, capsys):
    path = saved({**prefixed("model."), "loss.weight": torch.ones(3)}, tmp_path / "weights.pth")
    check(path)
    assert notes(capsys) == f"note: {path} ignored: the tensor loss.weight\n"


def test_tensors_inside_the_network_are_not_ignored(tmp_path):
    deeper = torchvision.models.resnet34(num_classes=3).state_dict()
    assert WEIGHTS.keys() < deeper.keys()
    assert "layer1.2.conv1.weight" in refusal(saved(deeper, tmp_path / "weights.pth"))


def test_the_other_network_is_refused_and_named(tmp_path):
    path = saved(WEIGHTS, tmp_path / "weights.pth")
    assert refusal(path, "alexnet") == f"{path} holds resnet18, not alexnet: use --model resnet18"
    assert load(path, "resnet18").name == "resnet18"


# What is refused


class Exploit:
    """Calls a function when unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "exploit", [Exploit(os.mkdir, "exploited"), Exploit(exec, "open('exploited', 'w')")]
)
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before 1.6"])
def test_code_in_a_file_is_not_run(exploit, is_zip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": WEIGHTS, "args": exploit}
    path = saved(content, Path("weights.pth"), _use_new_zipfile_serialization=is_zip)
    try:
        load(path)
    except WeightsError as error:
        assert "without running code" in str(error)
    assert not Path("exploited").exists()


def test_a_class_that_cannot_be_replaced_is_named(tmp_path):
    path = saved({"state_dict": WEIGHTS, "rng": Exploit(os.mkdir, "x")}, tmp_path / "weights.pth")
    line = refusal(path)
    assert "mkdir" in line
    assert "save only its state_dict" in line


@pytest.mark.parametrize("content", [MODULE, {"model": MODULE, "epoch": 3}])
def test_a_whole_model_is_refused_with_the_way_out(content, tmp_path):
    line = refusal(saved(content, tmp_path / "model.pth"))
    assert "torchvision.models.resnet.ResNet" in line
    assert "state_dict()" in line


def test_a_script_is_refused(tmp_path):
    torch.jit.script(nn.ReLU()).save(tmp_path / "script.pt")
    assert "is a TorchScript file" in refusal(tmp_path / "script.pt")


def test_a_zip_file_of_something_else_is_called_that(tmp_path):
    np.savez(tmp_path / "weights.npz", **{name: WEIGHTS[name].numpy() for name in ("fc.weight",)})
    line = refusal(tmp_path / "weights.npz")
    assert line.endswith("was not written by torch.save: it is a zip file of fc.weight.npy")


def test_a_whole_model_saved_before_1_6_is_not_called_damaged(tmp_path):
    path = saved(nn.Sequential(nn.Linear(1, 1)), tmp_path / "model.pth", **OLD_FORMAT)
    line = refusal(path)
    assert "or cannot be read without running code" in line
    assert "torch.nn.modules.linear.Linear" in line


def test_no_message_is_longer_than_a_reader_reads(tmp_path):
    long = {"state_dict": WEIGHTS, "image_size": list(range(10_000))}
    assert len(refusal(saved(long, tmp_path / "weights.pth"))) < 1000


def test_names_that_were_found_and_looked_for_are_given(tmp_path):
    part = {name: WEIGHTS[name] for name in WEIGHTS if not name.startswith("layer4.")}
    line = refusal(saved({"state_dict": part}, tmp_path / "weights.pth"))
    assert "92 tensors (conv1.weight … fc.bias)" in line
    assert "not both conv1.weight and layer4.1.conv2.weight (resnet18)" in line
    assert "nor both features.0.weight and classifier.4.weight (alexnet)" in line


@pytest.mark.parametrize("key", [None, "model"])
def test_distributed_tensors_are_refused_with_the_way_out(key, tmp_path):
    """In a process of its own, since the tensors belong to a process group."""
    code = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}.init", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
weight = distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)])
torch.save({"fc.weight": weight}, sys.argv[1])
dist.destroy_process_group()
"""
    path = tmp_path / "weights.pth"
    subprocess.run([sys.executable, "-c", code, path], check=True)
    if key:
        torch.save({key: torch.load(path, weights_only=False)}, path)
    assert "holds DTensors: call full_tensor() on each" in refusal(path)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"fc.bias": torch.zeros(4)}, "fc.bias"),
        ({"fc.weight": torch.tensor(1.0)}, "ResNet18"),
        ({"fc.weight": torch.full((3, 512), torch.nan)}, "infinite or NaN, in fc.weight"),
        ({"conv1.weight": torch.zeros(64, 1, 7, 7)}, "1 channels, not 3"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, reason, tmp_path):
    assert reason in refusal(saved({**WEIGHTS, **change}, tmp_path / "weights.pth"))


@pytest.mark.parametrize(
    "content, what",
    [
        (None, "NoneType"),
        ([1], "list"),
        ({}, "the keys"),
        ({"state_dict": None, "epoch": 3}, "the keys state_dict, epoch"),
        ({"state_dict": {"fc.bias": [1.0]}}, "the keys state_dict"),
    ],
)
def test_a_file_without_tensors_is_refused(content, what, tmp_path):
    line = refusal(saved(content, tmp_path / "weights.pth"))
    assert "holds no named tensors" in line
    assert what in line


# Damaged files


def flip_a_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


def cut_off(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip_the_start(data: bytes) -> bytes:
    return bytes([data[0] ^ 4]) + data[1:]


def put_a_byte_in_front(data: bytes) -> bytes:
    return b"\0" + data


@pytest.mark.parametrize("damage", [flip_a_bit, flip_the_start, cut_off, put_a_byte_in_front])
def test_a_damaged_file_is_refused(damage, tmp_path):
    path = saved(WEIGHTS, tmp_path / "weights.pth")
    path.write_bytes(damage(path.read_bytes()))
    assert "is damaged" in refusal(path)


def test_a_damaged_file_of_an_older_format_is_refused(tmp_path):
    path = saved(WEIGHTS, tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    path.write_bytes(cut_off(path.read_bytes()))
    assert "is damaged" in refusal(path)
    safetensors.save_file(WEIGHTS, tmp_path / "weights.safetensors")
    path = tmp_path / "weights.safetensors"
    path.write_bytes(cut_off(path.read_bytes()))
    assert "is damaged" in refusal(path)


@pytest.mark.parametrize(
    "data",
    [b"", b"<!DOCTYPE html>", pickle.dumps({})],
    ids=["empty", "page", "pickle"],
)
def test_a_file_of_another_kind_is_refused_with_its_first_bytes(data, tmp_path):
    (tmp_path / "weights.pth").write_bytes(data)
    line = refusal(tmp_path / "weights.pth")
    assert line.endswith(f"was not written by torch.save: it begins with {data[:16]!r}")


@pytest.mark.parametrize("name", ["weights.pth", "model.safetensors"])
def test_a_git_lfs_pointer_is_refused_with_the_way_out(name, tmp_path):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\nsize 44785035\n")
    assert refusal(tmp_path / name).endswith(
        "is a Git LFS pointer, not the file itself: run git lfs pull"
    )


def test_another_zip_file_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "weights.pth", "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    assert "was not written by torch.save" in refusal(tmp_path / "weights.pth")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert refusal(tmp_path / "none") == f"cannot read {tmp_path}/none: No such file or directory"
    assert refusal(tmp_path) == f"{tmp_path} is a folder: give a file in it"


# Classes and image size


@pytest.mark.parametrize("key", ["state_dict", "network"])
def test_classes_and_image_size_come_from_the_file(key, tmp_path):
    content = {key: WEIGHTS, "classes": ["cat", "dog", "newt"], "image_size": 64}
    classifier = load(saved(content, tmp_path / "model.pt"))
    assert classifier.classes == ["cat", "dog", "newt"]
    assert classifier.classes_known
    assert classifier.image_size == 64


@pytest.mark.parametrize(
    "key, value",
    [
        ("class_to_idx", {"newt": 2, "café": 0, "dog": 1}),
        ("classes", ("café", "dog", "newt")),
        ("classes", {2: "newt", 0: "café", 1: "dog"}),
        ("class_names", {"0": "café", "1": "dog", "2": "newt"}),
        ("class_names", ["cafe\u0301", "dog", "newt"]),  # as a Mac writes it
    ],
)
def test_class_names_are_found_in_any_usual_form(key, value, tmp_path):
    classifier = load(saved({"state_dict": WEIGHTS, key: value}, tmp_path / "model.pt"))
    assert (classifier.classes, classifier.classes_known) == (["café", "dog", "newt"], True)


def test_classes_without_names_are_indices_and_the_image_size_is_224_with_notes(tmp_path, capsys):
    path = saved(WEIGHTS, tmp_path / "weights.pth")
    classifier = load(path)
    assert classifier.classes == ["0", "1", "2"]
    assert not classifier.classes_known
    assert classifier.image_size == 224
    assert capsys.readouterr().err.splitlines() == [
        f"note: {path} does not name its classes: they get the numbers 0 to 2",
        f"note: {path} holds no image size: 224 is assumed (--image-size)",
    ]


def test_the_height_and_width_of_square_images_are_one_size(tmp_path):
    content = {"state_dict": WEIGHTS, "image_size": (64, 64)}
    assert load(saved(content, tmp_path / "model.pt")).image_size == 64


def test_the_size_before_the_crop_comes_from_the_file(tmp_path):
    content = {"state_dict": WEIGHTS, "image_size": 32, "resize_size": 32}
    path = saved(content, tmp_path / "model.pt")
    assert load(path).resize_size == 32  # the border of the image is not cut off
    assert load_classifier(path, image_size=64).resize_size == 73


def test_a_thousand_classes_without_names_are_imagenets(tmp_path):
    state_dict = {**WEIGHTS, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    classifier = load(saved(state_dict, tmp_path / "weights.pth"))
    assert classifier.classes[0] == "tench"
    assert not classifier.classes_known


@pytest.mark.parametrize(
    "wrong, reason",
    [
        ({"classes": ["cat"]}, "1 class names for 3 classes"),
        ({"image_size": 0}, "image size 0"),
        ({"image_size": (64, 96)}, "image size (64, 96)"),
    ],
)
def test_classes_and_image_size_that_cannot_be_are_refused(wrong, reason, tmp_path):
    assert reason in refusal(saved({"state_dict": WEIGHTS, **wrong}, tmp_path / "model.pt"))


# Official weights


@pytest.fixture
def official(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """Publish random weights as ResNet-18's official ones; return the file and its download."""
    file = publish("resnet18", tmp_path)
    let_be_official(file, "resnet18", monkeypatch)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    return file, tmp_path / "home" / "hub" / "checkpoints" / file.name


def test_official_weights_are_downloaded_once(official, capsys):
    file, _ = official
    classifier = load(None, "resnet18")
    assert capsys.readouterr().out == ""
    file.unlink()
    again = load(None, "resnet18")
    with torch.inference_mode():
        expected = oracle("resnet18").eval()(IMAGES)
        assert deviation(classifier.network.eval()(IMAGES), expected) <= 1e-5
        assert deviation(again.network.eval()(IMAGES), expected) <= 1e-5
    assert (classifier.classes[0], len(classifier.classes)) == ("tench", 1000)
    assert not classifier.classes_known


def test_a_damaged_download_is_refused(official):
    file, download = official
    file.write_bytes(flip_a_bit(file.read_bytes()))
    with pytest.raises(WeightsError, match="invalid hash value"):
        load(None, "resnet18")
    assert not download.exists()


def test_a_damaged_file_in_the_cache_is_refused(official):
    _, download = official
    load(None, "resnet18")
    download.write_bytes(flip_a_bit(download.read_bytes()))
    with pytest.raises(WeightsError) as error:
        load(None, "resnet18")
    assert str(error.value) == f"{download} is damaged: delete it to download it again"


def test_without_a_network_one_line_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "127.0.0.1:9")
    with pytest.raises(WeightsError) as error:
        load(None, "resnet18")
    assert resnet18.WEIGHTS_URL in str(error.value)
    assert f"{tmp_path}/hub/checkpoints/resnet18-f37072fd.pth" in str(error.value)
    assert "--weights" in str(error.value)


def test_a_folder_for_downloads_that_cannot_be_written(official, tmp_path):
    (tmp_path / "home").write_text("not a folder")
    with pytest.raises(WeightsError, match="TORCH_HOME"):
        load(None, "resnet18")
