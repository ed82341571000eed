"""What docs/recipes.md says about other libraries, each with the library itself.

`tests/libraries.sh` installs the libraries and runs this file. CI does not.
"""

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
from PIL import Image
from torch import Tensor, nn

from tests.docs import test_recipes as recipes
from tests.docs.test_recipes import ROOT, SECTIONS, code, execute, recipe, setup
from tests.oracle import MODELS, deviation

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own
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


# Several processes


# In evaluation mode, so that two processes with half of the batch each compute the gradients of one
# with all of it: in training, each would normalize by statistics of its own half.
HALF_OF_THE_BATCH = """
import copy, os

whole, rank = copy.deepcopy(model), int(os.environ["RANK"])
torch.nn.functional.cross_entropy(whole(images), labels).backward()
images, labels = images.chunk(2)[rank], labels.chunk(2)[rank]
"""
SAME_GRADIENTS = """
for (name, parameter), same in zip(model.named_parameters(), whole.parameters()):
    gradient = parameter.grad
    gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    assert same.grad.abs().max() > 0, name
    assert (gradient - same.grad).norm() <= 1e-3 * same.grad.norm(), name
"""


@pytest.mark.parametrize("heading", ["DistributedDataParallel", "FSDP2"])
def test_two_processes_compute_the_gradients_of_one_and_end(heading, name, tmp_path):
    if heading == "FSDP2" and torch.__version__ < "2.6":
        pytest.skip("fully_shard is newer")
    same_seed = "import torch\ntorch.manual_seed(0)"
    setup = code("", name).replace("224", "64")
    parallel, end = code(heading, name).split("torch.distributed.destroy_process_group()")
    assert end.strip() == ""
    parts = same_seed, setup, HALF_OF_THE_BATCH, parallel, SAME_GRADIENTS
    script = "\n".join(parts) + "torch.distributed.destroy_process_group()\n"
    (tmp_path / "train.py").write_text(script)

    command = "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "train.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=False,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
