#!/usr/bin/env bash
# What one GPU shows in parts of less than nine minutes (quick: ten), on a machine without network, TensorFlow or ml_collections.
#
#   launch/gpu_suite.sh quick              ten minutes: speed against PyTorch, training steps, EACNet-DAB on CamVid
#   launch/gpu_suite.sh tests              the networks, operations and frozen programs, tested on the GPU
#   launch/gpu_suite.sh ops                every operation in every form; sets of XLA flags on one network
#   launch/gpu_suite.sh bench NET...       ours against PyTorch, inference and training; one network fills a part
#   launch/gpu_suite.sh camvid CONFIG      trains, e.g. eacnet:dabnet,camvid; the set is $CAMVID, see pack_camvid.py
#   launch/gpu_suite.sh recipes REGEX [SEEDS [AT_ONCE]]   of benchmarks/camvid.py, e.g. '^best:eacnet_dabnet' 0,1,2 3
#
# Results go to $OUT (./out if unset), the table comes last. What benchmarks/gpu.jsonl has of this code is not measured
# again: copy $OUT/gpu.jsonl over it between parts. TINY=1 shrinks everything to try the suite on a CPU.
# Runs lie in $RUNS (./runs if unset): one that a part cut short has saved, and the same part goes on with it.
#
# camvid and recipes need ml_collections, and write TensorBoard events if there is tensorboardX. Carry both as wheels:
#   pip download --no-deps -d launch/wheels ml_collections tensorboardX
# Wheels in launch/wheels ($WHEELS) are unpacked beside the suite, nothing is installed.
set -euo pipefail
case ${1:-} in
  quick | tests | ops | bench | camvid | recipes) ;;
  *) sed -n '2,18s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=$(mkdir -p "${OUT:-out}" && cd "${OUT:-out}" && pwd)
TINY=${TINY:-}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [[ $TINY ]]; then RUNS=$scratch/runs; fi
RUNS=${RUNS:-runs}

