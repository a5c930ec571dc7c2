"""Writes camvid.jsonl and the tables of camvid.md from finished runs.

python -m rtseg_jax.main --config=configs/camvid_short.py:VARIANT --config.input.root=DIR --workdir=RUN
python -m rtseg_jax.evaluate --workdir=RUN --split=test        # once
python benchmarks/camvid.py RUN [RUN ...]
"""

import datetime
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
TITLE = """# CamVid

SegNet split (367 train, 101 val, 233 test images of 360x480, 11 classes), from scratch, trained on *train* alone.
The checkpoint is the one with the best val mIoU; test was evaluated once per run, single scale. On this set
val lies some ten points above test: the val figure only chooses the checkpoint, the result is test.

Each run: `python -m rtseg_jax.main --config=configs/camvid_short.py:NETWORK --config.input.root=DIR --workdir=RUN`, then
`python -m rtseg_jax.evaluate --workdir=RUN --split=test`; the tables are
written by `python benchmarks/camvid.py RUN ...`. Seconds are wall time on two CPU cores, evaluations included, on a
machine that had other work to do at the same time.
"""


def read(run: pathlib.Path) -> dict:
    config = json.loads((run / "config.json").read_text())
    val = json.loads((run / "evaluation.json").read_text())
    test = json.loads((run / "evaluation_test" / "evaluation.json").read_text())
    steps = max(json.loads(x)["step"] for x in (run / "metrics.jsonl").read_text().splitlines())
    began, ended = ((run / f).stat().st_mtime for f in ("params.txt", "evaluation.json"))
    return {
        "model": config["model"]["name"],
        "date": datetime.date.fromtimestamp(ended).isoformat(),
        "num_epochs": config["num_epochs"],
        "crop_schedule": config["augment"]["crop_schedule"],
        "crop": config["augment"]["crop"],
        "steps": steps,
        "batch_size": config["batch_size"],
        "best_step": val["step"],
        "seconds": round(ended - began),
        "val_miou": val["miou"],
        "test_miou": test["miou"],
        "test_pixel_accuracy": test["pixel_accuracy"],
        "test_iou": test["iou"],
    }


def main(runs: list[str]) -> None:
    rows = [read(pathlib.Path(run)) for run in runs]
    with (HERE / "camvid.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    lines = [
        TITLE,
        "| network | epochs | steps x batch | best step | seconds | val mIoU | test mIoU |",
    ]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for r in rows:
        lines.append(
            f"| {r['model']} | {r['num_epochs']} | {r['steps']} x {r['batch_size']} | {r['best_step']}"
            f" | {r['seconds']} | {100 * r['val_miou']:.2f} | **{100 * r['test_miou']:.2f}** |"
        )
    lines += ["", "Test IoU by class:", ""]
    lines.append("| class | " + " | ".join(r["model"] for r in rows) + " |")
    lines.append("| --- |" + " --- |" * len(rows))
    for name in rows[0]["test_iou"]:
        cells = [f"{100 * r['test_iou'][name]:.2f}" for r in rows]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    (HERE / "camvid.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
