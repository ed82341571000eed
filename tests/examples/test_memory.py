"""The commands reuse freed memory, where glibc would return it to the system."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

COUNT_PAGES = """
import resource, torch
from examples.memory import reuse_memory
from resnet18 import ResNet18

{first}
model, images = ResNet18().eval(), torch.ones(16, 3, 224, 224)
with torch.no_grad():
    model(images), model(images)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model(images)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_cleared(first: str) -> int:
    """Return how many pages the system had to provide for a third forward pass."""
    command = [sys.executable, "-c", COUNT_PAGES.format(first=first)]
    return int(subprocess.check_output(command, cwd=Path(__file__).parents[2]))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this is a property of glibc")
def test_a_repeated_forward_pass_needs_no_new_pages():
    assert pages_cleared("reuse_memory()") * 10 < pages_cleared("")
