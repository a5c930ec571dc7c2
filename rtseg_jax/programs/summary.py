"""Parameters and multiply-adds of the named networks beside what their papers print.

rtseg summary
rtseg summary --variants=asap,carnet_mobilenet --size=1024x2048 --markdown
"""

import functools
import json
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from rtseg_jax import models
from rtseg_jax.models import flops, published
from rtseg_jax.programs.shared import tables
from rtseg_jax.programs.shared.command_line import Flags, Given, Program


@functools.cache
def _variables(variant: str, num_classes: int, options: tuple) -> Any:
    model = models.create(variant, num_classes=num_classes, **dict(options))
    return flops.variable_shapes(model)


@functools.cache
def _calls(
    variant: str, num_classes: int, options: tuple, size: tuple[int, int], train: bool
) -> list[flops.Call]:
    model = models.create(variant, num_classes=num_classes, **dict(options))
    variables = _variables(variant, num_classes, options)
    return flops.trace(model, size, train=train, variables=variables)


def reproduce(reproduction: published.Reproduction) -> int:
    """Counts what a printed number stands for: parameters, or operations by the paper's own rule."""
    network = (reproduction.variant, reproduction.num_classes, tuple(reproduction.options.items()))
    part = re.compile(reproduction.part or "")
    if reproduction.size is None:
        without_norms = reproduction.rule == "without_norms"
        return sum(
            n
            for path, n in flops.parameters(_variables(*network)["params"]).items()
            if part.search(path) and not (without_norms and "/norm/" in path)
        )
    rule = flops.RULES[reproduction.rule]
    calls = _calls(*network, reproduction.size, rule.train)
    return sum(n for path, n in rule.by_path(calls).items() if part.search(path))


def summarise(variant: str, num_classes: int, size: tuple[int, int]) -> dict[str, Any]:
    """One network: what it has and costs, and what its paper prints for these classes and this size.

    Args:
        variant: Name of the network in models.VARIANTS.
        num_classes: How many classes the network tells apart.
        size: Size of the image, (h, w) in pixels.

    Returns:
        params and macs are exact, attention_macs is the part of macs that is an attention's two products. What the
        paper prints (paper_params_m in 10^6, paper_flops_g in 10^9) and what its own rule gives here (rule_flops_g)
        are None where it prints nothing for this network.

    Raises:
        ValueError: unknown variant.
    """
    models.get(variant)
    network = (variant, num_classes, ())
    calls = _calls(*network, size, False)
    products = [call for call in calls if call.kind == "dot_product_attention"]
    params = _printed(variant, num_classes, None)
    operations = _printed(variant, num_classes, size)
    source = operations or params
    return {
        "variant": variant,
        "num_classes": num_classes,
        "height": size[0],
        "width": size[1],
        "params": flops.count_parameters(_variables(*network)["params"]),
        "macs": sum(call.macs for call in calls),
        "attention_macs": sum(call.macs for call in products),
        "paper": source and source.record.place,
        "paper_params_m": params and float(params.record.value),
        "paper_flops_g": operations and float(operations.record.value),
        "rule_flops_g": operations and reproduce(operations) / 1e9,
    }


def _printed(
    variant: str, num_classes: int, size: tuple[int, int] | None
) -> published.Reproduction | None:
    """The first printed count of a whole network that its paper measured so; one that comes out goes before."""
    wanted = (variant, num_classes, size, {})
    found = [
        r
        for r in published.reproductions()
        if (r.variant, r.num_classes, r.size, r.options) == wanted and r.part is None
    ]
    return min(found, key=lambda r: r.agrees is None, default=None)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    def number(value, unit, digits=3):
        return "" if value is None else f"{value:.{digits}f} {unit}"

    difference = None
    if row["paper_flops_g"] is not None:
        difference = row["macs"] / 1e9 - row["paper_flops_g"]
    return (
        row["variant"],
        f"{row['params']:,}",
        "" if row["paper_params_m"] is None else f"{row['paper_params_m']:g} M",
        number(row["macs"] / 1e9, "G"),
        "" if row["paper_flops_g"] is None else f"{row['paper_flops_g']:g} G",
        "" if difference is None else f"{difference:+.3f} G",
        number(row["rule_flops_g"], "G"),
        row["paper"] or "",
    )


TITLES = (
    "network",
    "parameters",
    "paper",
    "multiply-adds",
    "paper",
    "difference",
    "by its rule",
    "where",
)


def text(rows: Sequence[dict[str, Any]]) -> str:
    """The summary as columns."""
    table = [TITLES, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for cells in table:
        padded = [c.rjust(w) for c, w in zip(cells, widths, strict=True)]
        padded[0], padded[-1] = cells[0].ljust(widths[0]), cells[-1]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The summary as a table for README."""
    head = tables.header(*TITLES, words=(0, len(TITLES) - 1))
    return "\n".join((*head, *(tables.row(*_cells(row)) for row in rows)))


def differences(variants: Sequence[str]) -> list[str]:
    """One line for each printed count of these networks that does not come out, with the reason."""
    lines = []
    for r in published.reproductions():
        if r.agrees is None and r.variant in variants:
            ours = Decimal(reproduce(r)) / published.PREFIXES[r.record.unit]
            where = f"{r.record.place}, {r.row}, {r.metric}"
            printed = f"{r.record.value} {r.record.unit}"
            lines.append(f"{where}: {printed} printed, {ours:.3f} {r.record.unit} here; {r.reason}")
    return lines


def define(flags: Flags) -> None:
    """Defines the flags."""
    flags.words("variants", "Names, all if not given.", [])
    flags.size("of the image; 512x1024 if not given.")
    flags.count("num_classes", "Classes of the networks.", 19, low=1)
    flags.switch("json", "Print a list of objects.")
    flags.switch("markdown", "Print a table for README.")


def main(given: Given, _: list[str]) -> None:
    """Prints the table."""
    size = given.size or (512, 1024)
    if isinstance(size, str):
        raise ValueError(f"--size={size} is not HEIGHTxWIDTH in pixels")
    variants = given.variants or list(models.VARIANTS)
    rows = [summarise(name, given.num_classes, size) for name in variants]
    if given.json:
        print(json.dumps(rows, indent=1))
    elif given.markdown:
        print(markdown(rows))
    else:
        print(f"{size[0]}x{size[1]} pixels, {given.num_classes} classes\n\n{text(rows)}")
        if missed := differences(variants):
            print("\nPrinted counts that do not come out:\n  " + "\n  ".join(missed))


PROGRAM = Program(__doc__, define, main)
