#!/usr/bin/env bash
# MNN: the commands of its Python package install another package when they start.
#
# `mnnconvert` and `mnnquant` run `pip install -U aliyun-log-python-sdk`, whatever their arguments
# are, with the `pip` that comes first in the PATH: not necessarily that of their own environment.
# The function `_tools.mnnconvert`, which the command calls, does not.
#
# Here a script in the place of `pip` writes down how it is called, and installs nothing.
#
# Seen on 2026-11-27 with mnn 3.6.1, Python 3.11, Linux, x86-64:
#   mnnconvert: pip install -U aliyun-log-python-sdk
#   mnnquant: pip install -U aliyun-log-python-sdk
#   _tools.mnnconvert: pip is not called
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet MNN==3.6.1 numpy==2.4.6

mkdir "$folder/stand-in"
printf '#!/bin/sh\necho "pip $*" >>"%s"\n' "$folder/calls" >"$folder/stand-in/pip"
chmod +x "$folder/stand-in/pip"

expect() { # what is run, what pip must have been called with, and the command
    : >"$folder/calls"
    PATH="$folder/stand-in:$PATH" "${@:3}" >/dev/null 2>&1 || true
    calls=$(sort --unique "$folder/calls")
    echo "$1: ${calls:-pip is not called}"
    [ "$calls" = "$2" ]
}

install="pip install -U aliyun-log-python-sdk"
expect mnnconvert "$install" "$folder/bin/mnnconvert" --help
expect mnnquant "$install" "$folder/bin/mnnquant"
expect _tools.mnnconvert "" "$folder/bin/python" -c \
    'import _tools; _tools.mnnconvert(["mnnconvert", "--help"])'
