#!/usr/bin/env bash
# MNN: for an input of a wrong size, a network returns an empty list. It raises no exception.
#
# The network has a matrix product, which needs 16 values. For 25 values, MNN prints "Compute Shape
# Error" and `Module.forward` returns [].
#
# Seen on 2026-11-27 with mnn 3.6.1, Python 3.11, Linux, x86-64:
#   input 4 x 4: [120.0]
#   input 5 x 5: []
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet MNN==3.6.1 numpy==2.4.6 onnx==1.23.2

cd "$folder"
"$folder/bin/python" - <<'PYTHON' | grep '^input [0-9]'
import numpy as np
import onnx
from _tools import mnnconvert
from MNN import expr, nn
from onnx import TensorProto, helper, numpy_helper

# The sum of 16 values: (1, 1, 4, 4) to (1, 1).
graph = helper.make_graph(
    [
        helper.make_node("Flatten", ["values"], ["flat"]),
        helper.make_node("MatMul", ["flat", "ones"], ["sum"]),
    ],
    "sum",
    [helper.make_tensor_value_info("values", TensorProto.FLOAT, [1, 1, 4, 4])],
    [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1, 1])],
    [numpy_helper.from_array(np.ones((16, 1), np.float32), "ones")],
)
opset = [helper.make_opsetid("", 20)]
onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), "sum.onnx")
arguments = "-f ONNX --modelFile sum.onnx --MNNModel sum.mnn --bizCode any"
mnnconvert(["mnnconvert", *arguments.split()])


def run(values: np.ndarray) -> list[float]:
    """Return the value of every output."""
    module = nn.load_module_from_file("sum.mnn", ["values"], ["sum"])
    outputs = module.forward([expr.const(values, list(values.shape), expr.NCHW)])
    return [np.array(output.read()).item() for output in outputs]


right = run(np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4))
wrong = run(np.arange(25, dtype=np.float32).reshape(1, 1, 5, 5))
print("input 4 x 4:", right)
print("input 5 x 5:", wrong)
assert right == [120]
assert wrong == []
PYTHON
