"""How examples reach the device: a resident set or a stream, the same bytes in the same order.

The order is a pure function of (seed, step), so resuming is counting and bit-exact. Training drops
the last partial batch of an epoch, as the papers' code does; evaluation drops nothing.
"""

import contextlib
import dataclasses
import functools
import os
import traceback
import types
import weakref
from collections.abc import Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Bool, Int, Int32, Int64, UInt8

from rtseg_jax.base import mesh
from rtseg_jax.base.files import one_line
from rtseg_jax.base.threads import ahead, workers
from rtseg_jax.data.spec import IGNORE, DataError, Dataset, too_few_classes, where

Images = UInt8[np.ndarray, "b h w 3"]
Labels = UInt8[np.ndarray, "b h w"]
Indices = Int32[np.ndarray, " b"]
Arrays = Mapping[str, tuple[Array, ...]]


def epoch_order(seed: int, epoch: int, n: int) -> Int64[np.ndarray, " {n}"]:
    """The order of `n` examples in an epoch, a pure function of (seed, epoch).

    Built on the raw bits of Philox: numpy keeps those for ever, but not its `permutation`.

    Raises:
        ValueError: a negative seed.
    """
    if seed < 0:
        raise ValueError(f"seed {seed} is negative; use 0 or more")
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(n)
    return np.argsort(bits, kind="stable").astype(np.int64)


_recent_order = functools.lru_cache(maxsize=4)(epoch_order)


def _local_slice(batch_size: int, process_index: int, process_count: int) -> slice:
    """The part of a global batch that one process loads."""
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size {batch_size} cannot be divided among {process_count} processes; "
            f"use a multiple of {process_count}"
        )
    local = batch_size // process_count
    return slice(process_index * local, (process_index + 1) * local)


