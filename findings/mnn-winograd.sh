#!/usr/bin/env bash
# MNN: convolutions of 3 x 3 lose three digits, with "precision": "high" too.
#
# The cause is Winograd's algorithm, which MNN uses for convolutions of stride 1.
# The hint 3 (WINOGRAD_MEMORY_LEVEL) set to 0 turns it off.
#
# Seen on 2026-11-27 with mnn 3.6.1, Python 3.11, Linux, x86-64:
#   kernel 1 x 1, default: error 2.6e-07
#   kernel 1 x 1, hint: error 2.6e-07
#   kernel 3 x 3, default: error 1.2e-03
#   kernel 3 x 3, hint: error 8.6e-07
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet MNN==3.6.1 numpy==2.4.6 onnx==1.23.2

cd "$folder"
"$folder/bin/python" - <<'PYTHON' | grep '^kernel'
import numpy as np
import onnx
from _tools import mnnconvert
from MNN import expr, nn
from onnx import helper, numpy_helper

random = np.random.default_rng(0)
size, channels = 56, 64
images = random.standard_normal((1, channels, size, size), dtype=np.float32)


def exact(weights: np.ndarray) -> np.ndarray:
    """Return the convolution of the images in float64."""
    kernel = weights.shape[2]
    padded = np.pad(images.astype(np.float64), [(0, 0), (0, 0), (kernel // 2,) * 2, (kernel // 2,) * 2])
    output = np.zeros((channels, size, size))
    for i in range(kernel):
        for j in range(kernel):
            part = padded[0, :, i : i + size, j : j + size]
            output += np.tensordot(weights[:, :, i, j].astype(np.float64), part, 1)
    return output


def run(winograd: bool) -> np.ndarray:
    runtime = nn.create_runtime_manager(({"backend": "CPU", "precision": "high", "numThread": 1},))
    if not winograd:
        runtime.set_hint(3, 0)
    module = nn.load_module_from_file("conv.mnn", ["images"], ["output"], runtime_manager=runtime)
    (output,) = module.forward([expr.const(images, list(images.shape), expr.NCHW)])
    return np.array(output.read())[0]


errors = {}
for kernel in (1, 3):
    weights = random.standard_normal((channels, channels, kernel, kernel), dtype=np.float32)
    shape = [1, channels, size, size]
    tensors = [helper.make_tensor_value_info(n, 1, shape) for n in ("images", "output")]
    conv = helper.make_node("Conv", ["images", "weights"], ["output"], pads=[kernel // 2] * 4)
    graph = helper.make_graph(
        [conv], "conv", tensors[:1], tensors[1:], [numpy_helper.from_array(weights, "weights")]
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), "conv.onnx")
    arguments = "-f ONNX --modelFile conv.onnx --MNNModel conv.mnn --bizCode any"
    mnnconvert(["mnnconvert", *arguments.split()])

    expected = exact(weights)
    for winograd in (True, False):
        error = np.abs(run(winograd) - expected).max() / np.abs(expected).max()
        errors[kernel, winograd] = error
        print(f"kernel {kernel} x {kernel}, {'default' if winograd else 'hint'}: error {error:.1e}")

assert errors[3, True] > 2e-5
assert errors[3, False] < 1e-6
assert errors[1, True] < 1e-6
PYTHON
