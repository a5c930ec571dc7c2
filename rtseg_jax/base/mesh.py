"""One axis of devices, "data": batches are split over it, everything else is replicated.

The devices may belong to several processes, each with its part of every batch.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices of all processes, or over those given."""
    devices = jax.devices() if devices is None else devices
    # Auto: XLA shards the step itself; Explicit, make_mesh's default, refuses the gradient of an indexed loss.
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The leading axis is divided among the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def is_first() -> bool:
    """Whether this process is the one that writes a run's files and speaks for the run."""
    return jax.process_index() == 0


def place(mesh: Mesh, *parts: np.ndarray) -> tuple[jax.Array, ...]:
    """Batches, split over the mesh, of which this process has `parts` (all of them, where it is alone)."""
    return tuple(jax.make_array_from_process_local_data(split(mesh), part) for part in parts)


def own_rows(batch: jax.Array | np.ndarray) -> np.ndarray:
    """This process's rows of a batch that is split over the mesh."""
    if isinstance(batch, np.ndarray) or batch.is_fully_addressable:
        return np.asarray(batch)
    shards = sorted(batch.addressable_shards, key=lambda shard: shard.index[0].start)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def in_any_process(flags: bool | np.ndarray) -> np.ndarray:
    """Where `flags`, of one shape everywhere, hold in one of the processes at least; all of them must ask."""
    if jax.process_count() == 1:
        return np.asarray(flags)
    return multihost_utils.process_allgather(np.asarray(flags)).any(axis=0)


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Refuses a global batch that the devices cannot share evenly.

    Raises:
        ValueError: names the nearest batch sizes that can be.
    """
    n = mesh.devices.size
    if batch_size < 1 or batch_size % n:
        below = batch_size // n * n
        nearest = f"{below} or {below + n}" if below > 0 else f"{n}"
        raise ValueError(
            f"batch_size {batch_size} cannot be divided among {n} devices; use {nearest}"
        )
