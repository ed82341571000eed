"""Each recipe of docs/recipes.md runs as it stands, and its numbers are right."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import operator
import re
import shutil
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import nn

from tests.docs.pages import DOCS, ROOT, read
from tests.oracle import MODELS, deviation

PAGE = read(DOCS / "recipes.md")
SECTIONS = {section.split("\n", 1)[0]: section for section in PAGE.split("\n### ")[1:]}


class Step(NamedTuple):
    """A block of code, and what the page says that it prints."""

    code: str
    output: str | None = None


def recipe(heading: str, name: str) -> list[Step]:
    """Return the steps of a recipe for the network `name`, or of the setup if there is no heading.

    A block whose text starts with "AlexNet" replaces the one before it. Output is ResNet-18's
    unless it follows such a block.
    """
    section = SECTIONS[heading] if heading else PAGE.split("\n### ")[0]
    parts = section.split("```")
    steps, for_alexnet = [], False
    for text, block in zip(parts[::2], parts[1::2]):
        language, content = block.split("\n", 1)
        if language == "python":
            for_alexnet = text.strip().startswith("AlexNet")
            if name == "alexnet":
                content = content.replace("resnet18", "alexnet").replace("ResNet18", "AlexNet")
            if not for_alexnet:
                steps.append(Step(content))
            elif name == "alexnet":
                steps[-1] = Step(content)
        elif steps[-1].output is None and (name == "resnet18" or for_alexnet):
            steps[-1] = steps[-1]._replace(output=content)
    return steps


def code(heading: str, name: str) -> str:
    """Return the code of a recipe without what it prints."""
    return "\n".join(step.code for step in recipe(heading, name))


def setup(name: str, model: nn.Module) -> dict:
    """Return the variables that every recipe assumes, with smaller images than on the page."""
    return {
        "torch": torch,
        MODELS[name].__name__: MODELS[name],
        "model": copy.deepcopy(model),
        "images": torch.randn(4, 3, 64, 64),
        "labels": torch.tensor([3, 1, 4, 1]),
    }


def execute(steps: list[Step], variables: dict) -> None:
    """Run the code and check what it prints."""
    for step in steps:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(step.code, variables)
        print(printed.getvalue(), end="")
        if step.output is not None:
            assert printed.getvalue() == step.output


@pytest.fixture
def run(name, model, tmp_path, monkeypatch):
    """A function that runs a recipe and returns its variables."""
    monkeypatch.chdir(tmp_path)
    variables = setup(name, model)

    def run(heading: str, **given: object) -> dict:
        variables.update(given)
        execute(recipe(heading, name), variables)
        return variables

    return run


@pytest.fixture
def expected(model):
    """A function that maps images to the logits that they should have."""
    return torch.no_grad()(model)


def torchvision_without_inplace(expected_model: nn.Module) -> nn.Module:
    """Return a copy of torchvision's network whose ReLUs keep their inputs."""
    theirs = copy.deepcopy(expected_model)
    for module in theirs.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return theirs


@pytest.mark.parametrize(
    "heading",
    ["torch.compile", "TorchScript", "Fuse batch norm"],
)
def test_the_logits_are_the_same(heading, run, expected):
    torch.compiler.reset()
    variables = run(heading)
    assert deviation(variables["logits"], expected(variables["images"])) <= 1e-5


def test_half_precision_gives_nearly_the_same_logits(run, expected):
    variables = run("float16 and bfloat16")
    logits = expected(variables["images"])
    for half_logits in (variables["autocast_logits"], variables["logits"]):
        assert half_logits.dtype == torch.bfloat16
        assert 0 < deviation(half_logits.float(), logits) <= 0.05


@pytest.mark.parametrize("heading", ["Save and load", "Load faster", "safetensors"])
def test_saved_weights_come_back_and_can_be_trained(heading, run, expected):
    if heading == "safetensors":
        pytest.importorskip("safetensors")
    variables = run(heading)
    logits = variables["model"](variables["images"])
    assert torch.equal(logits, expected(variables["images"]))
    assert all(parameter.requires_grad for parameter in variables["model"].parameters())


def test_fusing_leaves_the_model_as_it_was_and_no_statistics(run, model):
    variables = run("Fuse batch norm")
    after, before = variables["model"].state_dict(), model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert list(variables["fused"].buffers()) == []


