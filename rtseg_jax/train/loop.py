"""Training, from a config to a finished run, in the order in which it happens."""

import contextlib
import copy
import functools
import math
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from rtseg_jax import data, models
from rtseg_jax.base import config as settings
from rtseg_jax.base import mesh
from rtseg_jax.data import pipeline, spec
from rtseg_jax.data.sets import folder
from rtseg_jax.inference import evaluator, metrics
from rtseg_jax.inference import program as infer
from rtseg_jax.nn.norm import TooFewValues
from rtseg_jax.train import logs, optim, step
from rtseg_jax.train.begin import begin, first_stage, with_preprocessing
from rtseg_jax.train.guard import StopSignals, alone_in, in_one_line, make_workdir
from rtseg_jax.weights import checkpoint

# So many steps wait for the device at most. Of some hundred, over several CPU devices, XLA's collectives never end.
IN_FLIGHT = 16
SKIPS = 50  # so many steps in a row are skipped by nonfinite="skip" before the run stops after all


class TrainingDiverged(ValueError):
    """The loss or the gradient is no longer a finite number."""


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
    """Trains what the config says in `workdir`, or goes on with the run that is there.

    The folder then holds config.json, classes.json, params.txt, metrics.jsonl, TensorBoard events, checkpoints/
    (latest two and best mIoU), evaluation.json and overlays/ (the best checkpoint on the evaluation split).

    Args:
        config: One of configs/, locked.
        workdir: The run's folder. Its parent must exist.

    Returns:
        The step and the mIoU of the best checkpoint (None if a signal stopped the run).

    Raises:
        ValueError: something in the config or the data does not fit, the device's memory or the disk is full, or
            another process is training in workdir; one line that names it.
        FileNotFoundError: no data where the config says, or no parent of workdir.
        TrainingDiverged: names the steps and the images of the first; the state is in workdir/diverged.
        checkpoint.Damaged: there are checkpoints, but none that can be read.
    """
    settings.check(config)
    workdir = make_workdir(workdir)
    with in_one_line(config, workdir), alone_in(workdir), contextlib.ExitStack() as cleanup:
        config = with_preprocessing(config, workdir)
        if config.init_from.first:
            before = str(workdir / "first")
            if first := first_stage(config, workdir):
                print(f"the first of two stages goes to {before}")
                result = train_and_evaluate(first, before)
                if result["miou"] is None:
                    return result
            config = copy.deepcopy(config).unlock()
            config.init_from.network = before
            config.lock()
        return _train_and_evaluate(config, workdir, cleanup)


