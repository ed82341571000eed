#!/usr/bin/env bash
# torchrun: after a restart, the processes find in the store what those before them have written.
#
# So a process group of gloo may read the address of a process that is dead, and wait for it. With
# TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 the store is empty after a restart; a `PrefixStore` named
# after TORCHELASTIC_RESTART_COUNT has the same effect.
#
# Seen on 2026-12-01 with torch 2.13.0, Python 3.11, Linux, x86-64:
#   start 0: found nothing
#   start 1: found what start 0 has written
#   start 0: found nothing
#   start 1: found nothing (TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1)
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

cd "$folder"
cat >worker.py <<'PYTHON'
import os
import sys

from torch.distributed.rendezvous import rendezvous

store, _, _ = next(rendezvous("env://"))
start = os.environ["TORCHELASTIC_RESTART_COUNT"]
own = os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE")
found = "what start 0 has written" if store.check(["written"]) else "nothing"
print(f"start {start}: found {found}" + (f" ({own=})" if own and start == "1" else ""), flush=True)
store.set("written", "by start 0")
sys.exit(1 if start == "0" else 0)
PYTHON
run() {
  "$folder/env/bin/python" -m torch.distributed.run --standalone --max-restarts 1 worker.py 2>/dev/null
}
run | tee shared
TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 run | tee own
grep -q "start 1: found what start 0 has written" shared
grep -q "start 1: found nothing" own
