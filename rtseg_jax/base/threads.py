"""Work in threads, in order, a bounded number of calls ahead of or behind the caller."""

import collections
import concurrent.futures
import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def ahead(calls: Iterable[Callable], num_workers: int) -> Iterator[concurrent.futures.Future]:
    """Makes calls in threads, a few ahead of the one that is asked for; what becomes of them, in order."""
    calls = iter(calls)
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
def behind(num_workers: int) -> Iterator[Callable[..., None]]:
    """Gives a function that makes calls in threads and waits when it is too far ahead of them; leaving waits for all."""
    with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        pending = collections.deque()

        def submit(call: Callable, *arguments: Any) -> None:
            pending.append(pool.submit(call, *arguments))
            if len(pending) > 2 * num_workers:
                pending.popleft().result()

        yield submit
        for future in pending:
            future.result()