def _train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, cleanup: contextlib.ExitStack
) -> dict[str, Any]:
    # Data
    train_set, eval_set = _data(config)
    steps_per_epoch = _steps_per_epoch(config, train_set)
    total_steps = config.num_steps or config.num_epochs * steps_per_epoch
    eval_every = config.eval.every_steps or config.eval.every_epochs * steps_per_epoch

    # Devices, network, optimizer, state
    devices = mesh.make_mesh()
    _check_batch(config, devices)
    model, state, tx, schedule = _created(
        config, devices, train_set.table.num_classes, total_steps, steps_per_epoch
    )

    # Where to begin
    if mesh.is_first():
        _write_settings(config, train_set, workdir)
    manager = cleanup.enter_context(checkpoint.open_manager(workdir))
    state = begin(config, workdir, manager, state, tx, devices, total_steps)
    start = int(state.step)
    _describe(workdir, config, model, state, train_set, eval_set, total_steps, devices)

    # Steps, one compiled program for each crop size; evaluation
    source, batches = _input(config, train_set, devices, start, total_steps)
    gather = pipeline.gather if config.input.mode == "resident" else None
    several = gather is None and jax.process_count() > 1
    train_step_for = functools.cache(
        functools.partial(
            make_train_step, config, devices, model, tx, schedule, gather, several=several
        )
    )
    score = _evaluator(config, devices, model, eval_set)

    # The loop
    window, done, saved = [], start, start
    progress = logs.Progress(config.batch_size, start, total_steps)
    cleanup.callback(progress.close)
    writers = cleanup.enter_context(contextlib.closing(logs.Writers(workdir, start)))
    inspect = functools.partial(_keep_for_inspection, workdir, config, train_set)
    crops = config.augment.crop, config.augment.crop_schedule
    figures = (config.log_every, writers, progress, inspect)

    def save_before_bad_data():
        at = int(state.step)
        if saved == at:
            return
        if good := window[: len(window) - (done - at)]:
            _check_and_log(good, at, *figures, state)
        checkpoint.save(manager, state.as_tree())
        logs.say(f"saved step {at}; the same command goes on from there")

    with cleanup, StopSignals() as stop:
        batches = progress.timed(_first(save_before_bad_data, batches))
        for done, (frames, indices) in enumerate(batches, start=start + 1):
            crop = crop_at((done - 1) / total_steps, *crops)
            state, logged = train_step_for(crop)(state, frames, indices)
            window.append(logged)
            if len(window) > IN_FLIGHT:
                jax.block_until_ready(window[-1 - IN_FLIGHT])
            evaluating = done % eval_every == 0 or done == total_steps
            logging = done % config.log_every == 0
            # Several processes must stop at one step, and ask each other at those that they log.
            stopping = (logging or jax.process_count() == 1) and mesh.in_any_process(bool(stop))
            saving = done % config.checkpoint_every == 0
            if evaluating or stopping or logging or saving:
                if several and window[-1]["unreadable"]:
                    save_before_bad_data()
                    raise source.error or spec.DataError("another process met a file that it names")
                _check_and_log(window, done, *figures, state)
                window = []
            if evaluating:
                with progress.paused():
                    with _saving(save_before_bad_data):
                        confusion, maps, _ = score(state.variables())
                    result = _log_evaluation(done, confusion, maps, eval_set, writers)
                    checkpoint.save(manager, state.as_tree(), result.miou)
                    saved = done
                logs.say(f"step {done}: {eval_set.split} {result}")
            if saved != done and (stopping or saving):
                checkpoint.save(manager, state.as_tree())
                saved = done
            if stopping and done < total_steps:
                reason = stop[0] if stop else "another process is stopping"
                logs.say(f"{reason}: saved step {done}; the same command goes on from there")
                return {"step": done, "miou": None}

    # The report
    return _report_best(config, workdir, devices, eval_set, score)


def _created(
    config: ml_collections.ConfigDict,
    devices: jax.sharding.Mesh,
    num_classes: int,
    total_steps: int,
    steps_per_epoch: int,
) -> tuple[nn.Module, step.TrainState, optax.GradientTransformation, optax.Schedule]:
    """The network, the state at step 0, the optimizer and its learning rate."""
    options = settings.model_options(config)
    model = models.create(config.model.name, num_classes=num_classes, **options)
    whole = mesh.replicated(devices)
    variables = _initial_variables(model, config.seed, whole)
    _check_norms(config, model, variables)
    tx, schedule = make_optimizer(config, variables["params"], total_steps, steps_per_epoch)
    kept = {"ema": config.ema_decay > 0, "skip_nonfinite": config.nonfinite == "skip"}
    state = jax.device_put(step.create_state(variables, tx, **kept), whole)
    return model, state, tx, schedule


def _data(config: ml_collections.ConfigDict) -> tuple[spec.Dataset, spec.Dataset]:
    """What is trained and evaluated on."""
    any_size = config.input.patches or config.input.canvas or config.batch_size == 1
    train_set = data.load(
        **settings.dataset_arguments(config, config.input.train_split, training=True),
        canvas=config.input.canvas,
        tolerate=functools.partial(
            spec.tolerant, allowed=config.input.max_bad, one_size=not any_size, say=logs.say
        ),
    )
    eval_set = data.load(**settings.dataset_arguments(config, config.input.eval_split))
    for dataset in (train_set, eval_set):
        pipeline.check_labels(dataset)
    return train_set, eval_set


def _steps_per_epoch(config: ml_collections.ConfigDict, dataset: spec.Dataset) -> int:
    steps = len(dataset) // config.batch_size
    if steps == 0:
        raise ValueError(
            f"batch_size {config.batch_size} exceeds the {len(dataset)} images of"
            f" {config.input.dataset} {dataset.split}; set --config.batch_size lower"
        )
    return steps


def _write_settings(
    config: ml_collections.ConfigDict, dataset: spec.Dataset, workdir: pathlib.Path
) -> None:
    """Writes what makes a folder a run's."""
    settings.write(config, workdir)
    folder.write_classes(dataset.table, workdir / "classes.json")


