"""From a data set to a report: confusion, IoU table, evaluation.json, overlay pictures.

rtseg evaluate --workdir=RUN --split=test
rtseg evaluate --workdir=RUN --scales=0.5,1.0,1.5 --flip
rtseg evaluate --workdir=RUN --dtype=bfloat16
rtseg evaluate --workdir=RUN --split=test --submission=DIR
rtseg evaluate --network=dabnet.safetensors --config=dabnet:cityscapes --config.input.root=DIR

With several scales, or the mirrored frame beside the frame itself, a pixel's class is that of the highest mean of the
softmax probabilities, each upsampled to the frame's size as logits.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rtseg_jax import data
from rtseg_jax.base import config as settings
from rtseg_jax.base.files import absolute
from rtseg_jax.data import pipeline
from rtseg_jax.data.spec import Dataset
from rtseg_jax.inference import metrics
from rtseg_jax.inference.evaluator import (
    counting,
    evaluate,
    left_out,
    or_null,
    percent,
    spread,
    table,
    write_overlays,
    write_report,
)
from rtseg_jax.inference.network import OWN, Network, Pair, check_classes, classifier, load
from rtseg_jax.programs.evaluate import submission
from rtseg_jax.programs.shared.command_line import (
    Flags,
    Given,
    Program,
    check_folder,
)
from rtseg_jax.programs.shared.process import prepare_process


def evaluate_run(
    place: pathlib.Path | str,
    *,
    split: str,
    which: str,
    output: pathlib.Path,
    batch_size: int,
    overlays: int,
    root: str | None = None,
    size: Pair | str | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    dtype: str = "float32",
    submit: pathlib.Path | None = None,
    official: bool = False,
    max_bad: int | None = None,
    of: ConfigDict | None = None,
) -> metrics.Scores:
    """Evaluates a network and writes evaluation.json and overlays.

    Args:
        place: The network; see inference.network.load.
        split: Name of the split, such as "val", of the data set.
        which: Which weights of a run, as of load().
        output: Folder for evaluation.json and overlays/.
        batch_size: Frames per call.
        overlays: How many pictures.
        root: The data set's folder, if it has moved.
        size: (h, w) that the network sees, "own" for the frames' own, None as the config says: config.input.size
            resizes the files, config.eval.size what the network sees of them.
        scales: Factors of the size that the network sees. With several, a pixel gets the class with the highest mean probability.
        flip: Whether the mirrored frame counts too, with the same weight as the frame itself.
        dtype: The type that is computed in, "float32" or "bfloat16".
        submit: Folder for the label ids of Cityscapes, at the files' own size, whatever size the network sees; it is
            checked and packed into an archive beside it.
        official: Evaluates them with cityscapesscripts too; they are in output/submission unless `submit` says.
        max_bad: So many images that cannot be read are left out, and named in evaluation.json; None as the config says,
            and none for a submission.
        of: A config whose data it is evaluated on; None for those that it was trained with.

    Raises:
        ValueError: data of other classes than the network's, or none; a file where a folder is to be; or a submission of another
            data set, or that does not pass the server's rules.
    """
    check_folder(output, "output")
    network = load(place, which)
    source = network.config if of is None else of
    if root is not None:
        source.input.root = root
    if official and submit is None:
        submit = output / "submission"
    dataset, resized = _dataset(source, split, submit)
    seen = (network.config.eval.size if size is None else size) or resized
    seen = None if seen == OWN else seen
    check_classes(network.table, dataset)
    if official:
        submission.check_truths(absolute(source.input.root), split, dataset.names)
    how = {"scales": scales, "flip": flip, "dtype": dtype}
    multiple = source.eval.get("multiple", 0)
    readable, wrong = pipeline.leaving_out(dataset, one_size=not multiple and batch_size > 1)
    confusion, maps = evaluate(
        _counting(network, seen, **how),
        pipeline.eval_batches(readable, batch_size, multiple=multiple),
        network.table.num_classes,
        spread(len(dataset), overlays),
        None if submit is None else _submitting(submit, dataset),
    )
    confusion = confusion[: dataset.table.num_classes]
    if submit is not None:
        max_bad = 0
    elif max_bad is None:
        max_bad = source.input.get("max_bad", 0)
    names = left_out(dataset, wrong, max_bad)
    facts = {"model": network.name, "step": network.step, "workdir": str(place), **how}
    facts |= {"size": seen or dataset.size, "left_out": names}
    print(
        f"{network.name}, step {network.step}, {dataset.table.name} {split}, {len(dataset) - len(names)} images"
    )
    for i, why in wrong.items():
        maps.pop(i, None)
        print(f"left out: {why}")
    if submit is not None:
        _pack_submission(submit, dataset.names)
    if official:
        facts["official"] = _official(submit, absolute(source.input.root), dataset)
    return _write(output, network, dataset, confusion, maps, facts)


def _counting(network: Network, seen: Pair | None, *, dtype: str, **how: Any) -> Callable:
    """The step of an evaluation, in which the network sees the size `seen` of frames, None for their own."""
    classify = classifier(
        network.model,
        network.variables,
        seen=lambda frame: seen,
        dtype=jnp.dtype(dtype),
        **how,
        **settings.shown(network.config),
    )
    return counting(classify, network.table.num_classes)


def _submitting(folder: pathlib.Path, dataset: Dataset) -> Callable[[int, np.ndarray], None]:
    """A function that writes the class map of an image for the server."""
    folder.mkdir(parents=True, exist_ok=True)
    return lambda index, classes: submission.write(folder, dataset.names[index], classes)


def _write(
    output: pathlib.Path,
    network: Network,
    dataset: Dataset,
    confusion: np.ndarray,
    maps: dict[int, np.ndarray],
    facts: dict[str, Any],
) -> metrics.Scores:
    """Writes evaluation.json and overlays/, and prints the table."""
    output.mkdir(parents=True, exist_ok=True)
    result = write_report(output / "evaluation.json", confusion, dataset, **facts)
    write_overlays(output / "overlays", dataclasses.replace(dataset, table=network.table), maps)
    if confusion.any():
        print(table(result, network.table.class_names))
    else:
        print("no pixel of this split is labelled: there are no scores")
    print(f"written: {output / 'evaluation.json'}, {output / 'overlays'}")
    return result


def _dataset(
    config: ConfigDict, split: str, submit: pathlib.Path | None
) -> tuple[Dataset, Pair | None]:
    """The split; for a submission at the files' own size, and the size that they would have been brought to."""
    arguments = settings.dataset_arguments(config, split)
    if submit is None:
        return data.load(**arguments), None
    _check_submission(config, arguments, submit)
    whole = arguments | {"size": None, "patches": None, "num_examples": None}
    return data.load(**whole), arguments["size"]


