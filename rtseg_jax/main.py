"""Trains and evaluates: python -m rtseg_jax.main --config=configs/eacnet.py:streets --workdir=runs/first."""

import os
import sys

import jax
from absl import flags

from rtseg_jax import settings, train

_CONFIG = settings.define_config_flag()
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; the same command resumes it.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Train with other processes that run this command. SLURM, Open MPI, Kubernetes and Cloud TPU tell"
    " who they are; elsewhere the next three flags do.",
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of the first process.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many there are.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.", lower_bound=0)
_STOPPED_EXIT_CODE = flags.DEFINE_integer(
    "stopped_exit_code",
    0,
    "What a run ends with that a signal stopped and that saved; not 0 where a scheduler takes 0 for done.",
    lower_bound=0,
    upper_bound=255,
)


def main(argv: list[str]) -> None:
    """Reads the flags and makes one call."""
    if argv[1:]:
        raise ValueError(f"unexpected argument '{argv[1]}'; flags are --config and --workdir")
    if _CONFIG.value is None or _WORKDIR.value is None:
        raise ValueError("give --config=FILE[:ARGUMENT] and --workdir=DIR")
    settings.prepare_process()
    if _DISTRIBUTED.value:
        _join()
    result = train.train_and_evaluate(_CONFIG.value, _WORKDIR.value)
    if result["miou"] is None:
        sys.exit(_STOPPED_EXIT_CODE.value)


def _join() -> None:
    """Waits for the other processes; all but the first one are silent from then on."""
    given = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if any(v is not None for v in given) and None in given:
        raise ValueError(
            "--coordinator, --num_processes and --process_id belong together; give all three, or none"
            " where the cluster tells them"
        )
    if _NUM_PROCESSES.value and _PROCESS_ID.value >= _NUM_PROCESSES.value:
        raise ValueError(
            f"--process_id={_PROCESS_ID.value} of {_NUM_PROCESSES.value} processes; they count from 0"
        )
    # It would swallow SIGTERM from now on; the training loop has a handler of its own, and before it there is none.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(*given)
    except ValueError as error:
        raise ValueError(
            f"no cluster was recognised ({error}); give --coordinator, --num_processes and --process_id"
        ) from error
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")


if __name__ == "__main__":
    settings.run(main)