def batch_indices(
    seed: int,
    step: int,
    n: int,
    batch_size: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Indices:
    """Which of `n` examples make up the batch of a training step.

    Args:
        seed: Seed of the order.
        step: Counted from 0 over all epochs; an epoch has n // batch_size steps.
        n: Number of examples.
        batch_size: Global batch size.
        process_index: This process; processes take contiguous parts of the global batch.
        process_count: Number of processes.

    Raises:
        ValueError: the set is smaller than a batch, or the processes cannot share it evenly.
    """
    part = _local_slice(batch_size, process_index, process_count)
    if n < batch_size:
        raise ValueError(
            f"{n} images do not fill a batch of {batch_size}; use a batch_size of 1-{n}"
            if n
            else "the dataset has no images; training needs at least one batch of them"
        )
    epoch, k = divmod(step, n // batch_size)
    order = _recent_order(seed, epoch, n)
    return order[k * batch_size : (k + 1) * batch_size][part].astype(np.int32)


def _load_in_order(
    dataset: Dataset, indices: Iterable[int], num_workers: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Loads examples in threads, a bounded number ahead of the consumer."""
    calls = (functools.partial(dataset.load, i) for i in indices)
    with contextlib.closing(ahead(calls, num_workers)) as futures:
        for future in futures:
            yield future.result()


def check_labels(dataset: Dataset, num_workers: int | None = None) -> None:
    """Looks at labels until two classes were seen, in an order that is spread over the split.

    Raises:
        DataError: there are none, or one alone, in all that can be read.
    """
    calls = (functools.partial(dataset.load, int(i)) for i in epoch_order(0, 0, len(dataset)))
    counts = np.zeros(256, np.int64)
    with contextlib.closing(ahead(calls, num_workers)) as futures:
        for future in futures:
            with contextlib.suppress(DataError, OSError):  # said when its turn comes
                counts += np.bincount(future.result()[1].ravel(), minlength=256)
            if counts.any() and not too_few_classes(dataset, counts):
                return
    if counts.any():
        raise DataError(too_few_classes(dataset, counts))


def leaving_out(dataset: Dataset, *, one_size: bool) -> tuple[Dataset, dict[int, str]]:
    """An evaluation set in which no pixel is labelled of an example that cannot be read, and what is wrong with these.

    Args:
        dataset: Any dataset.
        one_size: Whether an example of another size than the first readable one is left out too.

    Returns:
        The set; and {index: what is wrong}, which is filled while examples are loaded.
    """
    left_out: dict[int, str] = {}

    @functools.cache
    def size() -> tuple[int, int]:
        if dataset.size is not None:
            return dataset.size
        for i in range(len(dataset)):
            with contextlib.suppress(DataError, OSError):
                return dataset.load(i)[1].shape
        raise DataError(f"{dataset.table.name} {dataset.split}: no example can be read")

    def load(i: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            image, label = dataset.load(i)
            if one_size:
                check_size(dataset, i, label.shape, size())
        except (DataError, OSError) as error:
            left_out[i] = one_line(error)
            return np.zeros((*size(), 3), np.uint8), np.full(size(), IGNORE, np.uint8)
        left_out.pop(i, None)  # it could not be read before
        return image, label

    return dataclasses.replace(dataset, load=load), left_out


def check_size(dataset: Dataset, i: int, size: tuple[int, int], expected: tuple[int, int]) -> None:
    """Refuses an example of another size than the first one.

    Args:
        dataset: Whose example it is.
        i: Its index.
        size: (h, w) in pixels that it has.
        expected: (h, w) in pixels that it should have.

    Raises:
        DataError: the sizes differ.
    """
    if size != expected:
        raise DataError(
            f"{where(dataset, i)} is {size[0]}x{size[1]} pixels (h x w), "
            f"the first one {expected[0]}x{expected[1]}; set input.canvas=(h, w) and eval.multiple=32, "
            "which keep their sizes, or input.size=(h, w), which all are then resized to"
        )


class Resident:
    """A dataset held on the device(s) as bytes; a batch is a gather inside jit.

    Attributes:
        arrays: The pytree to pass to the jitted step, for `gather`.
    """

    arrays: Arrays

    def __init__(
        self,
        dataset: Dataset,
        sharding: Sharding | None = None,
        *,
        chunk_elements: int = 2**31 - 1,
        num_workers: int | None = None,
    ) -> None:
        """Loads every example once.

        Args:
            dataset: All its examples must have one size.
            sharding: The devices, each of which holds the arrays [n, h, w, ...]; None for all that there are.
            chunk_elements: No array gets more elements; indices into larger ones overflow 32 bits.
            num_workers: Loading threads; None for as many as there are CPU cores.

        Raises:
            DataError: a file is not what it should be, or differs in size; the message names it.
            ValueError: the dataset is empty.
        """
        n = len(dataset)
        if not n:
            raise ValueError(f"{dataset.table.name} {dataset.split} has no images to load")
        if sharding is None:
            sharding = mesh.replicated(mesh.make_mesh())
        images: list[Array] = []
        labels: list[Array] = []
        examples = enumerate(_load_in_order(dataset, range(n), num_workers))
        rows, size, start = 0, (0, 0), 0
        for i, (image, label) in examples:
            if i == 0:
                size = label.shape
                rows = chunk_elements // image.size
                if not rows:
                    raise ValueError(
                        f"{where(dataset, 0)} has {image.size} values, more than fit "
                        f"into an array of {chunk_elements}; use input.mode=streaming"
                    )
            check_size(dataset, i, label.shape, size)
            if i == start:
                # Fresh memory for each chunk: a CPU device keeps what it is given instead of copying.
                count = min(rows, n - start)
                chunk = np.zeros((count, *size, 3), np.uint8), np.zeros((count, *size), np.uint8)
            chunk[0][i - start], chunk[1][i - start] = image, label
            if i + 1 == min(start + rows, n):
                images.append(_place(chunk[0], sharding))
                labels.append(_place(chunk[1], sharding))
                start = i + 1
        self.arrays = {"images": tuple(images), "labels": tuple(labels)}


def _place(host: np.ndarray, sharding: Sharding) -> Array:
    """A host array on devices, of other processes too: each one fills those it owns."""
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def gather(
    arrays: Arrays, indices: Int[Array, " b"]
) -> tuple[UInt8[Array, "b h w 3"], UInt8[Array, "b h w"]]:
    """The batch with these indices out of `Resident.arrays`; to be traced inside jit.

    Args:
        arrays: Chunks of equal length, the last one as long or shorter.
        indices: In [0, n); others give the nearest example's bytes.
    """

    def take(chunks: tuple[Array, ...]) -> Array:
        rows = chunks[0].shape[0]
        batch = jnp.take(chunks[0], indices, axis=0, mode="clip")
        for k, chunk in enumerate(chunks[1:], 1):
            here = jnp.take(chunk, indices - k * rows, axis=0, mode="clip")
            mine = (indices >= k * rows).reshape(-1, *(1,) * (batch.ndim - 1))
            batch = jnp.where(mine, here, batch)
        return batch

    return take(arrays["images"]), take(arrays["labels"])


def _tensorflow() -> types.ModuleType:
    """Tensorflow, quiet and off the GPU, which is jax's."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # It prints a line, and nothing here convolves.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            f"input.mode=streaming needs tensorflow ({error}); "
            "pip install tensorflow-cpu, or use input.mode=resident"
        ) from error
    if tf.config.get_visible_devices("GPU"):
        tf.config.set_visible_devices([], "GPU")
    return tf


class Streaming:
    """Batches of a training run through tf.data: decoded in parallel, in order, ahead of the device.

    Iterates over (images uint8 [b,h,w,3], labels uint8 [b,h,w], indices int32 [b]), numpy, read-only.
    Leaving it open at the end of the program is fine; `close` and `with` end it earlier.

    Attributes:
        error: One of several processes cannot stop alone at a file that it cannot read: it keeps what went wrong here,
            and from that batch on all indices are -1, from which the others learn of it (step.jit_train_step). Else None.
    """

    error: Exception | None = None

    def __init__(
        self,
        dataset: Dataset,
        *,
        seed: int,
        batch_size: int,
        start_step: int,
        num_steps: int,
        process_index: int = 0,
        process_count: int = 1,
        num_workers: int | None = None,
    ) -> None:
        """Opens the stream.

        Args:
            dataset: The examples; all must have one size, unless the batches are of one.
            seed: Seed of the order, as in `batch_indices`.
            batch_size: Global batch size; the batches hold this process' part of it.
            start_step: The step of the first batch.
            num_steps: How many batches follow.
            process_index: This process.
            process_count: Number of processes.
            num_workers: Examples decoded at a time; None for as many as there are CPU cores.

        Raises:
            ImportError: tensorflow is not installed.
            ValueError: as `batch_indices`.
            DataError: the first example cannot be read.
        """
        self._dataset = dataset
        self._alone = process_count == 1
        n = len(dataset)

        def indices_of(step: np.integer | int) -> np.ndarray:
            return batch_indices(
                seed,
                int(step),
                n,
                batch_size,
                process_index=process_index,
                process_count=process_count,
            )

        # What cannot be batched or read at all fails here, not in a thread.
        local = len(indices_of(start_step))
        first = batch_indices(seed, start_step, n, batch_size)[0]  # the same in every process
        size = dataset.size or dataset.load(int(first))[1].shape
        tf = _tensorflow()
        errors: dict[int, Exception] = {}

        def load(i: np.integer) -> tuple[np.ndarray, np.ndarray, np.integer]:
            # Errors go around tensorflow, which would print a page for each and lose its type.
            try:
                image, label = dataset.load(int(i))
                if batch_size > 1:
                    check_size(dataset, int(i), label.shape, size)
            except Exception as error:
                errors[int(i)] = error
                image, label = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
            return image, label, i

        threads = workers(num_workers)
        options = tf.data.Options()
        options.threading.private_threadpool_size = threads  # the common pool ends at the CPU cores
        stream = (
            tf.data.Dataset.range(start_step, start_step + num_steps)
            .map(lambda step: tf.numpy_function(indices_of, [step], tf.int32))
            .unbatch()
            .map(
                lambda i: tf.numpy_function(load, [i], (tf.uint8, tf.uint8, tf.int32)),
                num_parallel_calls=threads,
                deterministic=True,
            )
            .batch(local)
            .prefetch(2)
            .with_options(options)
        )
        self._errors = errors
        self._open = {"iterator": stream.as_numpy_iterator()}
        # Also at exit: an interpreter that ends while tensorflow calls into it hangs. For this the iterator
        # is held in one place, and the functions above do not hold self.
        self.close = weakref.finalize(self, self._open.clear)

    def __iter__(self) -> "Streaming":
        """Itself: a stream is read once."""
        return self

    def __next__(self) -> tuple[Images, Labels, Indices]:
        """The next step's batch.

        Raises:
            DataError: a file of this batch is not what it should be, as `Dataset.load` raised it, or
                differs in size from the first one; the stream is closed then.
        """
        if not self.close.alive:
            raise StopIteration
        try:
            batch = next(self._open["iterator"])
        except StopIteration:
            self.close()
            raise
        except BaseException as error:  # Ctrl-C among them
            for e in (error, error.__context__):
                if e is not None:
                    traceback.clear_frames(e.__traceback__)  # they hold the iterator
            self.close()
            raise
        for i in map(int, batch[2]):
            if self.error is None and i in self._errors:
                self.error = self._errors[i]
                if self._alone:
                    self.close()
                    raise self.error
        if self.error is not None:
            return *batch[:2], np.full_like(batch[2], -1)
        return batch

    def __enter__(self) -> "Streaming":
        """Itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the stream."""
        self.close()


def eval_batches(
    dataset: Dataset,
    batch_size: int,
    *,
    multiple: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int | None = None,
    wanted: frozenset[int] = frozenset(),
) -> Iterator[tuple[Images, Labels, Bool[np.ndarray, " b"], Indices]]:
    """Every example once and in order, decoded ahead of the device, without tensorflow.

    Args:
        dataset: The examples; those of one batch must have one size, unless `multiple` is given.
        batch_size: Global batch size.
        multiple: If not 0, the examples may have any size: they are padded at the bottom and right to multiples of
            it in pixels, the image with its own last row and column, the label with 255. Those of one padded size
            form batches, in the order in which these fill, so that few sizes are compiled.
        process_index: This process; processes take contiguous parts of each global batch.
        process_count: Number of processes; all of them get equally many batches. With `multiple` each decodes all
            examples, as their sizes say what the batches are.
        num_workers: Loading threads; None for as many as there are CPU cores.
        wanted: With `multiple`, examples that the first process is to have as far as its parts have room.

    Returns:
        An iterator over (images, labels, mask, indices). Where mask is False the example is padding:
        image 0, label 255, index -1.

    Raises:
        DataError: a file is not what it should be, or differs in size from its batch (while iterating).
        ValueError: the processes cannot share the batch evenly.
    """
    part = _local_slice(batch_size, process_index, process_count)
    if multiple:
        batches = _eval_batches_by_size(dataset, batch_size, multiple, num_workers, wanted)
        return (tuple(array[part] for array in batch) for batch in batches)
    return _eval_batches(dataset, batch_size, part, num_workers)


def _eval_batches(
    dataset: Dataset, batch_size: int, part: slice, num_workers: int | None
) -> Iterator[tuple[Images, Labels, Bool[np.ndarray, " b"], Indices]]:
    n = len(dataset)
    batches = [
        np.arange(start, start + batch_size, dtype=np.int32)[part]
        for start in range(0, n, batch_size)
    ]
    real = [int(i) for batch in batches for i in batch[batch < n]]
    examples = _load_in_order(dataset, real, num_workers)
    common = dataset.size
    if common is None and part != slice(0, batch_size):  # processes, which see their parts alone
        common = dataset.load(0)[1].shape
    with contextlib.closing(examples):
        for batch in batches:
            mask = batch < n
            loaded = [next(examples) for _ in range(mask.sum())]
            size = common or loaded[0][1].shape
            images = np.zeros((len(batch), *size, 3), np.uint8)
            labels = np.full((len(batch), *size), IGNORE, np.uint8)
            for row, (image, label) in enumerate(loaded):
                check_size(dataset, int(batch[row]), label.shape, size)
                images[row], labels[row] = image, label
            yield images, labels, mask, np.where(mask, batch, np.int32(-1))


def _eval_batches_by_size(
    dataset: Dataset,
    batch_size: int,
    multiple: int,
    num_workers: int | None,
    wanted: frozenset[int],
) -> Iterator[tuple[Images, Labels, Bool[np.ndarray, " b"], Indices]]:
    waiting: dict[tuple[int, int], list[tuple[int, np.ndarray, np.ndarray]]] = {}
    examples = _load_in_order(dataset, range(len(dataset)), num_workers)
    with contextlib.closing(examples):
        for i, (image, label) in enumerate(examples):
            size = tuple(-(-side // multiple) * multiple for side in label.shape)
            room = [(0, new - old) for new, old in zip(size, label.shape, strict=True)]
            image = np.pad(image, (*room, (0, 0)), mode="edge")
            label = np.pad(label, room, constant_values=IGNORE)
            waiting.setdefault(size, []).append((i, image, label))
            if len(waiting[size]) == batch_size:
                yield _padded_batch(waiting.pop(size), batch_size, wanted)
        for group in waiting.values():
            yield _padded_batch(group, batch_size, wanted)


def _padded_batch(
    group: list[tuple[int, np.ndarray, np.ndarray]], batch_size: int, wanted: frozenset[int]
) -> tuple[Images, Labels, Bool[np.ndarray, " b"], Indices]:
    """A batch of examples of one size, the wanted ones first, the rest masked."""
    size = group[0][2].shape
    group = sorted(group, key=lambda example: example[0] not in wanted)
    images = np.zeros((batch_size, *size, 3), np.uint8)
    labels = np.full((batch_size, *size), IGNORE, np.uint8)
    indices = np.full(batch_size, -1, np.int32)
    for row, (i, image, label) in enumerate(group):
        images[row], labels[row], indices[row] = image, label, i
    return images, labels, indices >= 0, indices
