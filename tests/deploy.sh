#!/usr/bin/env bash
# Run the tests of docs/deploy.md with every engine that it names, and print its table.
#
# PYTHON names a Python with the packages of tests/requirements.txt, to which two environments add
# the engines: litert-torch needs older packages than the others. The browser needs Chromium and npm.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder" runs/deploy' EXIT

packages_of() { # a Python
    "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
}
environment() { # a name, and what to install
    "$python" -m venv "$folder/$1"
    packages_of "$python" >"$(packages_of "$folder/$1/bin/python")/shared.pth"
    "$folder/$1/bin/pip" install --quiet "${@:2}"
}

environment litert litert-torch==0.10.0
environment others coremltools==9.0 executorch==1.5.1 MNN==3.6.1 ncnn==1.0.20261020 \
    opencv-python-headless==5.0.0.93 playwright pnnx==20261020
npm install --silent --prefix "$folder" onnxruntime-web@1.30.0
export NODE_PATH="$folder/node_modules"

PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 "$folder/litert/bin/python" -m pytest -q -p no:cacheprovider \
    tests/deploy_recipes.py -k litert
"$folder/others/bin/python" -m pytest -q -p no:cacheprovider tests/deploy_recipes.py -k 'not litert'

"$folder/litert/bin/python" -m tests.deploy convert LiteRT
for engine in ExecuTorch ncnn MNN OpenCV Browser; do
    "$folder/others/bin/python" -m tests.deploy convert "$engine"
done
echo 'engine | ResNet-18: size, deviation, speed | AlexNet: size, deviation, speed'
"$folder/litert/bin/python" -m tests.deploy measure LiteRT
for engine in ExecuTorch ncnn MNN OpenCV Browser; do
    "$folder/others/bin/python" -m tests.deploy measure "$engine"
done
