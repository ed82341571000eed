#!/usr/bin/env bash
# Run the tests of what docs/recipes.md says about other libraries, with each library that it names.
#
# PYTHON names a Python with the packages of tests/requirements.txt, to which an environment adds
# the libraries.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

packages_of() { # a Python
    "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
}

"$python" -m venv "$folder/libraries"
packages_of "$python" >"$(packages_of "$folder/libraries/bin/python")/shared.pth"
"$folder/libraries/bin/pip" install --quiet backpack-for-pytorch==1.7.1 calflops==0.3.2 \
    fastai==2.8.12 fvcore==0.1.5.post20221221 opacus==1.6.0 ptflops==0.7.5 \
    thop==0.1.1.post2209072238 torch-pruning==1.6.1 torchinfo==1.8.0 zennit==0.5.1

PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 "$folder/libraries/bin/python" -m pytest -q -p no:cacheprovider \
    tests/libraries.py