def _log_evaluation(
    done: int,
    confusion: np.ndarray,
    maps: dict[int, np.ndarray],
    dataset: spec.Dataset,
    writers: logs.Writers,
) -> metrics.Scores:
    """Logs what an evaluation after a step found."""
    result = metrics.scores(confusion)
    writers.scalars(done, miou=result.miou, pixel_accuracy=result.pixel_accuracy)
    for index, classes in maps.items():
        panel = evaluator.overlay_panel(dataset, index, classes)
        writers.picture(done, dataset.names[index], panel)
    return result


def _report_best(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    devices: jax.sharding.Mesh,
    dataset: spec.Dataset,
    score: Callable,
) -> dict[str, Any]:
    """Evaluates the best checkpoint and writes evaluation.json and overlays/; what train_and_evaluate() returns."""
    with checkpoint.open_manager(workdir, read_only=True) as manager:
        # The latest, if the run had been longer and was stopped before it was evaluated.
        best = checkpoint.best_or_latest(manager)
        variables = checkpoint.restore_variables(manager, best, mesh.replicated(devices))
    confusion, maps, left_out = score(variables)
    scores = metrics.scores(confusion)
    if mesh.is_first():
        facts = {"model": config.model.name, "step": best, "left_out": left_out}
        evaluator.write_report(workdir / "evaluation.json", confusion, dataset, **facts)
        evaluator.write_overlays(workdir / "overlays", dataset, maps)
    print(f"\nbest checkpoint, step {best}, on {config.input.dataset} {dataset.split}:")
    print(evaluator.table(scores, dataset.table.class_names))
    print(f"written: {workdir}/evaluation.json, {workdir}/overlays/")
    return {"step": best, "miou": scores.miou}


