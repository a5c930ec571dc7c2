"""Trains and evaluates: python -m rtseg_jax.main --config=configs/eacnet.py:streets --workdir=runs/first."""

from absl import flags

from rtseg_jax import settings, train

_CONFIG = settings.define_config_flag()
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; the same command resumes it.")


def main(argv: list[str]) -> None:
    """Reads the flags and makes one call."""
    if argv[1:]:
        raise ValueError(f"unexpected argument '{argv[1]}'; flags are --config and --workdir")
    if _CONFIG.value is None or _WORKDIR.value is None:
        raise ValueError("give --config=FILE[:ARGUMENT] and --workdir=DIR")
    settings.use_compilation_cache()
    train.train_and_evaluate(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    settings.run(main)
