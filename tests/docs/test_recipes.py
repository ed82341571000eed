"""Each recipe of docs/recipes.md and docs/speed.md runs as it stands, and its numbers are right."""

from __future__ import annotations

import copy
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import nn

from tests.oracle import MODELS, deviation

ROOT = Path(__file__).parents[2]
PREAMBLE, *SECTIONS = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8").split("\n### ")
SECTIONS += (ROOT / "docs" / "speed.md").read_text(encoding="utf-8").split("\n### ")[1:]


def blocks(text: str) -> list[str]:
    """Return the Python code in a part of a page."""
    return [part.split("```", 1)[0] for part in text.split("```python\n")[1:]]


RECIPES = {section.split("\n", 1)[0]: blocks(section) for section in SECTIONS}
NEEDS = {"ONNX": "onnxruntime", "safetensors": "safetensors"}


def recipe(heading: str, name: str) -> str:
    """Return a recipe for the network `name`; the second of two blocks is AlexNet's."""
    code = RECIPES[heading] if heading else blocks(PREAMBLE)
    if name == "resnet18":
        return code[0]
    return code[-1].replace("resnet18", "alexnet").replace("ResNet18", "AlexNet")


@pytest.fixture
def run(name, model, tmp_path, monkeypatch):
    """A function that runs the recipe under a heading and returns the names it leaves."""
    monkeypatch.chdir(tmp_path)
    names = {"torch": torch, MODELS[name].__name__: MODELS[name], "model": copy.deepcopy(model)}
    names.update(images=torch.randn(4, 3, 224, 224), labels=torch.tensor([3, 1, 4, 1]))

    def run(heading: str, **more: object) -> dict:
        names.update(more)
        exec(recipe(heading, name), names)
        return names

    return run


@pytest.fixture
def expected(model):
    """A function that maps images to the logits that they should have."""
    return torch.no_grad()(model)


SAME_LOGITS = {
    "Compile": 1e-5,
    "Fuse batch norm": 1e-5,
    "Trace": 1e-5,
    "ONNX": 1e-5,
    "Half precision": 0.05,
    "Save and load": 0,
    "safetensors": 0,
    "Build without memory": 0,
}


@pytest.mark.parametrize(
    "heading",
    [pytest.param(h, marks=pytest.mark.slow if h == "Compile" else ()) for h in SAME_LOGITS],
)
def test_the_logits_are_the_same(heading, run, expected):
    if heading in NEEDS:
        pytest.importorskip(NEEDS[heading])
    torch.compiler.reset()
    names = run(heading)
    logits = names["logits"] if "logits" in names else names["model"].eval()(names["images"])
    logits = torch.as_tensor(logits).float()
    assert deviation(logits, expected(names["images"])) <= SAME_LOGITS[heading]


def test_the_accuracy_counts_every_image_once(run, tmp_path, capsys):
    for index in range(40):  # the last batch is not full
        file = tmp_path / "DATA" / "val" / str(index % 4) / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(file)
    run("Count the accuracy", fast=lambda images: torch.eye(4)[[3] * len(images)])
    assert capsys.readouterr().out == "top-1 25.00 % of 40 images\n"


def test_fusing_leaves_the_model_as_it_was_and_no_batch_norm(run, model):
    names = run("Fuse batch norm")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in names["fused"].modules())
    theirs, ours = names["model"].state_dict(), model.state_dict()
    assert all(torch.equal(theirs[key], ours[key]) for key in ours)


def test_an_exported_network_takes_any_batch(run, expected):
    exported = run("Export")["exported"]
    for batch_size in (1, 4, 5):
        images = torch.randn(batch_size, 3, 224, 224)
        assert deviation(exported(images), expected(images)) <= 1e-6


def test_an_onnx_network_takes_any_batch(run, expected):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    session = run("ONNX")["session"]
    for batch_size in (1, 5):
        images = torch.randn(batch_size, 3, 224, 224)
        (logits,) = session.run(None, {"images": images.numpy()})
        assert deviation(torch.from_numpy(logits), expected(images)) <= 1e-5


@pytest.mark.parametrize(
    "heading, result",
    [
        ("Features of several layers", "features"),
        ("Features before the head", "features"),
        ("Grad-CAM", "maps"),
        ("Ensemble", "logits"),
    ],
)
def test_shapes_are_those_of_the_comment(heading, result, run, name):
    value = run(heading)[result]
    shapes = {k: tuple(v.shape) for k, v in value.items()} if isinstance(value, dict) else value
    shown = str(shapes).replace("'", '"') if isinstance(value, dict) else str(tuple(value.shape))
    assert f"# {shown}" in recipe(heading, name)


