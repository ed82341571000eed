"""Each way to run a network fast gives the network's logits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

for package in ("tyro", "pandas", "matplotlib"):
    pytest.importorskip(package)

from examples import engines  # noqa: E402
from examples.benchmark import TOLERANCES, deviation, load_images  # noqa: E402
from resnet18 import BasicBlock  # noqa: E402


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
            assert deviation(logits, expected[: len(some)]) < TOLERANCES[precision]

    return expect


def test_channels_last(network, expect_logits):
    fast = engines.channels_last(copy.deepcopy(network))
    expect_logits(fast, "float32")


def test_bfloat16(network, expect_logits):
    fast = engines.in_bfloat16(network)
    expect_logits(fast, "bfloat16")


def test_int8_of_pytorch(network, images, expect_logits):
    pytest.importorskip("torchao")
    quantized = engines.to_int8(network, images)
    expect_logits(quantized, "int8")


@pytest.mark.slow
def test_compiled(network, expect_logits):
    fast = engines.compiled(copy.deepcopy(network))
    expect_logits(fast, "float32")


@pytest.mark.slow
def test_compiled_int8(network, images, expect_logits):
    pytest.importorskip("torchao")
    fast = engines.compiled_int8(network, images)
    expect_logits(fast, "int8")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_compiled_to_a_file(precision, network, images, tmp_path):
    pytest.importorskip("torchao")
    network = copy.deepcopy(network)
    file = tmp_path / "network.pt2"
    quantized = network if precision == "float32" else engines.to_int8(network, images)
    engines.compile_to_file(quantized, images, file)
    loaded = torch._inductor.aoti_load_package(str(file))
    with torch.no_grad():
        assert deviation(loaded(images), network(images)) < TOLERANCES[precision]


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