def test_an_exported_network_takes_any_batch(run, expected):
    exported = run("torch.export")["exported"]
    for batch_size in (1, 5):
        images = torch.randn(batch_size, 3, 64, 64)
        assert deviation(exported(images), expected(images)) <= 1e-5


def test_the_onnx_file_works_by_itself_and_takes_any_batch(run, name, expected, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    if torch.__version__ < "2.7":
        pytest.skip("earlier exporters fail")
    run("ONNX")
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / f"{name}.onnx").rename(tmp_path / "elsewhere" / "moved.onnx")
    session = onnxruntime.InferenceSession(moved)
    for batch_size in (1, 5):
        images = torch.randn(batch_size, 3, 64, 64)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        assert deviation(torch.from_numpy(logits), expected(images)) <= 1e-5


class LightningModule(nn.Module):
    """Holds the network as Lightning's modules do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def parallel_in_compiled(model: nn.Module) -> nn.Module:
    return torch.compile(nn.DataParallel(model))


def test_checkpoints_of_wrapped_networks_load(run, name, model, expected):
    wrappers = [LightningModule]
    if name == "resnet18":  # more where it takes less time
        wrappers.append(parallel_in_compiled)
    for wrap in wrappers:
        weights = wrap(model).state_dict()
        training_state = {"state_dict": weights, "epoch": 3}
        torch.save(training_state, "checkpoint.pth")
        variables = run("Checkpoints of DataParallel, torch.compile and Lightning")
        assert torch.equal(variables["model"](variables["images"]), expected(variables["images"]))


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_other_libraries_take_the_weights(library, run, name, expected):
    if (library, name) == ("timm", "alexnet"):
        pytest.skip("timm has no AlexNet")
    variables = run("Use the weights in torchvision or timm")
    theirs = variables["theirs"].eval()
    if library == "timm":
        theirs = pytest.importorskip("timm").create_model(name).eval()
        theirs.load_state_dict(variables["weights"])
    else:
        assert type(theirs) is type(torchvision.models.get_model(name))
    assert deviation(theirs(variables["images"]), expected(variables["images"])) <= 1e-5


def test_features_are_what_the_next_layer_gets(run, name, model):
    images, captured = torch.randn(4, 3, 224, 224), []
    variables = run("Features of several layers", images=images)
    next_layer = model.conv3 if name == "alexnet" else model.layer3
    with next_layer.register_forward_pre_hook(lambda module, args: captured.append(args[0])):
        model(images)
    features = variables["extractor"](images)
    assert torch.equal(next(iter(features.values())), captured[0])


def test_the_head_maps_the_features_to_the_logits(run, name, model, expected):
    variables = run("Features before the head")
    head = model.fc3 if name == "alexnet" else model.fc
    assert deviation(head(variables["features"]), expected(variables["images"])) <= 1e-5


@pytest.fixture
def grad_cam(run, tmp_path):
    """The variables of the recipe, run on the photograph of the repository."""
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "cat.jpg", tmp_path / "docs")
    return run("Grad-CAM")


def test_grad_cam_equals_captum_on_torchvision(grad_cam, name, expected_model):
    attr = pytest.importorskip("captum.attr")
    theirs = torchvision_without_inplace(expected_model)
    layer = theirs.features[11] if name == "alexnet" else theirs.layer4  # 11: ReLU after conv5
    image, label = grad_cam["image"], grad_cam["logits"].argmax().item()
    heatmap = attr.LayerGradCam(theirs, layer).attribute(image, label, relu_attributions=True)
    heatmap = F.interpolate(heatmap / heatmap.max(), size=224, mode="bilinear")
    assert deviation(grad_cam["heatmap"], heatmap) <= 1e-3


def test_grad_cam_draws_the_map_in_red_over_the_photograph(grad_cam):
    crop = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms(mean=[0] * 3, std=[1] * 3)
    photo, strength = 255 * crop(Image.open("docs/cat.jpg")), 0.7 * grad_cam["heatmap"][0, 0]
    picture = torch.tensor(np.asarray(Image.open("grad-cam.png"))).permute(2, 0, 1)
    red = torch.tensor([255, 0, 0]).view(3, 1, 1)
    assert (picture - ((1 - strength) * photo + strength * red)).abs().max() <= 1
    assert strength.max() > 0.6


ATTRIBUTION = "Guided backprop, DeepLIFT and LRP"


@pytest.fixture(scope="module")
def attribution(name, model):
    """The variables of the recipe."""
    pytest.importorskip("captum")
    variables = setup(name, model)
    execute(recipe(ATTRIBUTION, name), variables)
    return variables


def test_relu_modules_leave_the_logits_as_they_are(name, model):
    variables = setup(name, model)
    execute(recipe(ATTRIBUTION, name)[:1], variables)
    assert torch.equal(variables["network"](variables["images"]), model(variables["images"]))


def test_relu_modules_are_called_once_each(name, model):
    variables, calls = setup(name, model), []
    execute(recipe(ATTRIBUTION, name)[:1], variables)
    for module in variables["network"].modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, args, output: calls.append(module))
    variables["network"](variables["images"])
    assert len(calls) == len(set(calls))
    relus = {"alexnet": 7, "resnet18": 17}[name]
    assert sum(isinstance(module, nn.ReLU) for module in calls) == relus


def test_guided_backprop_equals_torchvision(attribution, expected_model):
    theirs = attribution["GuidedBackprop"](torchvision_without_inplace(expected_model))
    guided = theirs.attribute(attribution["images"], target=attribution["classes"])
    assert deviation(attribution["guided"], guided) <= 1e-5


def test_lrp_equals_torchvision(attribution, expected_model):
    addition = attribution["Addition_Module"]
    theirs = attribution["with_modules"](
        torchvision_without_inplace(expected_model),
        {operator.add: addition, operator.iadd: addition},
    )
    lrp = attribution["LRP"](theirs).attribute(attribution["images"], attribution["classes"])
    assert deviation(attribution["lrp"], lrp) <= 1e-5


def test_deep_lift_equals_torchvision(attribution, name, expected_model):
    if name == "resnet18":
        pytest.skip("captum's DeepLIFT does not run on torchvision's ResNet-18")
    theirs = attribution["DeepLift"](torchvision_without_inplace(expected_model))
    deep_lift = theirs.attribute(attribution["images"], target=attribution["classes"])
    assert deviation(attribution["deep_lift"], deep_lift) <= 1e-5


def test_deep_lift_of_resnet18_sums_to_the_change_of_the_logit(attribution, name, model):
    if name == "alexnet":
        pytest.skip("captum's rule for max pooling is wrong after a ReLU")
    images = attribution["images"]
    changes = model(images) - model(torch.zeros_like(images))
    changes = changes.gather(1, attribution["classes"][:, None]).flatten()
    assert deviation(attribution["deep_lift"].sum((1, 2, 3)), changes) <= 1e-3


def test_gradients_per_sample(run, model):
    variables = run("Gradients per sample")
    for sample, gradients in enumerate(zip(*variables["gradients"].values())):
        images, labels = variables["images"][[sample]], variables["labels"][[sample]]
        loss = F.cross_entropy(model(images), labels)
        for gradient, same in zip(gradients, torch.autograd.grad(loss, list(model.parameters()))):
            assert deviation(gradient, same) <= 1e-2  # ReLUs flip


@pytest.fixture
def restore_determinism():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("restore_determinism")
@pytest.mark.parametrize("heading", ["New head", "Reproducible runs"])
def test_the_recipe_runs(heading, run):
    run(heading)


def test_a_frozen_backbone_keeps_its_weights_and_statistics_while_its_head_learns(run, name, model):
    variables = run("Frozen backbone", labels=torch.full((4,), 3))
    before, after = model.state_dict(), variables["model"].state_dict()
    head = "fc3" if name == "alexnet" else "fc"
    changed = {key for key in before if not torch.equal(after[key], before[key])}
    with_gradients = {key for key, p in variables["model"].named_parameters() if p.grad is not None}
    assert changed == with_gradients == {f"{head}.weight", f"{head}.bias"}
    logits = variables["model"].eval()(variables["images"])
    assert F.cross_entropy(logits, variables["labels"]) < 0.5 * math.log(10)  # half of a guess's


def test_gray_images_give_the_logits_of_their_rgb_copies(run, expected):
    variables, gray = run("Gray images"), torch.randn(2, 1, 64, 64)
    normalize = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    copies = torchvision.transforms.functional.normalize(
        variables["gray"].expand(-1, 3, -1, -1), normalize.mean, normalize.std
    )
    assert deviation(variables["logits"], expected(copies)) <= 1e-5
    one_channel = variables["model"].eval()
    assert deviation(one_channel(gray), expected(gray.expand(-1, 3, -1, -1))) <= 1e-5


def test_images_of_32_x_32(run, name):
    variables, shapes = run("32 × 32 images (CIFAR)"), []
    if name == "resnet18":
        variables["model"].layer4.register_forward_hook(lambda _, __, x: shapes.append(x.shape))
        variables["model"](torch.randn(2, 3, 32, 32))
        assert shapes == [(2, 512, 4, 4)]


def test_gradient_checkpointing_gives_the_same_gradients(run, name, model):
    if name == "alexnet":
        pytest.skip("AlexNet's memory is in its weights")
    variables = run("Gradient checkpointing")
    gradients = [
        torch.autograd.grad(m(variables["images"]).square().sum(), list(m.parameters()))
        for m in (variables["model"], model)
    ]
    for actual, same in zip(*gradients):
        assert deviation(actual, same) <= 1e-5


def test_averaged_weights_get_statistics_of_their_own(run, name):
    variables = run("Averaged weights")
    averaged, network = variables["averaged"].module, variables["model"]
    for key, value in averaged.state_dict().items():
        assert torch.equal(network.state_dict()[key], value)
    if name == "resnet18":
        statistics = averaged.bn1.running_mean.clone()
        torch.optim.swa_utils.update_bn(variables["loader"], averaged)
        assert deviation(statistics, averaged.bn1.running_mean) <= 1e-4


class Wrapped(nn.Module):
    """Holds networks under the names that they have in the checkpoints of other projects."""

    def __init__(self, **networks: nn.Module) -> None:
        super().__init__()
        for name, network in networks.items():
            self.add_module(name, network)


def with_projection(backbone: nn.Module) -> nn.Module:
    backbone.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
    return backbone


def moco(backbone: nn.Module) -> dict:
    queue = {"module.queue": torch.zeros(128, 16)}
    encoders = {"encoder_q": with_projection(backbone), "encoder_k": torchvision.models.resnet18()}
    weights = nn.DataParallel(Wrapped(**encoders)).state_dict()
    return {"epoch": 3, "arch": "resnet18", "state_dict": {**weights, **queue}}


def lightly(backbone: nn.Module) -> dict:
    sequential = nn.Sequential(*list(backbone.children())[:-1])
    network = Wrapped(backbone=sequential, projection_head=nn.Linear(512, 128))
    return {"state_dict": network.state_dict()}


@pytest.mark.parametrize(
    "save, project, prefix",
    [
        (moco, "MoCo (v1, v2)", "module.encoder_q."),
        (lightly, "lightly", "backbone."),
    ],
)
def test_a_self_supervised_backbone_loads(run, name, expected_model, save, project, prefix):
    if name == "alexnet":
        pytest.skip("the recipe is for ResNet-18")
    backbone = copy.deepcopy(expected_model)
    torch.save(save(copy.deepcopy(backbone)), "checkpoint.pth")
    section = "Self-supervised backbone"
    row = re.search(rf"^\| {re.escape(project)}.*", SECTIONS[section], re.M)
    assert f"`{prefix}`" in row[0]

    load, translate = (step.code for step in recipe(section, name))
    load = load.replace('"module.encoder_q."', repr(prefix))
    if save is lightly:
        load = load.replace("head = ", f"{translate}\nhead = ")
    variables = setup(name, MODELS[name]())
    exec(load, variables)
    network = variables["model"].eval()
    network.fc = backbone.fc = nn.Identity()
    assert deviation(network(variables["images"]), backbone(variables["images"])) <= 1e-5


def test_a_prefix_that_does_not_fit_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(moco(torchvision.models.resnet18()), "checkpoint.pth")
    load, _ = (step.code for step in recipe("Self-supervised backbone", "resnet18"))
    with pytest.raises(RuntimeError, match="conv1"):
        exec(load.replace("encoder_q", "encoder"), setup("resnet18", MODELS["resnet18"]()))


def test_a_network_with_a_new_head_comes_back_from_the_hub(run, name):
    pytest.importorskip("huggingface_hub")
    model = MODELS[name](num_classes=10)
    variables = run("Hugging Face Hub", model=model)
    assert torch.equal(variables["model"](variables["images"]), model.eval()(variables["images"]))


def test_pytorch_counts_the_operations_of_the_page(run):
    run("Count operations")
