#!/usr/bin/env bash
# ncnn: by default, the weights of linear layers are rounded to float16, those of convolutions not.
#
# On an x86 processor too, where ncnn computes in float32. A network whose convolutions are equal to
# the last bit therefore differs in its last layers. The options must be off before the weights are
# loaded.
#
# Seen on 2026-11-27 with ncnn 1.0.20261020, Python 3.11, Linux, x86-64:
#   linear, default: error 5.0e-04
#   linear, options off: error 1.5e-07
#   convolution, default: error 5.7e-07
#   convolution, options off: error 5.7e-07
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet ncnn==1.0.20261020 numpy==2.4.6

cd "$folder"
"$folder/bin/python" - <<'PYTHON'
from pathlib import Path

import ncnn
import numpy as np

random = np.random.default_rng(0)
LAYERS = {
    "linear": ("InnerProduct", "0=64 1=0 2=16384", (256,)),  # 256 values to 64
    "convolution": ("Convolution", "0=64 1=1 5=0 6=16384", (256, 8, 8)),  # 1 x 1, 256 to 64 channels
}
weights = random.standard_normal((64, 256), dtype=np.float32)
for name, (kind, options, _) in LAYERS.items():
    layers = f"Input in0 0 1 in0\n{kind} layer 1 1 in0 out0 {options}\n"
    Path(f"{name}.param").write_text(f"7767517\n2 2\n{layers}")
    # A zero says that the weights are float32.
    Path(f"{name}.bin").write_bytes(np.zeros(1, np.uint32).tobytes() + weights.tobytes())


def run(name: str, float16: bool, values: np.ndarray) -> np.ndarray:
    network = ncnn.Net()
    if not float16:
        network.opt.use_fp16_packed = False
        network.opt.use_fp16_storage = False
        network.opt.use_fp16_arithmetic = False
    network.load_param(f"{name}.param")
    network.load_model(f"{name}.bin")
    extractor = network.create_extractor()
    extractor.input("in0", ncnn.Mat(values))
    return np.array(extractor.extract("out0")[1])


errors = {}
for name, (_, _, shape) in LAYERS.items():
    values = random.standard_normal(shape, dtype=np.float32)
    exact = np.tensordot(weights.astype(np.float64), values, 1)
    for float16 in (True, False):
        error = np.abs(run(name, float16, values) - exact).max() / np.abs(exact).max()
        errors[name, float16] = error
        print(f"{name}, {'default' if float16 else 'options off'}: error {error:.1e}")

assert 1e-4 < errors["linear", True] < 1e-2
assert errors["linear", False] < 1e-6
assert errors["convolution", True] == errors["convolution", False] < 1e-6
PYTHON
