"""A tree of arrays as one array, so that an update of all of them is one kernel."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


class Vector(flax.struct.PyTreeNode):
    """The leaves of a tree of float32 arrays, one after the other.

    It is a tree itself, with one leaf. An optimizer that updates each leaf of a tree by itself, as all of optax's, so
    updates a vector in one pass: of some four hundred small arrays each would take a kernel of its own on a GPU.

    Attributes:
        values: All values, [n].
        structure: The tree's structure.
        shapes: The shapes of its leaves, in their order.
    """

    values: Any
    structure: Any = flax.struct.field(pytree_node=False)
    shapes: tuple[tuple[int, ...], ...] = flax.struct.field(pytree_node=False)

    @property
    def sizes(self) -> list[int]:
        """How many values each leaf has."""
        return [int(np.prod(shape)) for shape in self.shapes]

    def tree(self) -> Any:
        """The tree again."""
        ends = np.cumsum(self.sizes)
        leaves = [
            jax.lax.slice(self.values, (end - size,), (end,)).reshape(shape)
            for end, size, shape in zip(ends, self.sizes, self.shapes, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)


def pack(tree: Any) -> Vector:
    """The vector of a tree of float32 arrays."""
    leaves, structure = jax.tree.flatten(tree)
    values = jnp.concatenate([leaf.ravel() for leaf in leaves]) if leaves else jnp.zeros(0)
    return Vector(values, structure, tuple(leaf.shape for leaf in leaves))


def unpacked(tree: Any) -> Any:
    """A tree with the tree of each vector in its place."""
    return _replaced(lambda vector: vector.tree(), tree)


def repacked(tree: Any, like: Any) -> Any:
    """The reverse of unpacked(): `tree` with the vectors of `like` in their places."""
    is_vector = lambda node: isinstance(node, Vector)  # noqa: E731
    return jax.tree.map(
        lambda node, part: pack(part) if is_vector(node) else part, like, tree, is_leaf=is_vector
    )


def _replaced(function: Callable[[Vector], Any], tree: Any) -> Any:
    is_vector = lambda node: isinstance(node, Vector)  # noqa: E731
    return jax.tree.map(
        lambda node: function(node) if is_vector(node) else node, tree, is_leaf=is_vector
    )
