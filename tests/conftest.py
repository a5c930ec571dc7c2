"""The suite's rules: four virtual CPU devices, no silent broadcasting, every shape annotation checked."""

import contextlib
import functools
import inspect
import os
import pathlib
import shutil
import signal
from collections.abc import Iterator

from tests import compiling

os.environ["XLA_FLAGS"] = " ".join(
    ("--xla_force_host_platform_device_count=4", compiling.FLAGS, os.environ.get("XLA_FLAGS", ""))
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Compiled code is shared by the tests of a run, those in child processes included.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".pytest_cache/jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.devices()  # made now, with the flags above: a test may set others for its children

with contextlib.suppress(ImportError):
    import triton  # noqa: F401  # of torch for CUDA: it crashes where TensorFlow was loaded before it


def _jaxtyped(fn=None, *, checked=jaxtyping.jaxtyped, **options):
    """Leaves functions without annotations alone: for one within another, checks would be compiled at each call."""
    if fn is None:
        return functools.partial(_jaxtyped, **options)
    annotated = inspect.isclass(fn) or getattr(fn, "__annotations__", True)
    return checked(fn, **options) if annotated else fn


try:
    import beartype  # noqa: F401

    jaxtyping.jaxtyped = _jaxtyped
    jaxtyping.install_import_hook("rtseg_jax", "beartype.beartype")
except ImportError:  # annotations go unchecked, for instance on a machine without package access
    pass


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """They come back from the cache on disk; kept, they are gigabytes by the end of the suite."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def tiny_network():
    """The variant "tiny" in the place of a network, in this process."""
    from rtseg_jax import models
    from tests import tiny

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.VARIANTS, "tiny", tiny.VARIANT)
        yield


CHROMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
    " --use-fake-device-for-media-stream --use-fake-ui-for-media-stream"
).split()


@pytest.fixture(scope="module")
def browser():
    """A Chromium without windows, with a camera that shows a test picture."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as started:
        path = next(filter(None, map(shutil.which, CHROMES)), started.chromium.executable_path)
        if not pathlib.Path(path).is_file():
            pytest.skip("no Chromium or Chrome on the PATH")
        chrome = started.chromium.launch(executable_path=path, args=QUIET)
        yield chrome
        chrome.close()


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """Signals as in a terminal: under nohup, or in the background of a script, some are ignored."""
    usual = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
