"""Each recipe of README.md runs as it is written there, and its numbers are right.

DistributedDataParallel and FSDP2 are run by `test_distributed.py`.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from tests.oracle import MODELS, deviation
from tests.readme import HEADINGS, TEXT, recipe


@pytest.fixture
def run(name, model, tmp_path, monkeypatch):
    """A function that runs the recipe under a heading and returns the names it leaves."""
    monkeypatch.chdir(tmp_path)
    names = {"torch": torch, MODELS[name].__name__: MODELS[name], "model": copy.deepcopy(model)}
    names.update(images=torch.randn(4, 3, 224, 224), labels=torch.tensor([3, 1, 4, 1]))

    def run(heading: str) -> dict:
        exec(recipe(heading, name), names)
        return names

    return run


@pytest.fixture
def expected(model):
    """A function that maps images to the logits that they should have."""
    return torch.no_grad()(model)


def test_every_recipe_is_run():
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [heading for heading in HEADINGS if f'"{heading}"' not in tests] == []


def test_preamble(run, name):
    names = run("")
    assert names["model"](names["images"]).shape == (4, 1000)
    assert isinstance(names["model"], MODELS[name])
    assert names["labels"].shape == (4,)


@pytest.mark.slow
def test_fast_path(run, expected):
    torch.compiler.reset()
    inductor = pytest.importorskip("torch._inductor.config")
    with inductor.patch(freezing=False):  # again, after the recipe has set it
        names = run("Fast path")
    assert deviation(names["logits"], expected(names["images"])) <= 1e-4
    assert deviation(names["rough_logits"].float(), expected(names["images"])) <= 0.05


@pytest.mark.slow
def test_compile(run, expected):
    torch.compiler.reset()
    names = run("Compile")
    assert deviation(names["logits"], expected(names["images"])) <= 1e-5
    for batch_size in (3, 5):
        images = torch.randn(batch_size, 3, 224, 224)
        assert deviation(names["compiled"](images), expected(images)) <= 1e-5


def test_export(run, expected):
    names = run("Export")
    for batch_size in (1, 4, 5):
        images = torch.randn(batch_size, 3, 224, 224)
        assert deviation(names["exported"](images), expected(images)) <= 1e-6


def test_onnx(run, expected):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    names = run("ONNX")
    assert deviation(torch.from_numpy(names["logits"]), expected(names["images"])) <= 1e-5
    for batch_size in (1, 5):
        images = torch.randn(batch_size, 3, 224, 224)
        (logits,) = names["session"].run(None, {"images": images.numpy()})
        assert deviation(torch.from_numpy(logits), expected(images)) <= 1e-5


def test_features_of_several_layers(run, name, model):
    names = run("Features of several layers")
    shapes = re.findall(r'"(\w+)": (\(.*?\))', recipe("Features of several layers", name))
    assert {key: tuple(f.shape) for key, f in names["features"].items()} == {
        key: eval(shape) for key, shape in shapes
    }
    caught = []
    next_layer = model.conv3 if name == "alexnet" else model.layer3
    with next_layer.register_forward_pre_hook(lambda module, args: caught.append(args[0])):
        model(names["images"])
    assert torch.equal(next(iter(names["features"].values())), caught[0])


def test_features_before_the_head(run, name, model, expected):
    names = run("Features before the head")
    assert f"# {tuple(names['features'].shape)}" in recipe("Features before the head", name)
    head = model.fc3 if name == "alexnet" else model.fc
    assert deviation(head(names["features"]), expected(names["images"])) <= 1e-6


def test_gradients_per_sample(run, model):
    names = run("Gradients per sample")
    for sample in (0, 3):
        images, labels = names["images"][[sample]], names["labels"][[sample]]
        loss = F.cross_entropy(model(images), labels)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for (key, _), gradient in zip(model.named_parameters(), gradients):
            assert deviation(names["gradients"][key][sample], gradient) <= 1e-2, (
                key
            )  # some ReLU flip


def test_ensemble(run):
    names = run("Ensemble")
    assert names["logits"].shape == (2, 4, 1000)
    for logits, model in zip(names["logits"], names["models"]):
        assert deviation(logits, model(names["images"])) <= 1e-5


def test_recompute_activations(run, name, model):
    if name == "alexnet":
        pytest.skip("AlexNet's memory is in its weights")
    names = run("Recompute activations of ResNet-18")
    gradients = [
        torch.autograd.grad(m(names["images"]).square().sum(), list(m.parameters()))
        for m in (names["model"], model)
    ]
    for actual, expected in zip(*gradients):
        assert deviation(actual, expected) <= 1e-5


def test_half_precision(run, expected):
    names = run("Half precision")
    assert names["logits"].dtype == torch.bfloat16
    assert deviation(names["logits"].float(), expected(names["images"])) <= 0.05


def test_save_and_load(run, expected):
    names = run("Save and load")
    assert torch.equal(names["model"](names["images"]), expected(names["images"]))


def test_safetensors(run, expected):
    pytest.importorskip("safetensors")
    names = run("safetensors")
    assert torch.equal(names["model"](names["images"]), expected(names["images"]))


def test_build_without_memory(run, expected):
    run("Save and load")
    names = run("Build without memory")
    assert torch.equal(names["model"].eval()(names["images"]), expected(names["images"]))


def test_into_torchvision(run, name, expected):
    headings = "Into torchvision's AlexNet", "Into torchvision's and timm's ResNet-18"
    names = run(headings[name == "resnet18"])
    assert type(names["theirs"]) is type(torchvision.models.get_model(name))
    assert deviation(names["theirs"].eval()(names["images"]), expected(names["images"])) <= 1e-5


def test_into_timm(run, name, expected):
    if name == "alexnet":
        pytest.skip("timm has no AlexNet")
    timm = pytest.importorskip("timm")
    names = run("Into torchvision's and timm's ResNet-18")
    theirs = timm.create_model("resnet18").eval()
    theirs.load_state_dict(names["weights"])
    assert deviation(theirs(names["images"]), expected(names["images"])) <= 1e-5


def test_grad_cam(run, name):
    names = run("Grad-CAM")
    assert f"# {tuple(names['maps'].shape)}" in recipe("Grad-CAM", name)
    # To first order, a step along the activations changes the score by what the gradient says.
    layer = names["model"].conv5 if name == "alexnet" else names["model"].layer4
    names["hook"].remove()
    step = 1e-2
    with layer.register_forward_hook(lambda module, args, output: output * (1 + step)):
        scores = names["model"](names["images"]).amax(1)
    changes = step * (names["gradient"] * names["activations"][0]).sum((1, 2, 3))
    assert deviation(scores - names["scores"], changes) <= 1e-2
    assert (names["maps"] >= 0).all()
    assert names["maps"].amax() > 0


@pytest.mark.slow
def test_int8_on_the_cpu(run, name):
    """Of the pictures that the float32 model was not trained on, it agrees on almost all."""
    pytest.importorskip("torchao")
    torch.compiler.reset()
    pixels, labels = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    images = F.interpolate(images, size=64, mode="bilinear").expand(-1, 3, -1, -1)
    names, model = run(""), MODELS[name](num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for batch in torch.randperm(1200).repeat(2).split(64):
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), torch.from_numpy(labels[batch])).backward()
        optimizer.step()

    names.update(model=model.eval(), images=images[:128])
    config = pytest.importorskip("torch._inductor.config")
    with torch.no_grad(), config.patch(freezing=False):  # which the recipe sets, as before again
        quantized, test = run("Int8 on the CPU")["quantized"], images[1200:]
        int8, float32 = (torch.cat([m(b) for b in test.split(199)]) for m in (quantized, model))
    assert (int8.argmax(1) == float32.argmax(1)).float().mean() >= 0.97
    assert deviation(int8, float32) <= 0.1


def test_new_head(run):
    names = run("New head")
    assert names["model"](names["images"]).shape == (4, 10)


def test_frozen_backbone(run):
    names = run("Frozen backbone")
    model = names["model"]
    before = copy.deepcopy(model.state_dict())
    F.cross_entropy(model(names["images"]), names["labels"]).backward()
    torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1).step()
    changed = {key for key, value in model.state_dict().items() if not value.equal(before[key])}
    assert changed in ({"fc.weight", "fc.bias"}, {"fc3.weight", "fc3.bias"})


def test_one_input_channel(run, expected):
    names = run("One input channel")
    grey = names["images"][:, :1]
    logits = expected(grey.expand(-1, 3, -1, -1))
    assert deviation(names["model"](grey), logits) <= 1e-5
    with pytest.raises(ValueError, match=r"\(N, 1, H, W\)"):
        names["model"](names["images"])


def test_images_of_32_x_32(run, name):
    names = run("Images of 32 x 32")
    images, sizes = torch.randn(2, 3, 32, 32), []
    for module in names["model"].modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, args, output: sizes.append(output.shape[2]))
    assert names["model"](images).shape == (2, 1000)
    assert (sizes[0], sizes[-1]) == {"alexnet": (15, 3), "resnet18": (32, 4)}[name]


def test_reproducible(run):
    try:
        first, second = (run("Reproducible")["model"].state_dict() for _ in range(2))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(first[key].equal(second[key]) for key in first)


def test_no_line_is_wider_than_a_page_shows():
    code = "".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    assert max(map(len, code.splitlines())) <= 110