wheels=${WHEELS:-launch/wheels}
if compgen -G "$wheels/*.whl" > /dev/null; then
  for wheel in "$wheels"/*.whl; do "$PYTHON" -m zipfile -e "$wheel" "$scratch/site"; done
fi
export PYTHONPATH="$PWD:$scratch/site${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false TF_CPP_MIN_LOG_LEVEL=3

tiny=()  # of a training run
if [[ $TINY ]]; then
  tiny=(--config.num_steps=2 --config.batch_size=2 --config.log_every=1 --config.augment.crop="(32, 64)")
fi

# limit SECONDS COMMAND...: what is cut short has written what it had
limit() {
  local seconds=$1 status=0
  shift
  timeout --kill-after=15 "$seconds" "$@" || status=$?
  if ((status == 124 || status == 137)); then echo "stopped after $seconds s: $*" >&2; fi
  return "$status"
}

run_tests() {
  local chosen=(tests/nn tests/models tests/inference/test_infer.py tests/data/test_augment.py)
  if [[ $TINY ]]; then chosen=(tests/nn/test_resize.py tests/nn/test_pool.py); fi
  # Tolerances are float32's; a newer jax may warn of what it will change.
  JAX_DEFAULT_MATMUL_PRECISION=highest limit 520 \
    "$PYTHON" -m pytest -q -o filterwarnings=default -p no:cacheprovider "${chosen[@]}" 2>&1 |
    tee "$OUT/tests.log"
}

# Each answer is a line in $OUT as soon as it is known; a cut at any second loses the question in hand alone. The class
# maps of ours and of PyTorch's are compared before either is timed. $EPOCHS of CamVid fit the time that is left.
run_quick() {
  local networks=(eacnet_dabnet eacnet_erfnet erfnet asap affnet fast_scnn carnet_mobilenet) status=0
  local each=45 step=100 end=$((SECONDS + 580)) size=512x1024 dtype=bfloat16 variant=cuda_graph rounds=3 seconds=0.3 crops=16 crop=360x480
  if [[ $TINY ]]; then
    each=300 step=300 networks=(fast_scnn) size=32x64 dtype=float32 variant=channels_last rounds=1 seconds=0.01 crops=2 crop=32x64
  fi
  local common=(--resume "--rounds=$rounds" "--seconds=$seconds" "--output=$OUT/gpu.jsonl" "--dtype=$dtype"
    "--backend=jax,torch")
  for network in "${networks[@]}"; do
    limit $each "$PYTHON" -m rtseg_jax bench --models="$network" --sizes=$size --torch_variants=$variant \
      --mode=throughput,latency "${common[@]}" > "$scratch/table" || status=$?
  done
  for network in "${networks[0]}" "${networks[@]:3:2}"; do
    limit $step "$PYTHON" -m rtseg_jax bench --models="$network" --sizes=$crop --train_batch_size=$crops \
      --torch_variants=channels_last --mode=train "${common[@]}" > "$scratch/table" || status=$?
  done
  cat "$OUT/gpu.md"
  local camvid=camvid_best:eacnet_dabnet,trainval
  if [[ $TINY ]]; then camvid=camvid_best:fast_scnn,trainval; fi
  seconds=$((end - SECONDS - 60)) # the rest is the evaluation's
  CAMVID_SECONDS=$((seconds > 30 ? seconds : 30)) run_camvid $camvid --config.dtype=$dtype --config.num_epochs="${EPOCHS:-300}" --config.checkpoint_every=1000 || status=$?
  return "$status"
}

run_ops() {
  local shrink=1 seconds=0.05 size=512x1024 rounds=3 first=bfloat16 second=float32 network=eacnet_dabnet status=0
  local sets=(
    --xla_gpu_enable_command_buffer=+CONVOLUTION
    --xla_gpu_experimental_enable_conv_fusion=true
    "--xla_gpu_enable_command_buffer=+CONVOLUTION --xla_gpu_graph_min_graph_size=1"
    --xla_gpu_enable_command_buffer=
    --xla_gpu_force_conv_nchw=true
  )
  if [[ $TINY ]]; then
    shrink=16 seconds=0.001 size=32x64 rounds=1 first=float32 second="" network=fast_scnn
    sets=(--xla_cpu_enable_fast_math=true)
  fi
  forms_of "$first" || status=$?
  # A flag that this jaxlib does not know is a row that says so, and no failure of the suite.
  limit 220 "$PYTHON" -m rtseg_jax bench --models=$network --sizes=$size --dtype="$first" --backend=jax \
    --rounds=$rounds --seconds=0.5 --output="$OUT/flags.jsonl" --flags="$(IFS=';' && echo "${sets[*]}")" || true
  if [[ $second ]]; then forms_of "$second" || status=$?; fi
  return "$status"
}

forms_of() {
  limit 150 "$PYTHON" benchmarks/gpu_ops.py --output="$OUT/ops.jsonl" --dtype="$1" --shrink="$shrink" \
    --seconds="$seconds" | tee "$OUT/ops_$1.md"
}

run_bench() {
  local sizes=512x1024,1024x2048 dtypes=bfloat16,float32 rounds=5 seconds=0.5 train=8 size=512x1024 status=0
  if (($# == 0)); then echo "error: bench takes names of networks, such as eacnet_dabnet" >&2 && return 2; fi
  if [[ $TINY ]]; then sizes=32x64 dtypes=float32 rounds=1 seconds=0.01 train=2 size=32x64; fi
  if [[ -f benchmarks/gpu.jsonl && ! -f $OUT/gpu.jsonl ]]; then cp benchmarks/gpu.jsonl "$OUT/"; fi
  local common=(--resume "--rounds=$rounds" "--seconds=$seconds" "--output=$OUT/gpu.jsonl" "--train_batch_size=$train")
  local end=$((SECONDS + 525))
  for network in "$@"; do
    limit $((end - SECONDS > 5 ? end - SECONDS : 5)) "$PYTHON" -m rtseg_jax bench --models="$network" --sizes=$sizes \
      --dtype=$dtypes --backend=jax,torch --mode=throughput,latency,e2e "${common[@]}" > "$scratch/table" || status=$?
    limit $((end - SECONDS > 5 ? end - SECONDS : 5)) "$PYTHON" -m rtseg_jax bench --models="$network" --sizes=$size \
      --dtype=$dtypes --backend=jax,torch --mode=train "${common[@]}" > "$scratch/table" || status=$?
    if [[ ! $TINY ]]; then  # compiled PyTorch once: it takes long
      limit $((end - SECONDS > 5 ? end - SECONDS : 5)) "$PYTHON" -m rtseg_jax bench --models="$network" --sizes=$size \
        --dtype=bfloat16 --backend=torch --torch_variants=compile "${common[@]}" > "$scratch/table" || status=$?
    fi
  done
  cat "$OUT/gpu.md"
  return "$status"
}

unpack_camvid() {
  local archive=${CAMVID:-launch/camvid.zip}
  if [[ $TINY ]]; then
    "$PYTHON" - "$scratch/random" <<'PYTHON'
import pathlib, sys
import numpy as np
from PIL import Image
rng = np.random.default_rng(0)
for split in ("train", "val", "test"):
    for kind, shape, top in (("", (48, 96, 3), 256), ("annot", (48, 96), 12)):
        folder = pathlib.Path(sys.argv[1]) / f"{split}{kind}"
        folder.mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, top, shape, dtype=np.uint8)).save(folder / f"{i}.png")
PYTHON
    archive=$scratch/camvid.zip
    "$PYTHON" launch/pack_camvid.py pack "$scratch/random" "$archive"
  fi
  "$PYTHON" launch/pack_camvid.py unpack "$archive" "$scratch/camvid"
}

run_camvid() {
  local config=${1:-eacnet:dabnet,camvid} run status=0
  local more=("${@:2}")
  run=$RUNS/${config//[^[:alnum:]]/_}
  mkdir -p "$RUNS"
  unpack_camvid
  # SIGTERM lets the run save.
  limit "${CAMVID_SECONDS:-500}" "$PYTHON" -m rtseg_jax.main --config="$config" --config.input.mode=resident \
    --config.input.root="$scratch/camvid" --workdir="$run" "${more[@]}" "${tiny[@]}" | tee "$OUT/camvid.log" || status=$?
  cp "$run"/{config.json,metrics.jsonl} "$OUT/"
  if ((status)); then return "$status"; fi
  cp "$run/evaluation.json" "$OUT/"
  "$PYTHON" -m rtseg_jax export --network="$run" --format=bundle --dtype=float16 --output="$OUT/weights.safetensors"
  "$PYTHON" -m rtseg_jax evaluate --workdir="$run" --root="$scratch/camvid" --split=test --overlays=0 --output="$scratch/test"
  cp "$scratch/test/evaluation.json" "$OUT/evaluation_test.json"
}

run_recipes() {
  local only=${1:?the names of recipes, as a regular expression} seeds=${2:-0,1,2} at_once=${3:-3} status=0
  unpack_camvid
  if [[ ! -f $OUT/camvid.jsonl ]]; then cp benchmarks/camvid.jsonl "$OUT/"; fi
  limit 520 "$PYTHON" benchmarks/camvid.py run --root="$scratch/camvid" --runs="$RUNS/recipes" --only="$only" \
    --seeds="$seeds" --parallel="$at_once" --output="$OUT/camvid.jsonl" -- "${tiny[@]}" || status=$?
  cat "$OUT/camvid.md"
  return "$status"
}

"run_$1" "${@:2}"