def make_optimizer(
    config: ml_collections.ConfigDict, params: Any, total_steps: int, steps_per_epoch: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of a config for these parameters, and its learning rate: step -> rate."""
    schedule = optim.make_schedule(
        lr=config.optim.lr,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        **config.optim.schedule,
    )
    return optim.make_optimizer(params, schedule, **config.optim.method), schedule


def make_train_step(
    config: ml_collections.ConfigDict,
    devices: jax.sharding.Mesh,
    model: nn.Module,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    gather: Callable | None,
    crop: tuple[int, int],
    *,
    several: bool = False,
) -> Callable:
    """The step of a config, jitted (see step.jit_train_step), at one crop: (h, w) in pixels."""
    augmentation = config.augment.to_dict()
    del augmentation["crop_schedule"]
    return step.jit_train_step(
        devices,
        gather,
        several=several,
        model=model,
        loss_fn=functools.partial(models.get(config.model.name).loss, **config.loss),
        tx=tx,
        schedule=schedule,
        seed=config.seed,
        augmentation={**augmentation, "crop": crop},
        ema_decay=config.ema_decay,
        accumulate=config.accumulate,
        class_weights=config.loss.get("class_weights"),
        remat=config.remat,
    )


def _check_batch(config: ml_collections.ConfigDict, devices: jax.sharding.Mesh) -> None:
    """Refuses a batch that the devices cannot share, in as many parts as it is to go through them."""
    mesh.check_batch_size(config.batch_size, devices)
    parts, num_devices = config.accumulate, devices.devices.size
    if config.batch_size % (parts * num_devices):
        raise ValueError(
            f"batch_size {config.batch_size} cannot go through {num_devices} devices in accumulate"
            f" {parts} parts; use a batch_size that {parts * num_devices} divides, or another accumulate"
        )


def _check_norms(config: ml_collections.ConfigDict, model: nn.Module, variables: Any) -> None:
    """Refuses a batch so small that a norm would see one value per channel (behind a mean over the image)."""
    crops = [config.augment.crop, *(crop for _, crop in config.augment.crop_schedule)]
    part = config.batch_size // config.accumulate
    image = jax.ShapeDtypeStruct((part, *min(crops, key=math.prod), 3), jnp.float32)
    rngs = {"dropout": jax.random.key(0)}
    try:
        jax.eval_shape(
            lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"], rngs=rngs),
            variables,
            image,
        )
    except TooFewValues as error:
        parts = f" in accumulate {config.accumulate} parts" if config.accumulate > 1 else ""
        raise ValueError(
            f"batch_size {config.batch_size}{parts} is too small for {config.model.name}: {error};"
            f" use a batch_size of {2 * config.accumulate} or more (images of many sizes share a batch with"
            " input.canvas=(h, w))"
        ) from None


def _initial_variables(model: Any, seed: int, sharding: Any) -> dict[str, Any]:
    def init(key):
        keys = {"params": key, "dropout": key}
        return model.init(keys, jnp.zeros((1, 64, 64, 3)), train=True)

    return jax.jit(init, out_shardings=sharding)(jax.random.key(seed))


def _describe(workdir, config, model, state, train_set, eval_set, total_steps, devices) -> None:
    """Prints what is about to run, and lists the parameters in params.txt."""
    leaves = jax.tree_util.tree_leaves_with_path(state.now()["params"])
    count = sum(leaf.size for _, leaf in leaves)
    listing = (
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} {leaf.shape}\n"
        for path, leaf in leaves
    )
    if mesh.is_first():
        (workdir / "params.txt").write_text("".join(listing))
    kinds = sorted({d.device_kind for d in devices.devices.flat})
    print(
        f"{config.model.name}: {count:,} parameters, {train_set.table.num_classes} classes, {config.dtype},"
        f" {devices.devices.size} x {', '.join(kinds)}, jax {jax.__version__}\n"
        f"{config.input.dataset}: {len(train_set)} {train_set.split} and {len(eval_set)} {eval_set.split} images,"
        f" {config.input.mode}; {total_steps} steps of {config.batch_size}"
        f" ({total_steps * config.batch_size / len(train_set):.1f} epochs)\n"
        f"workdir {workdir}",
        flush=True,
    )


def _input(
    config: ml_collections.ConfigDict, dataset: Any, devices: Any, start: int, total_steps: int
) -> tuple[pipeline.Resident | pipeline.Streaming, Iterator]:
    """Returns the resident set or the stream, and batches (frames, indices) from step `start` on."""
    shard = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    if config.input.mode == "resident":
        resident = pipeline.Resident(dataset, sharding=mesh.replicated(devices))

        def gathered():
            for at in range(start, total_steps):
                indices = pipeline.batch_indices(
                    config.seed, at, len(dataset), config.batch_size, **shard
                )
                yield resident.arrays, *mesh.place(devices, indices)

        return resident, gathered()

    stream = pipeline.Streaming(
        dataset,
        seed=config.seed,
        batch_size=config.batch_size,
        start_step=start,
        num_steps=total_steps - start,
        **shard,
    )

    def streamed():
        for images, labels, indices in stream:
            images, labels, indices = mesh.place(devices, images, labels, indices)
            yield (images, labels), indices

    return stream, streamed()


def _evaluator(
    config: ml_collections.ConfigDict,
    devices: jax.sharding.Mesh,
    model: nn.Module,
    dataset: spec.Dataset,
) -> Callable[[dict[str, Any]], tuple[np.ndarray, dict[int, np.ndarray], list[str]]]:
    """A function of variables: confusion matrix, class maps of config.eval.overlays images, names of what was left out."""
    num_classes = dataset.table.num_classes
    # The last batch is padded and masked, so a batch may be of any size; here, of a multiple of the devices.
    batch_size = -(-config.eval.batch_size // devices.devices.size) * devices.devices.size
    # One at a time may be of any size, so on several devices those of exactly one size share a batch.
    multiple = config.eval.multiple or int(config.eval.batch_size == 1 < batch_size)
    # The first process writes the pictures: of images that it has itself.
    own = batch_size // jax.process_count()
    near = [i for i in range(len(dataset)) if multiple or i % batch_size < own]
    shown = frozenset(near[i] for i in evaluator.spread(len(near), config.eval.overlays))
    readable, wrong = pipeline.leaving_out(dataset, one_size=not multiple and batch_size > 1)
    # A small set is decoded once; a streamed one is read again for every evaluation.
    batches = functools.partial(
        pipeline.eval_batches,
        readable,
        batch_size,
        multiple=multiple,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        wanted=shown,
    )
    if config.input.mode == "resident":
        batches = functools.partial(iter, list(batches()))
        evaluator.left_out(dataset, wrong, config.input.max_bad)
    jitted = infer.jit_eval_step(
        devices,
        model=model,
        num_classes=num_classes,
        **settings.shown(config),
        size=config.eval.size,
    )

    def score(variables):
        def eval_step(*batch):
            return jitted(variables, *mesh.place(devices, *batch))

        confusion, maps = evaluator.evaluate(eval_step, batches(), num_classes, shown)
        names = evaluator.left_out(dataset, wrong, config.input.max_bad)
        return confusion, {i: classes for i, classes in maps.items() if i not in wrong}, names

    return score


def crop_at(
    progress: float,
    crop: tuple[int, int],
    crop_schedule: tuple[tuple[float, tuple[int, int]], ...],
) -> tuple[int, int]:
    """The crop at a fraction of the run: the first (until, crop) not yet passed, then the full one."""
    for until, smaller in crop_schedule:
        if progress < until:
            return smaller
    return crop


@contextlib.contextmanager
def _saving(save: Callable[[], None]) -> Iterator[None]:
    """Should what is in here meet bad data, saves before the error goes on."""
    try:
        yield
    except (spec.DataError, OSError):
        save()
        raise


def _first(save: Callable[[], None], batches: Iterable) -> Iterator:
    """Passes batches on; should the next one fail to come, saves before the error goes on."""
    with _saving(save):
        yield from batches


def _check_and_log(
    window: list[dict[str, jax.Array]],
    done: int,
    log_every: int,
    writers: logs.Writers,
    progress: logs.Progress,
    inspect: Callable[[step.TrainState, int], str],
    state: step.TrainState,
) -> None:
    """Fetches the figures of the steps since the last call, refuses what is not finite, logs what is due.

    Args:
        window: What these steps logged.
        done: The last of them.
        log_every: Steps whose number this divides are written down.
        writers: What writes metrics.jsonl and TensorBoard events.
        progress: The bar.
        inspect: A function of the state and a step that keeps what is to be looked at, and names it.
        state: After these steps.

    Raises:
        TrainingDiverged: a step was not finite; or, where those are skipped, too many in a row.
    """
    first = done - len(window) + 1
    values = [{k: float(v) for k, v in logged.items()} for logged in jax.device_get(window)]
    for logged in values:
        logged.pop("unreadable", None)
    for at, logged in enumerate(values, start=first):
        skipped = logged.pop("skipped_in_a_row", SKIPS)
        if not np.isfinite([logged["loss"], logged["gradient_norm"]]).all() and skipped >= SKIPS:
            row = f", the last of {SKIPS} that were skipped" if "skipped_steps" in logged else ""
            raise TrainingDiverged(
                f"loss {logged['loss']}, gradient norm {logged['gradient_norm']} at step {at}{row}"
                f" (steps {first} to {done} were looked at), {inspect(state, at)}; lower optim.lr or"
                " warm up longer"
            )
        if at % log_every == 0:
            writers.scalars(at, **{k: v for k, v in logged.items() if np.isfinite(v)})
    finite = [v["loss"] for v in values if np.isfinite(v["loss"])]
    facts = {"loss": f"{np.mean(finite):.4f}" if finite else "-"}
    if "skipped_steps" in values[-1]:
        facts["skipped"] = f"{values[-1]['skipped_steps']:.0f}"
    progress.show(done, **facts, lr=f"{values[-1]['learning_rate']:.2e}")


def _keep_for_inspection(
    workdir: pathlib.Path,
    config: ml_collections.ConfigDict,
    dataset: spec.Dataset,
    state: step.TrainState,
    at: int,
) -> str:
    """Makes workdir/diverged a run of its own, with this state; names it and the images of a step."""
    aside = workdir / "diverged"
    if mesh.is_first():
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        _write_settings(config, dataset, aside)
    with checkpoint.open_manager(aside) as manager:
        checkpoint.save(manager, state.as_tree())
    indices = pipeline.batch_indices(config.seed, at - 1, len(dataset), config.batch_size)
    names = ", ".join(dataset.name(int(i)) for i in indices)
    if config.input.max_bad:
        names += " (or what took their places)"
    return f"on the images {names}; the state after step {int(state.step)} is in {aside}"
