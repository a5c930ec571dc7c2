"""The papers' numbers: read as printed, reproduced where they can be, and shown beside ours."""

import json
from decimal import Decimal

import pytest

from rtseg_jax import models
from rtseg_jax.models import published
from rtseg_jax.programs import summary


def test_records():
    counts = {name: len(published.load(name)) for name in published.PAPERS}
    assert len(published.load()) == sum(counts.values())
    record = published.find("EACNet", "3", "EACNet-DAB", "flops")
    assert (str(record.value), record.unit, record.split) == ("10.380", "G", "val")
    assert (record.dataset, record.gpu) == ("Cityscapes", "RTX 2080 Ti")
    assert record.input_size is None  # Table 3 does not print it, Table 4 does
    assert published.find("EACNet", "4", "EACNet-DAB", "flops").input_size == (512, 1024)
    assert record.place == "EACNet, Table 3"
    one = published.find("CARNet", "Section I", "one CARModule", "flops")
    assert (one.unit, one.place) == ("M", "CARNet, Section I")
    assert published.find("ASAP", "I", "ASAP*", "fps").remark == "TensorRT"
    assert published.find("CARNet", "2", "CARNet-Mobile", "ms_std").value == Decimal("0.77")
    assert published.find("AFFNet", "VII", "AFFNet", "miou/gamma0").value == Decimal("67.7")


def test_units():
    units = {"parameters": {"M"}, "flops": {"G", "M"}, "macs": {"G"}, "fps": {"frames/s"}}
    for record in published.load():
        metric = record.metric.partition("/")[0]
        expected = units.get(metric, {"ms"} if metric.startswith("ms") else {"%"})
        assert record.unit in expected, record
        assert record.value > 0


def test_per_class_tables():
    """Nineteen classes each; in EACNet's tables they average to the printed mIoU."""
    rows = {}
    for record in published.load():
        if record.metric.startswith("iou/"):
            key = (record.paper, record.table, record.row, record.split)
            rows.setdefault(key, []).append(record.value)
    assert all(len(values) == 19 for values in rows.values())
    for (paper, table, row, split), values in rows.items():
        if paper == "EACNet":
            (miou,) = {
                r.value
                for r in published.load("eacnet")
                if (r.table, r.row, r.split, r.metric) == (table, row, split, "miou")
            }
            assert abs(sum(values) / 19 - miou) <= Decimal("0.06")


def test_lookup_errors():
    with pytest.raises(ValueError, match="unknown paper 'enet'; choose one of eacnet, carnet"):
        published.load("enet")
    with pytest.raises(ValueError, match="0 records are called EACNet, 9, ERFNet, fps"):
        published.find("EACNet", "9", "ERFNet", "fps")
    with pytest.raises(ValueError, match="3 records are called AFFNet, VI, AFFNet, fps"):
        published.find("AFFNet", "VI", "AFFNet", "fps")


def test_rounding():
    record = published.find("EACNet", "3", "DABNet", "flops")  # 10.375 G
    assert record.prints(10_375_499_999) == "rounded"
    assert record.prints(10_374_500_000) == "rounded"
    assert record.prints(10_375_500_000) == "truncated"
    assert record.prints(10_375_999_999) == "truncated"
    assert record.prints(10_376_000_000) is record.prints(10_374_499_999) is None


REPRODUCTIONS = published.reproductions()


@pytest.mark.parametrize("paper", sorted({r.paper for r in REPRODUCTIONS}))
def test_printed_counts(paper):
    """What comes out comes out to the digit; what does not has its reason, and is not quietly met."""
    for r in REPRODUCTIONS:
        if r.paper == paper:
            count = summary.reproduce(r)
            assert r.record.prints(count) == r.agrees, (r, count)
            assert r.agrees or r.reason, r


OURS = {
    "EACNet": ("ERFNet", "DABNet", "EACNet", "CGNet", "ESPNet", "ENet"),
    "CARNet": ("CARNet", "CARModule", "one CARModule", "BS", "CRP", "Others", "Decoder", "ENet"),
    "AFFNet": (
        "AFF",
        "EWA",
        "Concat",
        "FPN+PAN",
        "SPSSNet",
        "Fast-SCNN",
        "ERFNet",
        "ESPNet",
        "ENet",
    ),
    "ASAP": ("ASAP", "Feature Fusion", "Self Attention"),
}


def test_no_printed_count_is_left_out():
    wanted = {
        (r.paper, r.table, r.row, r.metric)
        for r in published.load()
        if r.metric in ("parameters", "flops", "macs")
        and r.row.startswith(OURS[r.paper])
        and r.row != "ESPNetv2"
    }
    given = [(r.paper, r.table, r.row, r.metric) for r in REPRODUCTIONS]
    assert len(given) == len(set(given))
    assert set(given) == wanted


def test_summarise():
    row = summary.summarise("eacnet_dabnet", 19, (512, 1024))
    assert row == {
        "variant": "eacnet_dabnet",
        "num_classes": 19,
        "height": 512,
        "width": 1024,
        "params": 757_784,
        "macs": 10_862_350_336,
        "attention_macs": 637_534_208,
        "paper": "EACNet, Table 3",
        "paper_params_m": 0.758,
        "paper_flops_g": 10.38,
        "rule_flops_g": 10.38057472,
    }
    other = summary.summarise("eacnet_dabnet", 11, (64, 128))
    assert (other["params"], other["macs"]) == (754_968, 159_541_568)
    assert other["paper"] is other["paper_params_m"] is other["paper_flops_g"] is None
    with pytest.raises(ValueError, match="unknown model 'dab'"):
        summary.summarise("dab", 19, (64, 128))


def test_tables():
    rows = [summary.summarise(name, 19, (512, 1024)) for name in ("dabnet", "fast_scnn")]
    lines = summary.text(rows).splitlines()
    assert lines[1].split() == (
        "dabnet 756,643 0.757 M 10.220 G 10.375 G -0.155 G 10.376 G EACNet, Table 3".split()
    )
    assert lines[2].split() == "fast_scnn 1,138,051 1.11 M 1.678 G AFFNet, Table V".split()
    lines = summary.markdown(rows).splitlines()
    assert lines[1].count("---") == lines[0].count("|") - 1 == 8
    assert lines[3] == "| fast_scnn | 1,138,051 | 1.11 M | 1.678 G |  |  |  | AFFNet, Table V |"
    assert summary.differences(["dabnet"]) == []
    (line,) = summary.differences(["spssnet"])
    assert line.startswith("AFFNet, Table III, SPSSNet, macs: 27.281 G printed, 2.352 G here; ")


def test_program(capsys):
    assert summary.PROGRAM.run(["--variants=erfnet_encoder,dabnet", "--size=64,128", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["variant"] for row in rows] == ["erfnet_encoder", "dabnet"]
    assert {"height": 64, "width": 128}.items() <= rows[0].items()
    assert summary.PROGRAM.run(["--size=64"]) == 1
    assert "error: size '64' is not HEIGHTxWIDTH in pixels" in capsys.readouterr().err


def test_every_variant_has_a_printed_count():
    named = {r.variant for r in REPRODUCTIONS}
    # No table of the four papers has these.
    zoo = {"ddrnet23_slim", "pidnet_s", "bisenetv2", "stdc1", "stdc2"}
    assert set(models.VARIANTS) - named == {"eacnet_dabnet_nonlocal"} | zoo
