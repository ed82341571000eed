"""The commands reuse freed memory, where glibc would return it to the system."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tyro")  # of the requirements of the examples

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this is a property of glibc")
def test_a_repeated_forward_pass_needs_no_new_pages():
    pages = []
    for first in "reuse_memory()", "":
        command = [sys.executable, "-c", COUNT_PAGES.format(first=first)]
        pages.append(int(subprocess.check_output(command, cwd=Path(__file__).parents[2])))
    assert pages[0] * 10 < pages[1]
