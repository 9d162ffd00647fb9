"""Freed memory is kept: in a process of its own, for it is for good."""

import subprocess
import sys

import pytest

CODE = """
import resource, numpy
from regnet_deploy.serving.allocator import keep_freed_memory
kept = keep_freed_memory()
for _ in range(5):
    numpy.ones(10**6)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    numpy.ones(10**6)  # 8 MB: 2,000 pages
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_what_was_freed_does_not_come_from_the_system_again():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    if kept == "False":
        pytest.skip("needs glibc")
    assert int(faults) < 2_000