def test_features_are_what_the_next_layer_gets(run, name, model, expected):
    captured = []
    next_layer = model.conv3 if name == "alexnet" else model.layer3
    names = run("Features of several layers")
    with next_layer.register_forward_pre_hook(lambda module, args: captured.append(args[0])):
        model(names["images"])
    assert torch.equal(next(iter(names["features"].values())), captured[0])
    head = model.fc3 if name == "alexnet" else model.fc
    features = run("Features before the head")["features"]
    assert deviation(head(features), expected(names["images"])) <= 1e-6


def test_grad_cam_weighs_by_the_gradient(run, name):
    """To first order, a step along the activations changes the score by what the gradient says."""
    names, step = run("Grad-CAM"), 1e-2
    layer = names["model"].conv5 if name == "alexnet" else names["model"].layer4
    names["hook"].remove()
    with layer.register_forward_hook(lambda module, args, output: output * (1 + step)):
        scores = names["model"](names["images"]).amax(1)
    changes = step * (names["gradient"] * names["activations"][0]).sum((1, 2, 3))
    assert deviation(scores - names["scores"], changes) <= 1e-2
    assert (names["maps"] >= 0).all()
    assert names["maps"].amax() > 0


def test_gradients_per_sample(run, model):
    names = run("Gradients per sample")
    for sample in (0, 3):
        images, labels = names["images"][[sample]], names["labels"][[sample]]
        loss = F.cross_entropy(model(images), labels)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for (key, _), gradient in zip(model.named_parameters(), gradients):
            assert deviation(names["gradients"][key][sample], gradient) <= 1e-2, key  # ReLUs flip


def test_an_ensemble_computes_what_its_models_do(run):
    names = run("Ensemble")
    for logits, model in zip(names["logits"], names["models"]):
        assert deviation(logits, model(names["images"])) <= 1e-5


def test_recomputed_activations_give_the_same_gradients(run, name, model):
    if name == "alexnet":
        pytest.skip("AlexNet's memory is in its weights")
    names = run("Recompute activations of ResNet-18")
    gradients = [
        torch.autograd.grad(m(names["images"]).square().sum(), list(m.parameters()))
        for m in (names["model"], model)
    ]
    for actual, same in zip(*gradients):
        assert deviation(actual, same) <= 1e-5


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_other_libraries_take_the_weights(library, run, name, expected):
    if (library, name) == ("timm", "alexnet"):
        pytest.skip("timm has no AlexNet")
    headings = {"alexnet": "AlexNet", "resnet18": "and timm's ResNet-18"}
    names = run(f"Into torchvision's {headings[name]}")
    theirs = names["theirs"].eval()
    assert type(theirs) is type(torchvision.models.get_model(name))
    if library == "timm":
        theirs = pytest.importorskip("timm").create_model(name).eval()
        theirs.load_state_dict(names["weights"])
    assert deviation(theirs(names["images"]), expected(names["images"])) <= 1e-5


def test_a_new_head(run):
    names = run("New head")
    assert names["model"](names["images"]).shape == (4, 10)


def test_a_frozen_backbone_trains_its_head_alone(run):
    names = run("Frozen backbone")
    model, before = names["model"], copy.deepcopy(names["model"].state_dict())
    F.cross_entropy(model(names["images"]), names["labels"]).backward()
    torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1).step()
    changed = {key for key, value in model.state_dict().items() if not value.equal(before[key])}
    assert changed in ({"fc.weight", "fc.bias"}, {"fc3.weight", "fc3.bias"})


def test_gray_images_give_the_logits_of_their_normalized_rgb_copies(run, expected):
    names = run("Gray images")
    normalize = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    copies = (names["gray"].expand(-1, 3, -1, -1) - torch.tensor(normalize.mean).view(3, 1, 1)) / (
        torch.tensor(normalize.std).view(3, 1, 1)
    )
    assert deviation(names["logits"], expected(copies)) <= 1e-5


def test_images_of_32_x_32(run, name):
    names, sizes = run("Images of 32 x 32"), []
    for module in names["model"].modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, args, output: sizes.append(output.shape[2]))
    assert names["model"](torch.randn(2, 3, 32, 32)).shape == (2, 1000)
    assert (sizes[0], sizes[-1]) == {"alexnet": (15, 3), "resnet18": (32, 4)}[name]


def test_reproducible(run):
    try:
        first, second = (run("Reproducible")["model"].state_dict() for _ in range(2))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(first[key].equal(second[key]) for key in first)


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_logits(run, expected):
    inductor = pytest.importorskip("torch._inductor.config")
    torch.compiler.reset()
    with inductor.patch(freezing=False):  # again, after the recipe has set it
        names = run("Compiled")
    assert deviation(names["logits"], expected(names["images"])) <= 1e-4
    assert deviation(names["rough_logits"].float(), expected(names["images"])) <= 0.05


