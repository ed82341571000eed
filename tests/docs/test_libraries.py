"""What docs/recipes.md says about other libraries, each with the library itself."""

from __future__ import annotations

import copy
import os
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
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from tests.docs import test_recipes as recipes
from tests.docs.test_recipes import ROOT, SECTIONS, code, execute, recipe, setup
from tests.oracle import MODELS, deviation

pytestmark = [
    pytest.mark.extended,
    pytest.mark.filterwarnings("ignore"),  # the libraries' own
]
run = recipes.run  # a fixture
HEADS = {"alexnet": "fc3", "resnet18": "fc"}


@pytest.fixture
def with_modules(name, model):
    variables = setup(name, model)
    execute(recipe(recipes.ATTRIBUTION, name)[:1], variables)
    return variables["with_modules"]


def errors_on_the_page() -> list[str]:
    """Return the messages in the first column of the table of errors."""
    table = SECTIONS["Error messages"].split("|---|---|\n")[1].split("\n\n")[0]
    return re.findall(r"^\| `([^`]+)`", table, re.M)


def raises(message: str):
    """Expect an error whose message is in the table of errors on the page."""
    assert message in errors_on_the_page()
    _, _, words = message.partition(": ")
    # BaseException: CheckpointException is no Exception
    return pytest.raises(BaseException, match=re.escape(words.strip("'")))


def batch(size: int = 64) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, size, size), torch.tensor([3, 1])


def in_place_networks(name, expected_model) -> list[nn.Module]:
    """Return the networks of torchvision and timm."""
    networks = [copy.deepcopy(expected_model)]
    if name == "resnet18":
        timm = pytest.importorskip("timm")
        networks.append(timm.create_model("resnet18").eval())
        networks[1].load_state_dict(expected_model.state_dict())
    return networks


IN_PLACE = "RuntimeError: Output 0 of BackwardHookFunction is a view and is being modified inplace"


# Train


def test_differential_privacy_trains_and_loads_again(run, name, model):
    pytest.importorskip("opacus")
    torch.manual_seed(1)
    variables = run("Differential privacy")
    assert 0 < variables["engine"].get_epsilon(delta=1e-5) < 100
    assert not any(isinstance(m, nn.BatchNorm2d) for m in variables["model"].modules())
    head, before = HEADS[name] + ".weight", model.state_dict()
    assert not torch.equal(variables["model"].state_dict()[head], before[head])


def test_opacus_computes_the_gradient_of_each_image(name, model):
    opacus = pytest.importorskip("opacus")
    network = opacus.validators.ModuleValidator.fix(model).train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0
    images, labels = batch()
    wrapped = opacus.GradSampleModule(copy.deepcopy(network))
    F.cross_entropy(wrapped(images), labels).backward()
    loss = F.cross_entropy(network(images[:1]), labels[:1])
    for p, same in zip(wrapped.parameters(), torch.autograd.grad(loss, list(network.parameters()))):
        assert deviation(p.grad_sample[0], same) <= 1e-3


def test_opacus_refuses_the_networks_with_operations_in_place(name, expected_model):
    opacus = pytest.importorskip("opacus")
    images, labels = batch()
    for network in in_place_networks(name, expected_model):
        network = opacus.validators.ModuleValidator.fix(network).train()
        with raises(IN_PLACE):
            opacus.GradSampleModule(copy.deepcopy(network))(images)
        if name == "resnet18":
            wrapped = opacus.grad_sample.wrap_model(network, grad_sample_mode="ew")
            F.cross_entropy(wrapped(images), labels).backward()
            assert all(p.grad_sample.shape[0] == 2 for p in wrapped.parameters())


def test_averaged_weights_get_statistics_of_their_own(run, name):
    variables = run("Averaged weights")
    averaged, network = variables["averaged"].module, variables["model"]
    for key, value in averaged.state_dict().items():
        assert torch.equal(network.state_dict()[key], value)
    if name == "resnet18":
        statistics = averaged.bn1.running_mean.clone()
        torch.optim.swa_utils.update_bn(variables["loader"], averaged)
        assert deviation(statistics, averaged.bn1.running_mean) <= 1e-4


