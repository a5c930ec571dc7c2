"""What the programs set up for their process, and how they end."""

import os
import platform
import signal
import subprocess
import sys

import pytest

PROBE = """
import ctypes, resource, threading
from rtseg_jax import settings

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: pages of one size
settings.prepare_process()

def faults():
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        b"x" * 100_000_000
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=faults)  # XLA's calls do not run in the main thread either
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize(
    ("variables", "kept"),
    [
        ({}, True),
        ({"MALLOC_ARENA_MAX": "2"}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}, False),
    ],
)
def test_freed_memory_is_kept_on_a_cpu_unless_malloc_was_told_otherwise(variables, kept):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    environment.pop("GLIBC_TUNABLES", None)
    environment |= {"JAX_PLATFORMS": "cpu", **variables}
    run = [sys.executable, "-c", PROBE]
    told = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    pages = 100_000_000 // os.sysconf("SC_PAGE_SIZE")
    assert int(told.stdout) < pages / 100 if kept else int(told.stdout) > pages / 2


INTERRUPTED = """
import os, signal, time
from rtseg_jax import settings

signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background ignores it

def main(argv):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)

settings.run(main)
"""


def test_an_interrupted_program_ends_without_a_traceback():
    run = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (128 + signal.SIGINT, "", "interrupted\n")
