#!/usr/bin/env bash
# Run the tests of the networks on the oldest and on the newest Python and PyTorch that they are for.
# The interpreters are python3.8 and python3.13, or those that OLDEST and NEWEST name.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT

check() { # an interpreter and what to install
    "$1" -m venv --clear "$environment"
    "$environment/bin/python" -m pip install --quiet "${@:2}"
    "$environment/bin/python" -c 'import platform, torch, torchvision
print("Python", platform.python_version(), "torch", torch.__version__, "torchvision", torchvision.__version__)'
    "$environment/bin/python" -m pytest -q -p no:cacheprovider
}

# shellcheck disable=SC2046  # a requirement is one word
check "${OLDEST:-python3.8}" $(sed 's/>=/==/' requirements.txt) pytest
check "${NEWEST:-python3.13}" --upgrade -r requirements.txt pytest
