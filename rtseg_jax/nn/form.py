"""Which formulation of an operation runs: the fastest on this platform, or the plain one."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax

_portable = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Within the context every operation takes its plain lax form, which exporters translate node by node.

    A function that jit has traced outside keeps the form that it was traced with.
    """
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as one sub-program of this name, which an exporter can replace by one node of its own."""

    def call(*args):
        return function(*args)

    call.__name__ = name
    return jax.jit(call)


def is_portable(impl: str = "auto") -> bool:
    """Whether an operation asked for `impl` takes its plain form.

    Raises:
        ValueError: neither "auto" nor "portable".
    """
    if impl not in ("auto", "portable"):
        raise ValueError(f"unknown impl '{impl}'; choose 'auto' or 'portable'")
    return impl == "portable" or _portable.get()
