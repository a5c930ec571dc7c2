"""Adds a finished run to camvid.jsonl and writes the tables of camvid.md.

python -m rtseg_jax.main --config=CONFIG... --config.input.root=DIR --workdir=RUN
python -m rtseg_jax.evaluate --workdir=RUN --split=test        # once, when the recipe is final; else not at all
python benchmarks/camvid.py RUN "CONFIG..."                    # what followed --config=, as it was given
"""

import datetime
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
TITLE = """# CamVid

SegNet split (367 train, 101 val, 233 test images of 360x480, 11 classes), from scratch, trained on *train* alone.
The checkpoint is the one with the best val mIoU; test was evaluated once per finished run, single scale, and not at all
where a run only shows that a network learns. On this set val lies some ten points above test: the val figure only
chooses the checkpoint, the result is test. "Majority" is the val mIoU of naming every pixel by the commonest class.

Each run: `python -m rtseg_jax.main --config=COMMAND --config.input.root=DIR --workdir=RUN`, then
`python -m rtseg_jax.evaluate --workdir=RUN --split=test`, then `python benchmarks/camvid.py RUN COMMAND`. Seconds are wall
time on two CPU cores, evaluations included, on a machine that had other work to do and paused some runs for it.
"""


def read(run: pathlib.Path, command: str) -> dict:
    """What a run's folder says of it."""
    config = json.loads((run / "config.json").read_text())
    val = json.loads((run / "evaluation.json").read_text())
    tested = run / "evaluation_test" / "evaluation.json"
    test = json.loads(tested.read_text()) if tested.exists() else None
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    pixels = [sum(row) for row in val["confusion"]]
    began, ended = ((run / f).stat().st_mtime for f in ("params.txt", "evaluation.json"))
    return {
        "model": config["model"]["name"],
        "command": command,
        "date": datetime.date.fromtimestamp(ended).isoformat(),
        "steps": max(line["step"] for line in log),
        "batch_size": config["batch_size"],
        "best_step": val["step"],
        "seconds": round(ended - began),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "majority_val_miou": max(pixels) / sum(pixels) / len(pixels),
        "val_miou": val["miou"],
        "test_miou": test and test["miou"],
        "test_iou": test and test["iou"],
    }


def percent(value: float | None) -> str:
    """In percent, or a dash."""
    return "-" if value is None else f"{100 * value:.2f}"


def table(*rows: list[str]) -> list[str]:
    """Lines of a Markdown table, the first row its head."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return [head, "|" + " --- |" * len(rows[0]), *body]


def main(run: str, command: str) -> None:
    """Adds one run."""
    path = HERE / "camvid.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    new = read(pathlib.Path(run), command)
    rows = [r for r in rows if (r["model"], r["command"]) != (new["model"], command)] + [new]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    lines = table(
        ["network", "steps x batch", "seconds", "loss", "majority", "val mIoU", "test mIoU"],
        *(
            [
                r["model"],
                f"{r['steps']} x {r['batch_size']}",
                str(r["seconds"]),
                f"{r['first_loss']:.2f} to {r['last_loss']:.2f}" if "first_loss" in r else "-",
                percent(r.get("majority_val_miou")),
                percent(r["val_miou"]),
                f"**{percent(r['test_miou'])}**" if r["test_miou"] is not None else "-",
            ]
            for r in rows
        ),
    )
    tested = [r for r in rows if r["test_miou"] is not None]
    commands = [f"- {r['model']}, {r['date']}: `{r['command']}`" for r in rows]
    lines = [TITLE, *lines, "", "Commands, in the same order:", "", *commands]
    if tested:
        classes = [
            [name, *(percent(r["test_iou"][name]) for r in tested)]
            for name in tested[0]["test_iou"]
        ]
        heads = ["class", *(f"{r['model']}, {r['steps']} steps" for r in tested)]
        lines += ["", "Test IoU by class:", "", *table(heads, *classes)]
    (HERE / "camvid.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
