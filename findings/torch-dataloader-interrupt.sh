#!/usr/bin/env bash
# PyTorch: after a Ctrl-C that the program catches, a worker of its DataLoader prints a traceback.
#
# A worker hands a batch over as an open file, through a connection that a thread of its serves. If
# the interrupt reaches the main process while it takes the batch, the thread loses the connection
# and prints a traceback through sys.excepthook. The main process has no part in it.
#
# Seen on 2026-11-28 with torch 2.13.0, Python 3.11, Linux, x86-64 (40 interrupts, each caught):
#   by default: tracebacks with BrokenPipeError 11, ConnectionResetError 16
#   with another sys.excepthook in the worker: none
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

cat >"$folder/interrupt.py" <<'PYTHON'
import os
import random
import signal
import sys
import threading

from torch.utils.data import DataLoader


def silence(worker: int) -> None:
    sys.excepthook = lambda *error: None


if __name__ == "__main__":
    caught = 0
    for _ in range(40):
        loader = DataLoader(
            range(10**6),
            batch_size=4,
            num_workers=1,
            worker_init_fn=silence if "silence" in sys.argv else None,
        )
        batches = iter(loader)
        next(batches)
        seconds = random.uniform(0.01, 0.1)
        try:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
            for _ in batches:
                pass
        except KeyboardInterrupt:
            caught += 1
        threading.Event().wait(0.05)  # for the thread of the worker
        del batches
    assert caught == 40, caught
PYTHON

"$folder/bin/python" "$folder/interrupt.py" 2>"$folder/default"
"$folder/bin/python" "$folder/interrupt.py" silence 2>"$folder/silent"

grep -oE '^[A-Za-z]*Error' "$folder/default" | sort | uniq -c
if ! grep -q resource_sharer "$folder/default"; then
    echo "no worker printed a traceback"
    exit 1
fi
if grep -q Traceback "$folder/silent"; then
    echo "a worker printed a traceback in spite of its sys.excepthook"
    exit 1
fi
