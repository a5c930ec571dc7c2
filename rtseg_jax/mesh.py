"""One axis of devices, "data": batches are split over it, everything else is replicated."""

import jax
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