def test_fastai_trains_the_whole_network(run, name, tmp_path):
    pytest.importorskip("fastai")
    generator = np.random.default_rng(0)
    for index in range(12):
        file = tmp_path / "DATA" / ("train", "val")[index // 8] / "ab"[index % 2] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), "uint8")).save(file)
    step = code("fastai", name).replace("Resize(224)", "Resize(64)").replace("bs=32", "bs=4")
    if name == "alexnet":  # as the page says
        step = step.replace("512", "4096")
        step = re.sub(r"\bfc\b", "fc3", step)
    variables = setup(name, MODELS[name]())
    before = copy.deepcopy(variables["model"].state_dict())
    exec(step, variables)
    after = variables["model"].state_dict()
    assert after[f"{HEADS[name]}.weight"].shape[0] == 2
    assert not torch.equal(after["conv1.weight"].cpu(), before["conv1.weight"])
    body, head = variables["split"](variables["model"])
    assert len(head) == 2 and len(body) + len(head) == len(list(variables["model"].parameters()))


def test_fastai_makes_another_network_of_the_child_modules(name, model, expected_model):
    learner = pytest.importorskip("fastai.vision.learner")
    images, _ = batch(224)
    cut = {"cut": -2} if name == "resnet18" else {}
    ours = learner.create_body(copy.deepcopy(model), pretrained=False, **cut).eval()(images)
    theirs = learner.create_body(copy.deepcopy(expected_model), pretrained=False, **cut).eval()
    features = theirs(images)
    assert ours.shape != features.shape or deviation(ours, features) > 1e-3


def test_skorch_trains_the_network(name):
    skorch = pytest.importorskip("skorch")
    images, labels = batch()
    classifier = skorch.NeuralNetClassifier(
        MODELS[name],
        module__num_classes=10,
        criterion=nn.CrossEntropyLoss,
        max_epochs=1,
        train_split=None,
        verbose=0,
    )
    assert classifier.fit(images, labels).predict(images).shape == (2,)


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


def moco_v3(backbone: nn.Module) -> dict:
    encoders = {"base_encoder": with_projection(backbone), "predictor": nn.Linear(128, 128)}
    return {"state_dict": nn.DataParallel(Wrapped(**encoders)).state_dict()}


def simsiam(backbone: nn.Module) -> dict:
    encoders = {"encoder": with_projection(backbone), "predictor": nn.Linear(128, 128)}
    return {"state_dict": nn.DataParallel(Wrapped(**encoders)).state_dict()}


def dino(backbone: nn.Module) -> dict:
    backbone.fc = nn.Identity()
    network = nn.DataParallel(Wrapped(backbone=backbone, head=nn.Linear(512, 128)))
    return {"student": {}, "teacher": network.state_dict()}


def alone(backbone: nn.Module) -> dict:
    backbone.fc = nn.Identity()
    return backbone.state_dict()


def lightly(backbone: nn.Module) -> dict:
    sequential = nn.Sequential(*list(backbone.children())[:-1])
    network = Wrapped(backbone=sequential, projection_head=nn.Linear(512, 128))
    return {"state_dict": network.state_dict()}


@pytest.mark.parametrize(
    "save, project, prefix",
    [
        (moco, "MoCo (v1, v2)", "module.encoder_q."),
        (moco_v3, "MoCo v3", "module.base_encoder."),
        (simsiam, "SimSiam", "module.encoder."),
        (dino, "DINO", "module.backbone."),
        (alone, "a backbone saved alone", ""),
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
    assert f"`{prefix}`" in row[0] or (prefix == "" and '`""`' in row[0])

    load, translate = (step.code for step in recipe(section, name))
    load = load.replace('"module.encoder_q."', repr(prefix))
    if save is dino:
        load = load.replace('checkpoint.get("state_dict", checkpoint)', 'checkpoint["teacher"]')
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
    with pytest.raises(KeyError, match="conv1"):
        exec(load.replace("encoder_q", "encoder"), setup("resnet18", MODELS["resnet18"]()))


# Look inside


def test_backpack_computes_the_curvature_of_torchvisions_network(
    run, name, expected_model, with_modules
):
    backpack = pytest.importorskip("backpack")
    size = 224 if name == "alexnet" else 64
    images, labels = (tensor[:1] for tensor in batch(size))
    torch.manual_seed(0)  # the estimate draws at random
    network = run("Curvature", images=images, labels=labels, with_modules=with_modules)["network"]

    theirs = backpack.extend(copy.deepcopy(expected_model), use_converter=True).eval()
    loss_function = backpack.extend(nn.CrossEntropyLoss())
    torch.manual_seed(0)
    with backpack.backpack(backpack.extensions.DiagGGNMC()):
        loss_function(theirs(images), labels).backward()
    pairs = list(zip(network.parameters(), theirs.parameters()))
    assert len(pairs) == len(list(expected_model.parameters()))
    for p, same in pairs:
        assert deviation(p.diag_ggn_mc, same.diag_ggn_mc) <= 1e-5


def test_backpack_computes_gradients_per_sample_of_ours_only(name, model, expected_model):
    backpack = pytest.importorskip("backpack")
    images, labels = batch()
    loss_function = backpack.extend(nn.CrossEntropyLoss())
    network = backpack.extend(copy.deepcopy(model))
    with backpack.backpack(backpack.extensions.BatchGrad()):
        loss_function(network(images), labels).backward()
    for p in network.parameters():
        assert deviation(p.grad_batch.sum(0), p.grad) <= 1e-3
    for theirs in in_place_networks(name, expected_model):
        with raises(IN_PLACE):
            backpack.extend(theirs)(images)


def test_backpacks_errors_are_those_of_the_page(name, model, with_modules):
    backpack = pytest.importorskip("backpack")
    images, labels = batch()
    with raises("AttributeError: 'function' object has no attribute 'split'"):
        backpack.extend(copy.deepcopy(model), use_converter=True)
    if name == "alexnet":
        pool = {F.relu: nn.ReLU, F.adaptive_avg_pool2d: lambda: nn.AdaptiveAvgPool2d(6)}
        network = backpack.extend(with_modules(model, pool), use_converter=True).eval()
        loss_function = backpack.extend(nn.CrossEntropyLoss())
        with backpack.backpack(backpack.extensions.DiagGGNMC()), raises(
            "NotImplementedError: No equivalent AvgPool"
        ):
            loss_function(network(images), labels).backward()
        return
    network = backpack.extend(copy.deepcopy(model))
    loss = backpack.extend(nn.CrossEntropyLoss())(network(images), labels)
    with backpack.backpack(backpack.extensions.DiagGGNMC()), raises(
        "NotImplementedError: Extension saving to diag_ggn_mc does not have an extension"
    ):
        loss.backward()


def test_lpips_compares_the_features_of_the_five_relus(name, model, expected_model):
    networks = pytest.importorskip("lpips.pretrained_networks")
    if name == "resnet18":
        pytest.skip("lpips compares the layers of AlexNet")
    theirs = networks.alexnet(pretrained=False).eval()
    flat = expected_model.features.state_dict()
    theirs.load_state_dict({key: flat[key.split(".", 1)[1]] for key in theirs.state_dict()})
    relus = ["relu", "relu_1", "relu_2", "relu_3", "relu_4"]
    extractor = create_feature_extractor(model, relus)
    images, _ = batch()
    for ours, same in zip(extractor(images).values(), theirs(images)):
        assert deviation(ours, same) <= 1e-5


def relevance(zennit, network: nn.Module, composite: str) -> Tensor:
    torch.manual_seed(0)
    rule = getattr(zennit.composites, composite)()
    with zennit.attribution.Gradient(network, rule) as attributor:
        _, values = attributor(torch.randn(2, 3, 64, 64), torch.eye(1000)[[3, 1]])
    return values


@pytest.mark.parametrize("composite", ["EpsilonPlusFlat", "GuidedBackprop"])
def test_zennit_needs_modules_for_relus(name, model, expected_model, with_modules, composite):
    pytest.importorskip("zennit")
    import zennit.attribution
    import zennit.composites

    theirs = relevance(zennit, copy.deepcopy(expected_model), composite)
    ours = relevance(zennit, with_modules(model, {F.relu: nn.ReLU}), composite)
    assert deviation(ours, theirs) <= 1e-3
    if (name, composite) != ("alexnet", "EpsilonPlusFlat"):
        assert deviation(relevance(zennit, copy.deepcopy(model), composite), theirs) > 0.01


def test_laplace_finds_the_last_layer(name):
    laplace = pytest.importorskip("laplace")
    images, labels = batch()
    dataset = torch.utils.data.TensorDataset(images, labels)
    theirs = torchvision.models.get_model(name, num_classes=10).eval()
    ours = MODELS[name].from_state_dict(theirs.state_dict()).eval()
    predictions = []
    for network in (ours, theirs):
        fitted = laplace.Laplace(
            network, "classification", subset_of_weights="last_layer", hessian_structure="diag"
        )
        fitted.fit(torch.utils.data.DataLoader(dataset, batch_size=2))
        predictions.append(fitted(images, link_approx="probit"))
    assert deviation(*predictions) <= 1e-4


def test_torchattacks_finds_the_same_images(name, model, expected_model):
    torchattacks = pytest.importorskip("torchattacks")
    images, labels = torch.rand(2, 3, 64, 64), torch.tensor([3, 1])
    ours, theirs = (
        torchattacks.FGSM(copy.deepcopy(network), eps=8 / 255)(images, labels)
        for network in (model, expected_model)
    )
    assert (ours != theirs).float().mean() <= 1e-3


# Weights


def test_a_network_with_a_new_head_comes_back_from_the_hub(run, name):
    pytest.importorskip("huggingface_hub")
    model = MODELS[name](num_classes=10)
    variables = run("Hugging Face Hub", model=model)
    assert torch.equal(variables["model"](variables["images"]), model.eval()(variables["images"]))


def test_the_mixin_must_come_first_and_needs_the_arguments(tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    for base, message in (
        (
            MODELS["resnet18"],
            "TypeError: ResNet18.from_pretrained() takes 1 positional argument but 2 were given",
        ),
        (
            torchvision.models.ResNet,
            "TypeError: ResNet.__init__() missing 1 required positional argument: 'block'",
        ),
    ):
        model = type("Hub", (base, hub.PyTorchModelHubMixin), {})
        network = (
            model()
            if base is MODELS["resnet18"]
            else model(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2])
        )
        network.save_pretrained(tmp_path)
        with raises(message):
            model.from_pretrained(tmp_path)


def test_torch_pruning_prunes_as_it_prunes_torchvisions(name, model, expected_model, tmp_path):
    pruning = pytest.importorskip("torch_pruning")
    images, outputs = torch.randn(2, 3, 224, 224), []
    for network in (model, expected_model):
        network = copy.deepcopy(network)
        *_, head = (module for module in network.modules() if isinstance(module, nn.Linear))
        importance = pruning.importance.MagnitudeImportance(p=2)
        pruning.pruner.MagnitudePruner(
            network, images[:1], importance=importance, pruning_ratio=0.5, ignored_layers=[head]
        ).step()
        outputs.append(network(images))
        if type(network) is MODELS[name]:
            torch.save(network, tmp_path / "pruned.pt")
            loaded = torch.load(tmp_path / "pruned.pt", weights_only=False)
            assert torch.equal(loaded(images), outputs[0])
            with raises("RuntimeError: size mismatch for"):
                MODELS[name].from_state_dict(network.state_dict())
    assert deviation(*outputs) <= 1e-4


SAVE = """
torch.distributed.init_process_group("gloo")
expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
torch.distributed.init_process_group = lambda backend: None  # once
torch.distributed.destroy_process_group = lambda: None
"""
END = """
if torch.distributed.get_rank() == 0:
    torch.save(expected, "expected.pth")
    torch.save(model.state_dict(), "shard.pth")
torch.distributed.barrier()
import os; os._exit(0)  # gloo's threads may abort later
"""


@pytest.mark.slow
@pytest.mark.parametrize("heading", ["DistributedDataParallel", "FSDP2"])
def test_two_processes_save_a_checkpoint_that_one_reads(heading, name, tmp_path, monkeypatch):
    if (heading, name) == ("DistributedDataParallel", "alexnet"):
        pytest.skip("ResNet-18 stands for both, in less time")
    if heading == "FSDP2" and torch.__version__ < "2.6":
        pytest.skip("fully_shard is new in PyTorch 2.6")
    monkeypatch.chdir(tmp_path)
    whole, folder, read = (s.code for s in recipe("Checkpoints of several processes", name))
    if heading == "DistributedDataParallel":
        whole, folder = (part.replace("dict(model", "dict(parallel") for part in (whole, folder))
    parts = ["import torch\ntorch.manual_seed(0)", code("", name).replace("224", "64"), SAVE]
    parts += [code(heading, name), whole, folder, END]
    Path("train.py").write_text("\n".join(parts))
    command = "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "train.py"
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=300,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr

    same, saved = torch.load("expected.pth"), torch.load(f"{name}.pth", weights_only=True)
    variables = setup(name, MODELS[name]())
    exec(read, variables)
    for weights in (saved, variables["model"].state_dict()):
        assert all(torch.equal(weights[key], tensor) for key, tensor in same.items())
    if heading == "FSDP2":
        shard = torch.load("shard.pth", weights_only=True)
        with raises("RuntimeError: aten.copy_.default got mixed torch.Tensor and DTensor"):
            MODELS[name].from_state_dict(shard)


def test_a_distributed_checkpoint_with_other_names_or_classes_is_refused(tmp_path):
    import torch.distributed.checkpoint as dcp

    weights = nn.DataParallel(MODELS["resnet18"](num_classes=10)).state_dict()
    dcp.save(weights, checkpoint_id=tmp_path / "prefix")
    with raises("CheckpointException: Missing key in checkpoint state_dict: bn1.bias"):
        dcp.load(MODELS["resnet18"]().state_dict(), checkpoint_id=tmp_path / "prefix")
    weights = MODELS["resnet18"](num_classes=10).state_dict()
    dcp.save(weights, checkpoint_id=tmp_path / "classes")
    with raises("ValueError: Size mismatch between saved torch.Size([10]) and current"):
        dcp.load(MODELS["resnet18"]().state_dict(), checkpoint_id=tmp_path / "classes")


def test_integer_counters_cannot_be_averaged():
    counter = MODELS["resnet18"]().bn1.num_batches_tracked
    with raises("RuntimeError: mean(): could not infer output dtype"):
        torch.stack([counter, counter]).mean(0)
    with raises("RuntimeError: result type Float can't be cast to the desired output type Long"):
        counter /= 2


def test_a_backbone_and_an_average_are_refused(name, model):
    weights = torch.optim.swa_utils.AveragedModel(model).state_dict()
    with raises({"alexnet": "KeyError: 'fc3.weight'", "resnet18": "KeyError: 'fc.weight'"}[name]):
        MODELS[name].from_state_dict(weights)


def test_the_other_errors_of_the_page(expected_model, name):
    if name == "alexnet":
        children = nn.Sequential(*list(MODELS[name]().children())[:-1])
        with raises("RuntimeError: mat1 and mat2 shapes cannot be multiplied"):
            children(torch.randn(2, 3, 224, 224))
        return
    with raises("ValueError: Expected more than 1 value per channel when training"):
        MODELS[name]().train()(torch.randn(1, 3, 32, 32))

    pytest.importorskip("torchao")
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    program = torch.export.export(expected_model, (torch.randn(2, 3, 64, 64),)).module()
    config = x86.get_default_x86_inductor_quantization_config()
    with raises("ValueError: Input partition has more than one output node"):
        prepare_pt2e(program, x86.X86InductorQuantizer().set_global(config))


class KeywordPool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.conv(x), output_size=6)


def test_calflops_takes_the_output_size_by_position_only():
    pytest.importorskip("calflops")
    script = "import calflops, tests.docs.test_libraries as t"
    script += "; calflops.calculate_flops(t.KeywordPool(), (1, 3, 12, 12), print_results=False)"
    done = subprocess.run(  # in a process of its own: later counts would be wrong
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=False, text=True
    )
    message = "TypeError: _pool_flops_compute() got an unexpected keyword argument 'output_size'"
    assert message in errors_on_the_page()
    assert message in done.stderr


def test_every_error_of_the_page_is_expected_here():
    source = Path(__file__).read_text(encoding="utf-8")
    assert [message for message in errors_on_the_page() if f'"{message}' not in source] == []


# Count operations


def counts_on_the_page() -> dict[str, list[int]]:
    """Return the numbers of each row: AlexNet's, ResNet-18's."""
    rows = re.findall(r"^\| ([^|]+) \| ([\d,]+) \| ([\d,]+) \|", SECTIONS["Count operations"], re.M)
    return {row: [int(number.replace(",", "")) for number in numbers] for row, *numbers in rows}


def flop_counter_mode(model: nn.Module, images: Tensor) -> int:
    counting = pytest.importorskip("torch.utils.flop_counter").FlopCounterMode(display=False)
    with counting:
        model(images)
    return counting.get_total_flops()


def calflops(model: nn.Module, images: Tensor) -> int:
    calculate = pytest.importorskip("calflops").calculate_flops
    options = {"print_results": False, "print_detailed": False, "output_as_string": False}
    return calculate(model, tuple(images.shape), **options)[1]


def torchinfo(model: nn.Module, images: Tensor) -> int:
    return (
        pytest.importorskip("torchinfo")
        .summary(model, input_data=images, verbose=0)
        .total_mult_adds
    )


def ptflops(model: nn.Module, images: Tensor, **options: str) -> int:
    count = pytest.importorskip("ptflops").get_model_complexity_info
    shape = tuple(images.shape[1:])
    silent = {"as_strings": False, "print_per_layer_stat": False, "verbose": False}
    return int(count(model, shape, **silent, **options)[0])


def ptflops_aten(model: nn.Module, images: Tensor) -> int:
    return ptflops(model, images, backend="aten")


def fvcore(model: nn.Module, images: Tensor) -> int:
    return int(pytest.importorskip("fvcore.nn").FlopCountAnalysis(model, images).total())


def thop(model: nn.Module, images: Tensor) -> int:
    return int(pytest.importorskip("thop").profile(model, (images,), verbose=False)[0])


@pytest.mark.parametrize(
    "row, count",
    [
        ("PyTorch's `FlopCounterMode`", flop_counter_mode),
        ("calflops, multiply-adds", calflops),
        ("torchinfo", torchinfo),
        ('ptflops, `backend="aten"`', ptflops_aten),
        ("ptflops, default", ptflops),
        ("fvcore", fvcore),
        ("thop", thop),
    ],
)
def test_each_counter_prints_what_the_page_says(name, row, count):
    model = MODELS[name]().eval()
    index = list(MODELS).index(name)
    assert count(model, torch.randn(1, 3, 224, 224)) == counts_on_the_page()[row][index]


def test_pytorch_counts_the_multiply_adds_of_the_page(run, name):
    run("Count operations")
    assert len(counts_on_the_page()) == 7