def _check_submission(config: ConfigDict, arguments: dict[str, Any], folder: pathlib.Path) -> None:
    if config.input.dataset != "cityscapes" or arguments.get("annotation") == "coarse":
        raise ValueError(
            f"a submission is of cityscapes with its fine annotations; this run is of "
            f"{' '.join(filter(None, (config.input.dataset, arguments.get('annotation'))))}"
        )
    check_folder(folder, "submission")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; give a new folder for the submission")


def _pack_submission(folder: pathlib.Path, names: Sequence[str]) -> None:
    problems = submission.check(folder, names)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ValueError(f"the submission breaks the server's rules: {problems[0]}{more}")
    print(f"{len(names)} label maps pass the server's rules: {submission.pack(folder)}")


def _official(folder: pathlib.Path, root: pathlib.Path, dataset: Dataset) -> dict[str, Any]:
    """The official figures for evaluation.json, also printed."""
    result = submission.evaluate(folder, root, dataset.split, dataset.names)
    names = dataset.table.class_names
    figures = {
        "miou": or_null(result["averageScoreClasses"]),
        "iiou": or_null(result["averageScoreInstClasses"]),
        "category_iou": or_null(result["averageScoreCategories"]),
        "category_iiou": or_null(result["averageScoreInstCategories"]),
        "iou_by_class": {n: or_null(result["classScores"][n]) for n in names},
        "iiou_by_class": {n: or_null(result["classInstScores"][n]) for n in names},
    }
    shown = ("miou", "iiou", "category_iou", "category_iiou")
    shares = (np.nan if figures[k] is None else figures[k] for k in shown)
    print(
        "cityscapesscripts: mIoU{}, iIoU{}, category IoU{}, category iIoU{}".format(
            *map(percent, shares)
        )
    )
    return figures


def define(flags: Flags) -> None:
    """Defines the flags."""
    flags.network()
    flags.string("split", "Split of the run's data set.", "val")
    flags.config()
    flags.path(
        "output", "Folder for the report; evaluation_SPLIT, in a run's folder, if not given."
    )
    flags.string("root", "The data set's folder, if it has moved.")
    flags.count("batch_size", "Frames per call.", 1, low=1)
    flags.count("overlays", "How many pictures.", 8, low=0)
    flags.size("that the network sees, or 'own'; the config's if not given.")
    flags.scales()
    flags.switch("flip", "Average over the mirrored frame too.")
    flags.choice("dtype", "The type that is computed in.", "float32", ["float32", "bfloat16"])
    flags.path("submission", "New folder for Cityscapes' label ids; DIR.zip is for the server.")
    flags.count(
        "max_bad", "So many unreadable images are left out; the config's if not given.", None, low=0
    )
    flags.switch("official", "Evaluate with cityscapesscripts too (iIoU); extra [cityscapes].")


def main(given: Given, _: list[str]) -> None:
    """Scores a run."""
    prepare_process()
    folder = absolute(given.network)
    evaluate_run(
        given.network,
        of=given.config,
        split=given.split,
        which=given.checkpoint,
        output=given.output
        or (folder if folder.is_dir() else absolute(".")) / f"evaluation_{given.split}",
        batch_size=given.batch_size,
        overlays=given.overlays,
        root=given.root,
        size=given.size,
        scales=given.scales,
        flip=given.flip,
        dtype=given.dtype,
        submit=given.submission,
        official=given.official,
        max_bad=given.max_bad,
    )


PROGRAM = Program(__doc__, define, main)
