"""What the programs set up for their process, and how they end."""

import os
import platform
import signal
import subprocess
import sys

import pytest

PROBE = """
import ctypes, resource, statistics, sys, threading
import jax
import jax.numpy as jnp
from rtseg_jax import settings

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: pages of one size
many_threads = sys.argv[1] == "many"
settings.prepare_process(many_threads=many_threads)

@jax.jit
def program(x):
    return (x @ x.T).sum()  # through 100 MB

def count():
    x, faults = jnp.ones((5_000, 8)), []
    for _ in range(60):  # now and then a block is split
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        program(x).block_until_ready()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    print(round(statistics.fmean(faults)))

if many_threads:
    thread = threading.Thread(target=count)
    thread.start()
    thread.join()
else:
    count()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize(
    ("variables", "threads", "kept"),
    [
        ({}, "one", True),
        ({}, "many", True),
        ({"MALLOC_ARENA_MAX": "2"}, "one", False),
        ({"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}, "many", False),
    ],
)
def test_freed_memory_is_kept_on_a_cpu_unless_malloc_was_told_otherwise(variables, threads, kept):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    environment.pop("GLIBC_TUNABLES", None)
    environment |= {"JAX_PLATFORMS": "cpu", **variables}
    run = [sys.executable, "-c", PROBE, threads]
    told = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    pages = 100_000_000 // os.sysconf("SC_PAGE_SIZE")
    assert int(told.stdout) < 0.6 * pages if kept else int(told.stdout) > 0.75 * pages


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
