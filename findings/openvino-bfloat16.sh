#!/usr/bin/env bash
# OpenVINO: on a processor with bfloat16 instructions, a float32 network is computed in bfloat16.
#
# This is the default of the CPU plugin for every network, although its weights, its input and its
# output are float32. The setting INFERENCE_PRECISION_HINT="f32" computes in float32. On other
# processors the default is float32: the same program gives other digits there.
#
# Seen on 2026-11-27 with openvino 2026.4.1, Python 3.11, Linux, x86-64 (AMD Zen 5):
#   default: bf16, error 2.3e-03
#   INFERENCE_PRECISION_HINT=f32: f32, error 4.9e-07
set -euo pipefail

if ! grep --quiet --word-regexp avx512_bf16 /proc/cpuinfo; then
    echo "skipped: this processor has no bfloat16 instructions (avx512_bf16)"
    exit 0
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet openvino==2026.4.1 numpy==2.4.6

"$folder/bin/python" - <<'PYTHON'
import numpy as np
import openvino
from openvino import opset13 as ops

random = np.random.default_rng(0)
weights = random.standard_normal((256, 64), dtype=np.float32)
images = random.standard_normal((32, 256), dtype=np.float32)
exact = images.astype(np.float64) @ weights

parameter = ops.parameter([32, 256], np.float32)
network = openvino.Model(ops.matmul(parameter, ops.constant(weights), False, False), [parameter])


def run(settings: dict) -> tuple[str, float]:
    """Return the precision that OpenVINO reports, and the largest error of the largest value."""
    compiled = openvino.compile_model(network, "CPU", settings)
    (output,) = compiled(images).values()
    assert output.dtype == np.float32
    error = np.abs(output - exact).max() / np.abs(exact).max()
    return compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(), error


default, default_error = run({})
float32, float32_error = run({"INFERENCE_PRECISION_HINT": "f32"})
print(f"default: {default}, error {default_error:.1e}")
print(f"INFERENCE_PRECISION_HINT=f32: {float32}, error {float32_error:.1e}")
assert (default, float32) == ("bf16", "f32")
assert default_error > 1e-3 and float32_error < 1e-5
PYTHON
