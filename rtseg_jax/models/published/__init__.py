"""The numbers that the four papers print, and how each count of parameters and operations is reproduced.

PAPER.json holds a paper's tables. reproduced.json holds, for every printed count of a network or module of ours, what
is counted, whether the printed digits come out, and the reason where they do not.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from decimal import Decimal
from importlib import resources
from typing import Any

PAPERS = ("eacnet", "carnet", "affnet", "asap")
PREFIXES = {"G": 10**9, "M": 10**6}


@dataclasses.dataclass(frozen=True)
class Record:
    """One number that a paper prints.

    Attributes:
        paper: "EACNet", "CARNet", "AFFNet" or "ASAP".
        table: As the paper numbers it; "Section E.1" or "Abstract" where the text gives the number.
        row: As the paper names it.
        metric: parameters, flops or macs (one multiply-add each), ms, ms_std, fps, miou, miiou, iou/CLASS.
        value: The number in `unit`, with the digits that are printed.
        unit: M (10^6), G (10^9), ms, frames/s or %.
        dataset: None where the number has none, or the paper does not say.
        split: Name of the data set's split.
        input_size: (h, w) in pixels.
        gpu: On which a time was measured; None where it was copied from elsewhere or is not stated.
        remark: What the table marks: TensorRT, multi-scale testing, extra coarse annotations.
    """

    paper: str
    table: str
    row: str
    metric: str
    value: Decimal
    unit: str
    dataset: str | None = None
    split: str | None = None
    input_size: tuple[int, int] | None = None
    gpu: str | None = None
    remark: str | None = None

    @property
    def place(self) -> str:
        """Where the number stands: "EACNet, Table 3", "CARNet, Section I"."""
        in_text = self.table.startswith(("Section", "Abstract"))
        return f"{self.paper}, {self.table if in_text else f'Table {self.table}'}"

    def prints(self, count: int) -> str | None:
        """How an exact count gives the printed digits: "rounded", "truncated", or None."""
        exact = Decimal(count) / PREFIXES[self.unit]
        for name, mode in (("rounded", "ROUND_HALF_UP"), ("truncated", "ROUND_DOWN")):
            if exact.quantize(self.value, mode) == self.value:
                return name
        return None


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """What is counted to reproduce one printed count.

    Attributes:
        paper: With table, row and metric it names the Record.
        table: See paper.
        row: See paper.
        metric: See paper.
        variant: Name of the network in models.VARIANTS.
        options: Options of the network, where they differ from the variant's.
        num_classes: How many classes the counted network has.
        size: Size of the counted image, (h, w); None for parameters.
        part: Regular expression of the paths that belong to the part; None is the whole network.
        rule: For operations, a name in flops.RULES. For parameters, None counts all, "without_norms" those of no norm.
        agrees: "rounded" or "truncated" where the printed digits come out so, None where they do not.
        reason: Why they do not, or what had to be assumed.
    """

    paper: str
    table: str
    row: str
    metric: str
    variant: str
    num_classes: int
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    size: tuple[int, int] | None = None
    part: str | None = None
    rule: str | None = None
    agrees: str | None = None
    reason: str | None = None

    @property
    def record(self) -> Record:
        """The printed number."""
        return find(self.paper, self.table, self.row, self.metric)


def _read(name: str) -> Any:
    text = (resources.files(__name__) / f"{name}.json").read_text(encoding="utf-8")
    return json.loads(text, parse_float=Decimal, parse_int=int)


def _tuple(size: list[int] | None) -> tuple[int, int] | None:
    return None if size is None else (size[0], size[1])


@functools.cache
def load(paper: str | None = None) -> tuple[Record, ...]:
    """Reads every record of one paper ("eacnet", ...), or of all four.

    Raises:
        ValueError: no such paper.
    """
    if paper is None:
        return tuple(record for name in PAPERS for record in load(name))
    if paper not in PAPERS:
        raise ValueError(f"unknown paper '{paper}'; choose one of {', '.join(PAPERS)}")
    content = _read(paper)
    records = []
    for row in content["rows"]:
        facts = {k: v for k, v in row.items() if k not in ("values", "input_size")}
        for metric, (value, unit) in row["values"].items():
            records.append(
                Record(
                    paper=content["paper"],
                    metric=metric,
                    value=Decimal(value),
                    unit=unit,
                    input_size=_tuple(row.get("input_size")),
                    **facts,
                )
            )
    return tuple(records)


def find(paper: str, table: str, row: str, metric: str) -> Record:
    """The one record of that name.

    Raises:
        ValueError: none, or several (a table with one row for each input size).
    """
    name = (paper, table, row, metric)
    found = [r for r in load(paper.lower()) if (r.paper, r.table, r.row, r.metric) == name]
    if len(found) != 1:
        raise ValueError(f"{len(found)} records are called {', '.join(name)}")
    return found[0]


@functools.cache
def reproductions() -> tuple[Reproduction, ...]:
    """How every printed count of ours is reproduced, or why it is not."""
    return tuple(Reproduction(**{**x, "size": _tuple(x.get("size"))}) for x in _read("reproduced"))
