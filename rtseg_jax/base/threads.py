"""Work in threads, in order, a bounded number of calls ahead of or behind the caller."""

import collections
import concurrent.futures
import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tqdm import tqdm


def workers(num_workers: int | None) -> int:
    """How many threads: as many as there are CPU cores, unless it is said."""
    return (os.cpu_count() or 1) if num_workers is None else num_workers


def for_each(
    call: Callable[[int], Any], count: int, *, doing: str, unit: str, num_workers: int | None = None
) -> list[Any]:
    """What a function gives for 0, 1, ... `count` - 1, called in threads behind a progress bar.

    Args:
        call: The function; what it raises ends the work.
        count: How many calls.
        doing: What the bar says is being done.
        unit: What a call is about.
        num_workers: Threads; None for as many as there are CPU cores.
    """
    with concurrent.futures.ThreadPoolExecutor(workers(num_workers)) as pool:
        results = pool.map(call, range(count))
        return list(tqdm(results, total=count, desc=doing, unit=unit, disable=None))


def ahead(
    calls: Iterable[Callable], num_workers: int | None
) -> Iterator[concurrent.futures.Future]:
    """Makes calls in threads, a few ahead of the one that is asked for; what becomes of them, in order."""
    calls, num_workers = iter(calls), workers(num_workers)
    with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        pending = collections.deque(
            pool.submit(call) for call in itertools.islice(calls, 2 * num_workers)
        )
        try:
            while pending:
                yield pending.popleft()
                pending.extend(pool.submit(call) for call in itertools.islice(calls, 1))
        finally:
            for future in pending:
                future.cancel()


@contextlib.contextmanager
def behind(num_workers: int | None) -> Iterator[Callable[..., None]]:
    """Gives a function that makes calls in threads and waits when it is too far ahead of them; leaving waits for all."""
    num_workers = workers(num_workers)
    with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        pending = collections.deque()

        def submit(call: Callable, *arguments: Any) -> None:
            pending.append(pool.submit(call, *arguments))
            if len(pending) > 2 * num_workers:
                pending.popleft().result()

        yield submit
        for future in pending:
            future.result()
