"""What the programs set up for their process, and how they end."""

import os
import platform
import signal
import subprocess
import sys

import pytest

PROBE = """
import ctypes, resource, sys, threading
import jax
import jax.numpy as jnp
from rtseg_jax.programs.shared.process import prepare_process

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: pages of one size
many_threads = sys.argv[1] == "many"
prepare_process(many_threads=many_threads)

def count(take):
    for _ in range(15):  # it takes some until there are enough blocks
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        take()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if many_threads:
    thread = threading.Thread(target=count, args=(lambda: b"x" * 100_000_000,))
    thread.start()
    thread.join()
else:
    x, add = jnp.ones(25_000_000), jax.jit(lambda x: x + 1)
    count(lambda: add(x).block_until_ready())
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
    assert int(told.stdout) < pages / 100 if kept else int(told.stdout) > pages / 2


INTERRUPTED = """
import os, signal, time
import sys
from rtseg_jax.programs.shared.command_line import Program

signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background ignores it

def main(given, _):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)

sys.exit(Program("", lambda flags: None, main).run([]))
"""


def test_an_interrupted_program_ends_without_a_traceback():
    run = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (128 + signal.SIGINT, "", "interrupted\n")
