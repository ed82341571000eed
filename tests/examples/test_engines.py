"""Each way to run a network fast gives the network's logits."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

for package in ("tyro", "pandas", "matplotlib"):
    pytest.importorskip(package)

from examples import engines  # noqa: E402
from examples.benchmark import load_images  # noqa: E402
from examples.lib.compare import TOLERANCES, relative_error  # noqa: E402
from resnet18 import BasicBlock, ResNet18  # noqa: E402


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Crops of a photograph, (8, 3, 64, 64)."""
    return load_images(size=64, count=8)


@pytest.fixture(scope="module")
def network(images) -> nn.Module:
    """A small residual network whose logits tell the images apart."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, kernel_size=7, stride=4),
        BasicBlock(16, 32, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    with torch.no_grad():
        network.train()(images)
        network.eval()[-1].bias -= network(images).mean(0)
    return network


@pytest.fixture
def expect_logits(network, images):
    """A function that fails where a way to run the network gives other logits."""

    @torch.no_grad()
    def expect(fast: engines.Network, precision: str) -> None:
        expected = network(images)
        for some in (images, images[:1]):
            logits = fast(some).float()
            error = relative_error(logits, expected[: len(some)])
            assert error < TOLERANCES[precision]
            if precision == "bfloat16" and engines.has_bfloat16():
                assert error > 1e-3  # rounded: it is not float32 under another name

    return expect


def test_bfloat16(network, expect_logits):
    fast = engines.in_bfloat16(network)
    expect_logits(fast, "bfloat16")


def test_int8_of_pytorch(network, images, expect_logits):
    pytest.importorskip("torchao")
    quantized = engines.to_int8(network, images)
    expect_logits(quantized, "int8")


def test_compiled(network, expect_logits):
    fast = engines.compiled(copy.deepcopy(network))
    expect_logits(fast, "float32")


def test_compiled_int8(network, images, expect_logits):
    pytest.importorskip("torchao")
    fast = engines.compiled_int8(network, images)
    expect_logits(fast, "int8")


def test_a_compiled_file_runs_in_another_process_without_a_compiler(network, images, tmp_path):
    pytest.importorskip("torchao")
    quantized = engines.to_int8(network, images)
    engines.compile_to_file(quantized, images, tmp_path / "network.pt2")
    torch.save(images, tmp_path / "images.pt")
    code = """if True:
        import torch
        network = torch._inductor.aoti_load_package("network.pt2")
        torch.save(network(torch.load("images.pt")), "logits.pt")
    """
    environment = {**os.environ, "CXX": "false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    with torch.no_grad():
        logits = torch.load(tmp_path / "logits.pt")
        assert relative_error(logits, network(images)) < TOLERANCES["int8"]


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A network trained on handwritten digits, images to calibrate it with, and other images."""
    pixels, labels = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    images = F.interpolate(images, size=64, mode="bilinear").expand(-1, 3, -1, -1).contiguous()
    torch.manual_seed(0)
    model = ResNet18(num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for batch in torch.randperm(1200).repeat(4).split(64):
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), torch.from_numpy(labels[batch])).backward()
        optimizer.step()
    return model.eval(), images[:128], images[1200:]


@pytest.mark.parametrize("engine", ["PyTorch", "OpenVINO", "ONNX Runtime"])
def test_int8_agrees_on_images_that_it_was_not_calibrated_on(engine, digits, tmp_path):
    needed = {"PyTorch": "torchao", "OpenVINO": "nncf", "ONNX Runtime": "onnxscript"}
    pytest.importorskip(needed[engine])
    model, calibration, test = digits
    if engine == "PyTorch":
        fast = engines.compiled_int8(model, calibration)
    elif engine == "OpenVINO":
        fast = engines.in_openvino(engines.to_openvino_int8(model, calibration))
    else:
        file = engines.to_onnx(model, calibration, tmp_path / "network.onnx")
        fast = engines.in_onnx_runtime(engines.to_onnx_int8(file, calibration))

    with torch.no_grad():
        int8, float32 = (torch.cat([m(b) for b in test.split(199)]) for m in (fast, model))
    assert (int8.argmax(1) == float32.argmax(1)).float().mean() >= 0.97
    assert relative_error(int8, float32) <= 0.2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_openvino(precision, network, images, expect_logits):
    pytest.importorskip("openvino")
    model = engines.to_openvino(network, images)
    fast = engines.in_openvino(model, {"float32": "f32", "bfloat16": "bf16"}[precision])
    expect_logits(fast, precision)


def test_openvino_int8_from_a_file(network, images, expect_logits, tmp_path):
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    model = engines.to_openvino_int8(network, images)
    openvino.save_model(model, tmp_path / "network.xml")
    fast = engines.in_openvino(tmp_path / "network.xml")
    expect_logits(fast, "int8")


def test_onnx_runtime(network, images, expect_logits, tmp_path):
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    file = engines.to_onnx(network, images, tmp_path / "network.onnx")
    expect_logits(engines.in_onnx_runtime(file), "float32")
    quantized = engines.to_onnx_int8(file, images)
    expect_logits(engines.in_onnx_runtime(quantized), "int8")


@pytest.fixture
def no_vnni(monkeypatch):
    """Let the processor be one with AVX2 and nothing later."""
    monkeypatch.setattr(engines, "capabilities", lambda: {"avx2": True})


def test_without_vnni_activations_of_pytorch_have_7_bits(no_vnni, network, images):
    pytest.importorskip("torchao")
    quantized = engines.to_int8(network, images)
    quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
    ranges = [node.args[3:5] for node in quantized.graph.nodes if node.target is quantize]
    assert ranges
    assert set(ranges) == {(0, 127)}


def test_without_vnni_weights_of_openvino_have_7_bits(no_vnni, network, images):
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    model = engines.to_openvino_int8(network, images)
    constants = [node.data for node in model.get_ops() if node.get_type_name() == "Constant"]
    weights = [constant for constant in constants if constant.dtype == "int8"]
    assert weights
    assert max(abs(weight.astype(int)).max() for weight in weights) <= 64


def test_without_vnni_weights_of_onnx_runtime_have_7_bits(no_vnni, network, images, tmp_path):
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    import onnx

    file = engines.to_onnx(network, images, tmp_path / "network.onnx")
    quantized = onnx.load(engines.to_onnx_int8(file, images))
    constants = [onnx.numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer]
    weights = [constant for constant in constants if constant.dtype == "int8"]
    assert weights
    assert max(abs(weight.astype(int)).max() for weight in weights) <= 64
