#!/usr/bin/env bash
# OpenVINO: a NumPy array that was passed to an earlier call is overwritten with a later input.
#
# A compiled model that is called shares the memory of its input (share_inputs=True). If its batch
# dimension is -1, a later inference in another infer request writes its own input into that array.
# So whoever warms up with an image and then makes a request for each thread has changed that image.
# The array is left alone with share_inputs=False, or if the batch size is fixed.
#
# Seen on 2026-11-27 with openvino 2026.4.1, Python 3.11, Linux, x86-64 (AMD Zen 5):
#   batch -1: the first array is now the second
#   batch -1, share_inputs=False: the first array is unchanged
#   batch 64: the first array is unchanged
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet openvino==2026.4.1 numpy==2.4.6

"$folder/bin/python" - <<'PYTHON'
import numpy as np
import openvino
from openvino import opset13 as ops

random = np.random.default_rng(0)
weights = random.standard_normal((1000, 10), dtype=np.float32)


def first_array_after(batch: int, share_inputs: bool) -> str:
    """Return what is in an array after a call with it and a request with a second array."""
    parameter = ops.parameter([batch, 1000], np.float32)
    product = ops.matmul(parameter, ops.constant(weights), False, False)
    network = openvino.Model([ops.result(product)], [parameter])
    compiled = openvino.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    first, second = random.standard_normal((2, 64, 1000), dtype=np.float32)
    before = first.copy()
    compiled(first, share_inputs=share_inputs)
    compiled.create_infer_request().infer(second)
    if np.array_equal(first, before):
        return "unchanged"
    return "now the second" if np.array_equal(first, second) else "changed"


overwritten = first_array_after(-1, True)
copied = first_array_after(-1, False)
fixed = first_array_after(64, True)
print(f"batch -1: the first array is {overwritten}")
print(f"batch -1, share_inputs=False: the first array is {copied}")
print(f"batch 64: the first array is {fixed}")
assert (overwritten, copied, fixed) == ("now the second", "unchanged", "unchanged")
PYTHON
