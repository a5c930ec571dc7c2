"""What a training step sends, and what the model of it computes."""

import pytest

from benchmarks import scaling
from rtseg_jax.base import config as settings
from rtseg_jax.models import flops

HLO = """
  %all-reduce.1 = f32[3,2]{1,0} all-reduce(%a), channel_id=1
  %all-reduce.2 = (f32[5]{0}, bf16[4]{0}, s32[]) all-reduce(%b, %c, %d), channel_id=2
  %start = f32[7]{0} all-reduce-start(%e), channel_id=3
  %done = f32[7]{0} all-reduce-done(%start)
  %fusion = f32[8]{0} fusion(%all-reduce.1), calls=%x
"""
MACHINE = scaling.Machine(flops=6e12, bandwidth=1e9, inside=1e10, latency=1e-3, hop=1e-4)


def test_traffic():
    assert scaling.traffic(HLO) == scaling.Traffic((24, 32, 28), ())
    gathered = HLO + "  %g = f32[8]{0} all-gather(%a), channel_id=4\n"
    assert scaling.traffic(gathered) == scaling.Traffic((24, 32, 28), ("all-gather",))


def test_a_step_sends_its_gradients_and_the_norms_moments():
    """And no image, activation or logit: a scalar or two of the loss is all else."""
    hlo, _, variables = scaling.compiled_step(settings.load("fast_scnn:smoke"), (64, 128))
    found = scaling.traffic(hlo)
    values = sum(flops.count_parameters(tree) for tree in variables.values())
    assert found.others == ()
    assert 0 < found.num_bytes - 4 * values < 64


def test_all_reduce():
    assert MACHINE.all_reduce(1e9, 1) == 0
    assert MACHINE.all_reduce(0, 8) == pytest.approx(1e-3)
    assert MACHINE.all_reduce(1e10, 8) == pytest.approx(2 * 7 / 8 + 1e-3)
    assert MACHINE.all_reduce(1e9, 64) == pytest.approx(2 * 63 / 64 + 1e-3 + 3e-4)


def test_step_seconds():
    sent = scaling.Traffic((10**10, 0), ())
    assert scaling.step_seconds(1e12, 2, sent, MACHINE, 1) == pytest.approx(2)
    assert scaling.step_seconds(1e12, 2, sent, MACHINE, 8) == pytest.approx(2 + 1.75 + 2e-3)
