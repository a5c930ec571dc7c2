"""Trains and evaluates: python -m rtseg_jax.main --config=configs/eacnet.py:streets, which is rtseg train.

Without --workdir the run goes to runs/NAME, where NAME is the config with its arguments; the same command resumes it.
"""

import os
import pathlib
import re
import sys

import jax

from rtseg_jax.programs.shared.command_line import Flags, Given, Program
from rtseg_jax.programs.shared.process import prepare_process
from rtseg_jax.train.loop import train_and_evaluate


def define(flags: Flags) -> None:
    """Defines the flags."""
    flags.config()
    flags.string(
        "workdir", "The run's folder; runs/NAME if not given. The same command resumes it."
    )
    flags.switch(
        "distributed",
        "Train with other processes that run this command. SLURM, Open MPI, Kubernetes and Cloud TPU tell who they"
        " are; elsewhere the next three flags do.",
    )
    flags.string("coordinator", "HOST:PORT of the first process.")
    flags.count("num_processes", "How many there are.", None, low=1)
    flags.count("process_id", "Which one this is, from 0.", None, low=0)
    text = "Exit code of a run that a signal stopped and that saved; not 0 where a scheduler takes 0 for done."
    flags.count("stopped_exit_code", text, 0, low=0, high=255)


def main(given: Given, _: list[str]) -> int:
    """Trains the config's network."""
    if given.config is None:
        raise ValueError(
            "give --config=FILE[:ARGUMENT], such as --config=configs/eacnet.py:streets"
        )
    prepare_process()
    if given.distributed:
        _join(given)
    workdir = given.workdir
    if workdir is None:
        workdir = pathlib.Path("runs", default_name(given.config_spec))
        workdir.parent.mkdir(exist_ok=True)
        print(f"the run goes to {workdir}", flush=True)
    result = train_and_evaluate(given.config, workdir)
    return given.stopped_exit_code if result["miou"] is None else 0


def default_name(spec: str) -> str:
    """The name of a run of "DIR/FILE.py:ARGUMENT", such as "eacnet-dabnet-camvid"."""
    file, _, argument = spec.partition(":")
    words = (pathlib.PurePath(file).stem, *argument.split(","))
    return "-".join(filter(None, (re.sub(r"[^\w.]+", "_", word) for word in words)))


def _join(given: Given) -> None:
    """Waits for the other processes; all but the first one are silent from then on."""
    cluster = (given.coordinator, given.num_processes, given.process_id)
    if any(v is not None for v in cluster) and None in cluster:
        raise ValueError(
            "--coordinator, --num_processes and --process_id belong together; give all three, or none"
            " where the cluster tells them"
        )
    if given.num_processes and given.process_id >= given.num_processes:
        raise ValueError(
            f"--process_id={given.process_id} of {given.num_processes} processes; they count from 0"
        )
    # It would swallow SIGTERM from now on; the training loop has a handler of its own, and before it there is none.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(*cluster)
    except ValueError as error:
        raise ValueError(
            f"no cluster was recognised ({error}); give --coordinator, --num_processes and --process_id"
        ) from error
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")


PROGRAM = Program(__doc__, define, main)

if __name__ == "__main__":
    sys.exit(PROGRAM.run(sys.argv[1:]))