@pytest.mark.slow
def test_an_int8_network_agrees_on_images_that_it_was_not_calibrated_on(run, name):
    pytest.importorskip("torchao")
    torch.compiler.reset()
    pixels, labels = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    images = F.interpolate(images, size=64, mode="bilinear").expand(-1, 3, -1, -1)
    names, model = run("New head"), MODELS[name](num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for batch in torch.randperm(1200).repeat(2).split(64):
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), torch.from_numpy(labels[batch])).backward()
        optimizer.step()

    names.update(model=model.eval(), images=images[:128])
    config = pytest.importorskip("torch._inductor.config")
    with torch.no_grad(), config.patch(freezing=False):  # which the recipe sets, as before again
        quantized, test = run("Int8")["fast"], images[1200:]
        int8, float32 = (torch.cat([m(b) for b in test.split(199)]) for m in (quantized, model))
    assert (int8.argmax(1) == float32.argmax(1)).float().mean() >= 0.97
    assert deviation(int8, float32) <= 0.1


def test_cifar_10_becomes_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = (tmp_path / "cifar-10" / "cifar-10-batches-py").resolve()
    files.mkdir(parents=True)
    batch = {"data": np.zeros((1, 3072), "uint8"), "labels": [3]}
    for name in [f"data_batch_{index}" for index in range(1, 6)] + ["test_batch"]:
        (files / name).write_bytes(pickle.dumps(batch))  # as they are distributed, but for the rest
    (files / "batches.meta").write_bytes(pickle.dumps({"label_names": [*"abc", "cat", *"efghij"]}))
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    exec(blocks((ROOT / "docs" / "training.md").read_text(encoding="utf-8"))[0])
    images = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert images == [f"cifar-10/train/cat/{i}.png" for i in range(5)] + ["cifar-10/val/cat/0.png"]


@pytest.mark.slow
def test_a_saved_network_starts_in_another_process_without_compiling(run, name, tmp_path):
    pytest.importorskip("torchao")
    config = pytest.importorskip("torch._inductor.config")
    torch.compiler.reset()
    save, load = (b.replace("resnet18", name) for b in RECIPES["Compiled once, for a service"])
    with config.patch(freezing=False):
        names = run("Int8")
        exec(save, names)
    torch.save(names["images"], "images.pt")
    load = load.replace("torch.randn(4, 3, 224, 224)", "torch.load('images.pt')")
    environment = {**os.environ, "CXX": "false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    measure = recipe("Time and memory of a new process", name)
    command = [sys.executable, "-c", f"{load}\ntorch.save(logits, 'logits.pt')\n{measure}"]
    shown = subprocess.check_output(command, cwd=tmp_path, env=environment, text=True)
    assert deviation(torch.load("logits.pt"), names["logits"]) <= 1e-2
    assert re.fullmatch(r"\d+\.\d s, \d+ MB\n", shown)


# In evaluation mode, so that two processes with half of the batch each compute the gradients of one
# with all of it: in training, each would normalize by statistics of its own half.
TWO_PROCESSES = """
import copy, os
import torch.nn.functional as F

rank = int(os.environ["RANK"])
whole, all_images, all_labels = model, images, labels
F.cross_entropy(whole(all_images), all_labels).backward()


def check(tolerance):
    for (name, parameter), same in zip(model.named_parameters(), whole.parameters()):
        gradient = parameter.grad
        gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        assert same.grad.abs().max() > 0, name
        assert (gradient - same.grad).norm() <= tolerance * same.grad.norm(), name
    torch.distributed.init_process_group = lambda backend: None  # once for all recipes
"""
ONE_RECIPE = """
model = copy.deepcopy(whole)
model.zero_grad()
images, labels = all_images.chunk(2)[rank], all_labels.chunk(2)[rank]
"""
CAST = """
from torch.distributed.fsdp import MixedPrecisionPolicy
fully_shard(model.conv1, mp_policy=MixedPrecisionPolicy(torch.bfloat16, output_dtype=torch.float32))
"""


@pytest.mark.slow
def test_two_processes_compute_the_gradients_of_one(name, tmp_path):
    same_seed = "import torch\ntorch.manual_seed(0)"
    parts = [same_seed, recipe("", name).replace("224", "64"), TWO_PROCESSES]
    parts += [ONE_RECIPE, recipe("DistributedDataParallel", name), "check(1e-3)"]
    if torch.__version__ >= "2.6":  # which fully_shard is new in
        fsdp = recipe("FSDP2", name)
        parts += [ONE_RECIPE, fsdp, "check(1e-3)"]
        parts += [ONE_RECIPE, fsdp.replace("for layer in", f"{CAST}for layer in"), "check(0.3)"]
    parts.append("torch.distributed.barrier(); os._exit(0)")  # gloo's threads may abort later
    (tmp_path / "train.py").write_text("\n".join(parts))
    command = "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "train.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        **{"cwd": tmp_path, "env": environment, "capture_output": True, "timeout": 60},
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
