"""What programs say that were compiled for a GPU which is not there; and how such a program is read.

The compiling needs the extra gpu-compile and takes minutes: `make check-gpu`.
"""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from benchmarks import gpu_paper

ROOT = pathlib.Path(__file__).resolve().parent.parent
T4, H200 = gpu_paper.TARGETS["t4"], gpu_paper.TARGETS["h200"]
HLO = """
HloModule jit_run, is_scheduled=true, entry_computation_layout={(f32[8,4]{1,0})->f32[2,4]{1,0}}

%fused_slice (param_0: f32[8,4]) -> f32[2,4] {
  %param_0 = f32[8,4]{1,0} parameter(0)
  %part = f32[2,4]{1,0} slice(%param_0), slice={[0:2], [0:4]}
  ROOT %twice = f32[2,4]{1,0} add(%part, %part)
}

%body (state: (s32[], bf16[1,8,8,4])) -> (s32[], bf16[1,8,8,4]) {
  %state = (s32[], bf16[1,8,8,4]{3,2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = bf16[1,8,8,4]{3,2,1,0} get-tuple-element(%state), index=1
  %kernel = bf16[16,3,3,4]{3,2,1,0} constant({...})
  %conv = (bf16[1,8,8,16]{3,2,1,0}, u8[256]{0}) custom-call(%x, %kernel), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  ROOT %next = (s32[], bf16[1,8,8,4]{3,2,1,0}) tuple(%i, %x)
}

ENTRY %main (a: f32[8,4]) -> f32[2,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %start = (s32[], bf16[1,8,8,4]{3,2,1,0}) constant({...})
  %loop = (s32[], bf16[1,8,8,4]{3,2,1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %fusion = f32[2,4]{1,0} fusion(%a), kind=kLoop, calls=%fused_slice
}
"""
THUNKS = """\
000: kCommandBuffer cmds
    000: kConvolution conv
    001: kKernel fusion
001: kKernel other
"""


def test_a_program_is_read():
    computations, entry = gpu_paper.parse(HLO)
    (conv, body, turns), (fusion, main, once) = gpu_paper.kernels(computations, entry)
    assert (conv.name, turns, fusion.name, once) == ("conv", 5, "fusion", 1)
    # Of the fusion's argument a quarter is read, and the workspace of the convolution is not counted.
    assert gpu_paper.work(fusion, main, computations, T4).moved == 2 * 32
    work = gpu_paper.work(conv, body, computations, H200)
    assert work.moved == 2 * (8 * 8 * 4 + 16 * 9 * 4 + 8 * 8 * 16)
    assert work.products == pytest.approx(2 * 8 * 8 * 16 * 9 * 4 / (990e12 / 2))


def test_what_a_program_says_of_itself():
    found = gpu_paper.summary(HLO, THUNKS, H200)
    assert (found["kernels"], found["convolutions"], found["fused"]) == (6, 5, 0)
    assert found["recorded"] == 4  # two launches of three
    assert found["us"] == pytest.approx(6 * 7 / 6, abs=0.1)


def test_float32_has_no_tensor_cores_on_a_t4():
    seconds = gpu_paper.product_seconds
    assert seconds(1e12, "f32", "", T4) == 1e12 / T4.plain
    assert seconds(1e12, "f32", "", H200) == 2 * seconds(1e12, "bf16", "", H200)
    exact = "operand_precision={highest,highest}"
    assert seconds(1e12, "f32", exact, H200) == 1e12 / H200.plain


def test_a_step_that_does_not_fit_goes_in_more_parts():
    case = gpu_paper.Case("step", "asap", "t4")
    line = {"target": "t4", "batch": 12, "temporary_gib": 20.0, "arguments_gib": 0.5}
    assert not gpu_paper.fits(line)
    assert gpu_paper.in_more_parts(case, line).accumulate == 2
    line["temporary_gib"] = 40.0
    assert gpu_paper.in_more_parts(case, line).accumulate == 4
    assert gpu_paper.in_more_parts(case, {**line, "batch": 2}) is None


# Kernels and convolutions with the bias inside; those of a step are its forward pass's and gradients'.
HELD = {
    "frames erfnet 512x1024 bfloat16 h200": (81, 71, 73),
    "frames asap 512x1024 bfloat16 h200": (52, 30, 30),
    "frames fast_scnn 512x1024 bfloat16 h200": (63, 31, 31),
    "step eacnet:dabnet,camvid bfloat16 h200": (948, 14, 80),
}


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """The lines of HELD, compiled in a process whose XLA has flags of its own."""
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        pytest.skip("needs the compiler for NVIDIA GPUs: pip install '.[gpu-compile]'")
    output = tmp_path_factory.mktemp("gpu") / "lines.jsonl"
    command = ["benchmarks/gpu_paper.py", f"--only=^({'|'.join(HELD)})$", f"--output={output}"]
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT)
    found = map(json.loads, output.read_text().splitlines())
    return {str(gpu_paper.key(line)): line for line in found}


@pytest.mark.slow
@pytest.mark.parametrize("case", HELD)
def test_what_a_gpu_is_given(lines, case):
    kernels, fused, convolutions = HELD[case]
    line = lines[case]
    assert (line["fused"], line["convolutions"]) == (fused, convolutions)
    assert line["kernels"] <= kernels
    assert line["recorded"] > 0.9 * line["kernels"]
