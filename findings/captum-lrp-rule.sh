#!/usr/bin/env bash
# captum: LRP forgets the rules of the layers after one call and silently uses its default.
#
# A rule is set as the attribute `rule` of a layer. LRP.attribute deletes the attribute when it is
# done. The second call with the same network therefore uses the default rule (EpsilonRule).
#
# Seen on 2026-11-27 with captum 0.9.0, torch 2.13.0, Python 3.11, Linux, x86-64:
#   the second call gives the result of the default rule
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet captum==0.9.0 torch==2.13.0 numpy==2.4.6

"$folder/bin/python" - <<'PYTHON'
import torch
from captum.attr import LRP
from captum.attr._utils.lrp_rules import GammaRule

torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
inputs = torch.randn(4, 8)


def relevance() -> torch.Tensor:
    return LRP(network).attribute(inputs, target=0).detach()


default = relevance()
for layer in (network[0], network[2]):
    layer.rule = GammaRule()
first, second = relevance(), relevance()

print(f"first call equals the default rule: {torch.equal(first, default)}")
print(f"second call equals the default rule: {torch.equal(second, default)}")
assert not torch.allclose(first, default)
assert torch.equal(second, default), "the rules stay now"
PYTHON
