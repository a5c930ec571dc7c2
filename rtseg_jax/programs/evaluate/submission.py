"""Class maps of Cityscapes as the evaluation server takes them, and the official evaluation of them.

The rules are those of cityscapesscripts' evalPixelLevelSemanticLabeling: for every image CITY_SEQUENCE_FRAME one PNG,
anywhere in the archive, whose name begins with these; one channel, of the image's size, that holds official label
ids. A network only knows the 19 that are evaluated.
"""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from rtseg_jax.data import spec
from rtseg_jax.data.sets import cityscapes

SIZE = (1024, 2048)  # (h, w) of every frame
LABEL_IDS = np.array(
    [row.id for row in sorted(cityscapes.CLASSES, key=lambda r: r.train_id) if row.train_id in range(19)],
    np.uint8,
)  # fmt: skip
_ENDING = "_labelIds.png"


def write(folder: pathlib.Path, name: str, classes: spec.Label) -> None:
    """Writes a class map of train ids under an example's name, as official label ids."""
    Image.fromarray(LABEL_IDS[classes]).save(folder / f"{name}{_ENDING}")


def check(folder: pathlib.Path, names: Sequence[str]) -> list[str]:
    """Checks what lies in a folder against the server's rules.

    Args:
        folder: With the PNGs, in it or below.
        names: CITY_SEQUENCE_FRAME of every image of the split.

    Returns:
        A line for everything that is wrong.
    """
    files: dict[str, list[pathlib.Path]] = {name: [] for name in names}
    problems = []
    for path in sorted(folder.rglob("*.png")):
        frame = re.match(r"[^_]+_\d{6}_\d{6}", path.name)
        if frame and frame[0] in files:
            files[frame[0]].append(path)
        else:
            problems.append(f"{path}: belongs to no image of the split; remove it")
    for name, found in files.items():
        if not found:
            problems.append(f"{folder / name}*.png: missing; every image of the split needs one")
        elif len(found) > 1:
            problems.append(f"{found[1]}: {name} has {found[0].name} too; the server takes one")
        problems += [line for path in found if (line := _check_file(path))]
    return problems


def _check_file(path: pathlib.Path) -> str | None:
    try:
        with Image.open(path) as image:
            if image.format != "PNG" or image.mode != "L":
                return f"{path}: a {image.format} of mode {image.mode}; expects an 8-bit grey PNG"
            values = np.asarray(image)
    except Exception as error:  # decoders fail with anything from OSError to SyntaxError
        return f"{path}: cannot be read ({' '.join(str(error).split())}); write it again"
    if values.shape != SIZE:
        (h, w), (wanted_h, wanted_w) = values.shape, SIZE
        return f"{path}: {h}x{w} pixels (h x w); expects {wanted_h}x{wanted_w}"
    wrong = np.setdiff1d(values, LABEL_IDS)
    if wrong.size:
        return (
            f"{path}: values {spec.format_values(wrong.tolist())} are no label ids that are "
            f"evaluated; allowed are {spec.format_values(LABEL_IDS.tolist())}"
        )
    return None


def pack(folder: pathlib.Path) -> pathlib.Path:
    """Puts a folder's PNGs into one archive beside it, the file to upload."""
    archive = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:  # PNGs are compressed already
        for path in sorted(folder.rglob("*.png")):
            file.write(path, path.relative_to(folder))
    return archive


# In a process of its own: the scripts read the environment when they are imported and exit on errors, and with
# numpy 2.4 they need a name that it has dropped.
_OFFICIAL = """
import json, sys
import numpy
numpy.in1d = getattr(numpy, "in1d", numpy.isin)
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
official.args.JSONOutput, official.args.quiet = False, True
pairs = json.load(sys.stdin)
result = official.evaluateImgLists(pairs["predictions"], pairs["truths"], official.args)
sys.stdout.write("\\n" + json.dumps(result))
"""


def check_truths(root: pathlib.Path, split: str, names: Sequence[str]) -> list[pathlib.Path]:
    """The *_labelIds.png of a split, once they and the *_instanceIds.png beside them are seen to be there.

    Raises:
        ValueError: cityscapesscripts is not installed, or a split without public labels.
        FileNotFoundError: one is missing.
    """
    if importlib.util.find_spec("cityscapesscripts") is None:
        raise ValueError(
            "the official evaluation needs cityscapesscripts; pip install 'rtseg_jax[cityscapes]'"
        )
    spec.check_split("the official evaluation", split, ("train", "val"))
    truths = [
        root / "gtFine" / split / name.split("_")[0] / f"{name}_gtFine_labelIds.png"
        for name in names
    ]
    for truth in truths:
        for path in (truth, truth.with_name(truth.name.replace("labelIds", "instanceIds"))):
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path}: missing, and the official evaluation needs it; "
                    "unpack gtFine_trainvaltest.zip again"
                )
    return truths


def evaluate(folder: pathlib.Path, root: pathlib.Path, split: str, names: Sequence[str]) -> Any:
    """The official evaluation of what `write` wrote, by cityscapesscripts: IoU and iIoU of classes and categories.

    Args:
        folder: With the PNGs.
        root: The folder with gtFine.
        split: train or val.
        names: CITY_SEQUENCE_FRAME of every image of the split.

    Returns:
        The script's own result: averageScoreClasses, averageScoreInstClasses, averageScoreCategories,
        averageScoreInstCategories, classScores, classInstScores, categoryScores, categoryInstScores, confMatrix, ....

    Raises:
        ValueError: cityscapesscripts refuses a file; else as of check_truths().
        FileNotFoundError: as of check_truths().
    """
    truths = check_truths(root, split, names)
    pairs = {
        "predictions": [str(folder / f"{name}{_ENDING}") for name in names],
        "truths": list(map(str, truths)),
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CITYSCAPES_")}
    done = subprocess.run(
        [sys.executable, "-c", _OFFICIAL],
        input=json.dumps(pairs),
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise ValueError(f"cityscapesscripts: {lines[-1] if lines else 'failed'}")
    return json.loads(done.stdout.splitlines()[-1])
