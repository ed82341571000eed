#!/usr/bin/env bash
# Run all tests, in two processes at a time; options are passed to pytest. Each process takes the
# files of one line below: they share imports and fixtures, the first six files a training run.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 # a core for each process

training=(tests/examples/test_{interruptions,processes,restarts,resume,train,workers}.py)
exports=(tests/examples/test_{benchmark,engines,export}.py)
{
    echo "${training[@]}"
    echo "${exports[@]}"
    echo tests/docs
    echo tests/examples "${training[@]/#/--ignore=}" "${exports[@]/#/--ignore=}"
    echo tests/test_*.py
} | xargs -P 2 -L 1 pytest -q "$@"
