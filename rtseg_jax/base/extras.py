"""Optional packages: there, or one line that names the extra that installs them."""

import importlib
from typing import Any


def optional(module: str, extra: str) -> Any:
    """A module of a package that an extra of this project installs.

    Raises:
        ValueError: it is missing; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(
            f"this takes {module}; install it with: pip install 'rtseg_jax[{extra}]'"
        ) from None
