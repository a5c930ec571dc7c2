"""Prepares data for input.source=tfds: `tfds build`, without its other subcommands and the packages that those import.

python -m rtseg_jax.data.builders cityscapes/semantic_segmentation --manual_dir=DIR_WITH_ZIPS --data_dir=DIR

The flags are those of `tfds build`; --help lists them.
"""

import sys

from absl import app

try:
    from tensorflow_datasets.scripts.cli import build, cli_utils

    from rtseg_jax.data.builders.camvid import camvid_dataset_builder  # noqa: F401 (makes it known)
except ImportError as error:
    sys.exit(f"error: this takes tensorflow-datasets ({error}); pip install 'rtseg_jax[tfds]'")


def main(args: build.Args) -> None:
    """Makes one call."""
    args.execute()


if __name__ == "__main__":
    app.run(main, flags_parser=cli_utils.make_flags_parser(build.Args, __doc__))
