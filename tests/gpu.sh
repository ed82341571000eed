#!/usr/bin/env bash
# On a machine with a GPU: the tests that need one, the benchmark, and a training run of each network.
# It takes about ten minutes. All results are in one folder, runs/gpu or the one that is named:
#
#   bash tests/gpu.sh [FOLDER]
#
# PYTHON names the interpreter, with the packages of tests/requirements.txt. The training runs
# download CIFAR-10 to data/; DATA names a folder with train/<class>/ and val/<class>/ instead.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python} data=${DATA:-cifar10} out=${1:-runs/gpu} failed=()
if ! mkdir -p "$(dirname "$out")" || ! mkdir "$out"; then exit 1; fi # results of two runs do not mix

step() { # a name and a command: what it prints goes to the screen and to NAME.txt
    echo "== $1: ${*:2}"
    "${@:2}" 2>&1 | tee "$out/$1.txt" || failed+=("$1")
}

step machine "$python" -c '
import sys, torch, torchvision
if not torch.cuda.is_available(): sys.exit("error: PyTorch finds no CUDA device")
print("torch", torch.__version__, "torchvision", torchvision.__version__)
print(torch.cuda.get_device_name(), "CUDA", torch.version.cuda, "cuDNN", torch.backends.cudnn.version())'
[ ${#failed[@]} -eq 0 ] || exit 1 # without a GPU, the rest would take hours

step tests "$python" -m pytest -p no:cacheprovider --durations=10 \
    tests/examples/test_gpu.py tests/test_precision.py tests/test_scripts.py
step benchmark "$python" -m examples.benchmark --out "$out/benchmark"

for model in resnet18 alexnet; do
    size=64
    [ "$model" = alexnet ] && size=96
    step "train-$model" "$python" -m examples.train "$data" --model "$model" --image-size "$size" \
        --batch-size 128 --epochs 4 --precision bfloat16 --out "$out/$model"
    step "evaluate-$model" "$python" -m examples.evaluate "$data" --weights "$out/$model/model.pt"
done

echo "== failed: ${failed[*]:-nothing}; results in $out"
[ ${#failed[@]} -eq 0 ]
