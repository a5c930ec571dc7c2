"""The processes that bench starts: each builds one network in one framework, then times a round for every line that comes in.

The first line on stdin says what to build, the answer what was built; see `serve`. Nothing is imported before that
but numpy: a process that measures PyTorch or onnxruntime never loads jax.

Inside the clock, for every framework: uint8 frames, normalising, the network, bilinear upsampling to the frames' size,
argmax, a uint8 class map. A training step is forward, upsampling, weighted cross-entropy, backward, and Adam with L2 on
every parameter; inside ours alone is what the project's step does besides, sampling and normalising uint8 frames.
"""

import functools
import itertools
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from rtseg_jax.programs.bench.clock import Foreign, Rival, calibrate, cpus, time_round
from rtseg_jax.programs.shared.frames import smooth_frames

MEAN, STD = (105.0, 105.0, 105.0), (60.0, 60.0, 60.0)  # RGB, in units of [0, 255]
BUFFERS = 4  # that take turns, so that no call finds its input in a cache by luck
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-4
Request = dict[str, Any]


def frames_of(request: Request) -> list[np.ndarray]:
    """As many batches of frames, uint8 [b, h, w, 3], as take turns."""
    size = request["height"], request["width"]
    return np.split(smooth_frames(BUFFERS * request["batch"], size, seed=1), BUFFERS)


def training_data(request: Request) -> tuple[list[np.ndarray], list[np.ndarray], list[float]]:
    """Random frames and labels, uint8, 5 % of them ignored; class weights."""
    rng = np.random.default_rng(0)
    shape = (BUFFERS, request["batch"], request["height"], request["width"])
    images = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    labels = rng.integers(0, request["num_classes"], shape, dtype=np.uint8)
    labels[rng.random(shape) < 0.05] = 255
    return list(images), list(labels), rng.uniform(0.5, 2.0, request["num_classes"]).tolist()


def _nested(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *path, leaf = name.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), path, tree)[leaf] = value
    return tree


def _jax_network(request: Request) -> tuple[Any, dict[str, Any], Any]:
    """The network, its variables and the device."""
    import jax
    import jax.numpy as jnp

    from rtseg_jax import models

    if request["tf32"] == "off":
        jax.config.update("jax_default_matmul_precision", "highest")
    if request["device"] == "cpu":
        jax.config.update("jax_cpu_enable_async_dispatch", False)  # see settings.prepare_process
    model = models.create(
        request["model"],
        num_classes=request["num_classes"],
        dtype=jnp.dtype(request["dtype"]),
        **request["options"],
    )
    with np.load(request["weights"] + "/flax.npz") as file:
        variables = _nested(dict(file))
    return model, variables, jax.devices(request["device"])[0]


def _jax_about(device: Any) -> dict[str, Any]:
    import flax
    import jax
    import jaxlib

    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "flax": flax.__version__}
    return {
        "versions": versions,
        "device_kind": device.device_kind,
        "flags": os.environ.get("XLA_FLAGS", ""),
    }


def jax_inference(request: Request) -> Rival:
    """The frozen program."""
    import jax
    import jax.numpy as jnp

    from rtseg_jax.inference import program as infer

    model, variables, device = _jax_network(request)
    shape = (request["batch"], request["height"], request["width"])
    frozen = infer.freeze(
        model,
        variables,
        shape,
        device=device,
        mean=MEAN,
        std=STD,
        dtype=jnp.dtype(request["dtype"]),
    )
    put = functools.partial(jax.device_put, device=device)
    about = {**_jax_about(device), "temporary_bytes": frozen.temporary_bytes}
    inputs = [put(frames) for frames in frames_of(request)]
    jax.block_until_ready(inputs)
    return Rival(inputs, frozen, jax.block_until_ready, put, np.asarray, about)


def jax_training(request: Request) -> Rival:
    """The project's own step, without random scale, flip or jitter."""
    import jax
    import jax.numpy as jnp

    from rtseg_jax.base import mesh
    from rtseg_jax.nn import losses
    from rtseg_jax.train import optim, step

    model, variables, device = _jax_network(request)
    devices = mesh.make_mesh([device])
    split = mesh.split(devices)
    images, labels, weights = training_data(request)
    frames = [jax.device_put(pair, split) for pair in zip(images, labels, strict=True)]
    indices = jax.device_put(jnp.arange(request["batch"], dtype=jnp.int32), split)
    schedule = optim.make_schedule(
        kind="constant",
        lr=LEARNING_RATE,
        total_steps=1000,
        steps_per_epoch=100,
        per="step",
        power=0.9,
        decay=1.0,
        every_epochs=1,
        warmup_steps=0,
        warmup_start=0.0,
    )
    variables = jax.tree.map(jnp.asarray, variables)
    tx = optim.make_optimizer(
        variables["params"],
        schedule,
        name="adam",
        betas=(0.9, 0.999),
        eps=1e-8,
        momentum=0.9,
        weight_decay=WEIGHT_DECAY,
        groups=(),
    )
    jitted = step.jit_train_step(
        devices,
        model=model,
        loss_fn=functools.partial(
            losses.segmentation_loss,
            kind="cross_entropy",
            class_weights=tuple(weights),
            threshold=0.7,
            min_kept=1 / 16,
        ),
        tx=tx,
        schedule=schedule,
        seed=0,
        augmentation={
            "crop": (request["height"], request["width"]),
            "scales": (1.0,),
            "scale_range": None,
            "flip": 0.0,
            "jitter": (0.0, 0.0, 0.0),
            "mean": MEAN,
            "std": STD,
        },
        ema_decay=0.0,
    )
    state = step.create_state(variables, tx, ema=False)
    held = {"state": jax.device_put(state, mesh.replicated(devices))}
    compiled = jitted.lower(held["state"], frames[0], indices).compile()
    memory = compiled.memory_analysis()

    def call(pair: Any) -> Any:
        held["state"], logged = compiled(held["state"], pair, indices)
        return logged["loss"]

    def wait(_: Any) -> None:
        jax.block_until_ready(held["state"])

    about = {
        **_jax_about(device),
        "temporary_bytes": memory.temp_size_in_bytes if memory else None,
        "input": "uint8 frames, cropped in the step",
    }
    return Rival(frames, call, wait, None, float, about)


def _torch_network(request: Request) -> tuple[Any, Any, Any]:
    """The twin with the same weights, its device and its memory layout."""
    import torch

    from rtseg_jax import torch_ref

    torch.manual_seed(0)
    on_gpu = request["device"] == "gpu"
    if on_gpu:
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high" if request["tf32"] == "on" else "highest")
        torch.backends.cudnn.allow_tf32 = request["tf32"] == "on"
    else:
        torch.set_num_threads(cpus())
    network = torch_ref.create(request["model"], request["num_classes"], **request["options"])
    with np.load(request["weights"] + "/torch.npz") as file:
        torch_ref.load(network, file)
    layout = torch.contiguous_format if request["variant"] == "eager" else torch.channels_last
    device = torch.device("cuda" if on_gpu else "cpu")
    return network.to(device=device, memory_format=layout), device, layout


def _torch_about(device: Any) -> dict[str, Any]:
    import torch

    if device.type == "cpu":
        return {"versions": {"torch": torch.__version__}, "device_kind": "cpu"}
    versions = {"torch": torch.__version__, "cudnn": str(torch.backends.cudnn.version())}
    return {"versions": versions, "device_kind": torch.cuda.get_device_name()}


def torch_program(request: Request) -> tuple[Any, Any]:
    """The twin between uint8 frames and uint8 class map, as a module; and its device."""
    import torch

    from rtseg_jax import torch_ref

    network, device, layout = _torch_network(request)
    dtype = getattr(torch, request["dtype"])
    program = torch_ref.Program(network, mean=MEAN, std=STD, dtype=dtype, layout=layout)
    if request["variant"] == "folded":
        _fold_batch_norms(program)
    return program, device


def _fold_batch_norms(program: Any) -> None:
    """Computes each convolution with the BatchNorm after it as one, as inference.program.fold does."""
    import torch
    from torch.nn.utils import fuse_conv_bn_eval

    from rtseg_jax.torch_ref.blocks import ConvBatchNorm

    for module in program.modules():
        if isinstance(module, ConvBatchNorm):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            module.norm = torch.nn.Identity()


def torch_inference(request: Request) -> Rival:
    """eager: NCHW; channels_last; folded, compile and cuda_graph: channels_last too."""
    import torch

    program, device = torch_program(request)
    on_gpu = device.type == "cuda"
    inputs = [torch.from_numpy(frames).to(device) for frames in frames_of(request)]
    call = torch.inference_mode()(program)
    if on_gpu:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    if request["variant"] == "compile":
        compiled = torch.compile(program, mode="reduce-overhead" if on_gpu else None)

        @torch.inference_mode()
        def call(frames):
            if on_gpu:
                torch.compiler.cudagraph_mark_step_begin()
            return compiled(frames)

    elif request["variant"] == "cuda_graph":
        call = _cuda_graph(call, inputs[0])
    wait = (lambda _: torch.cuda.synchronize()) if on_gpu else (lambda _: None)
    wait(call(inputs[0]))
    about = _torch_about(device)
    if on_gpu:
        about["temporary_bytes"] = torch.cuda.max_memory_allocated() - before
    put = functools.partial(torch.Tensor.to, device=device)
    return Rival(
        inputs,
        call,
        wait,
        lambda frames: put(torch.from_numpy(frames)),
        lambda classes: classes.cpu().numpy(),
        about,
    )


def _cuda_graph(call: Callable[[Any], Any], frames: Any) -> Callable[[Any], Any]:
    """The call as one recorded graph that reads and writes buffers of its own."""
    import torch

    static = frames.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call(static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call(static)

    def replay(frames: Any) -> Any:
        static.copy_(frames)
        graph.replay()
        return result

    return replay


def torch_training(request: Request) -> Rival:
    """The twin's step on normalised float images that lie on the device."""
    import torch

    from rtseg_jax import torch_ref

    network, device, layout = _torch_network(request)
    images, labels, weights = training_data(request)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    batches = [
        (
            ((torch.from_numpy(x).permute(0, 3, 1, 2).float() - mean) / std)
            .contiguous(memory_format=layout)
            .to(device),
            torch.from_numpy(y).long().to(device),
        )
        for x, y in zip(images, labels, strict=True)
    ]
    weights = torch.tensor(weights, device=device)
    network.train()
    optimizer = torch.optim.Adam(
        network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )
    size = (request["height"], request["width"])
    half = request["dtype"] != "float32"

    def objective(image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, getattr(torch, request["dtype"]), enabled=half):
            logits = network(image)
        logits = torch_ref.upsample(logits.float(), size)
        return torch.nn.functional.cross_entropy(logits, label, weights, ignore_index=255)

    if request["variant"] == "compile":
        objective = torch.compile(objective)

    def call(batch: Any) -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = objective(*batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    wait = (lambda _: torch.cuda.synchronize()) if device.type == "cuda" else (lambda _: None)
    about = {**_torch_about(device), "input": "normalised images"}
    return Rival(batches, call, wait, None, float, about)


def export(request: Request) -> dict[str, Any]:
    """Writes request["path"], the twin's program as ONNX for frames of this shape."""
    import torch

    program, _ = torch_program({**request, "device": "cpu", "variant": "eager"})
    frames = torch.from_numpy(frames_of(request)[0])
    start = time.perf_counter()
    torch.onnx.export(program, (frames,), request["path"], dynamo=True, external_data=False)
    return {"export_seconds": round(time.perf_counter() - start, 2)}


def onnxruntime_inference(request: Request) -> Rival:
    """The twin's graph, optimised by onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpus()
    session = onnxruntime.InferenceSession(
        request["path"], options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    about = {
        "versions": {"onnxruntime": onnxruntime.__version__},
        "device_kind": request["device"],
        "temporary_bytes": None,
    }
    same = lambda array: array  # noqa: E731
    return Rival(
        frames_of(request),
        lambda frames: session.run(None, {name: frames})[0],
        lambda _: None,
        same,
        same,
        about,
    )


BUILDERS = {
    ("jax", False): jax_inference,
    ("jax", True): jax_training,
    ("torch", False): torch_inference,
    ("torch", True): torch_training,
    ("onnxruntime", False): onnxruntime_inference,
}


def layers(request: Request) -> dict[str, Any]:
    """Times every module down to request["depth"] alone, compiled by itself with its BatchNorms folded.

    Neither fusion across its borders nor what lies between the modules (sums, resizing, the upsampling) is in it, so
    the rows of one depth add up to something else than the whole.

    Returns:
        {"whole_ms", "rows": [{"path", "kind", "inputs", "calls", "ms", "macs"}]}; modules that are alike in
        everything but their weights are timed once.
    """
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from rtseg_jax.inference import program as infer
    from rtseg_jax.models import flops

    model, variables, device = _jax_network(request)
    variables = jax.tree.map(jnp.asarray, variables)
    whole = jax_inference(request)
    seen: dict[str, dict[str, Any]] = {}
    cost = {}
    size = (request["height"], request["width"])
    for call in flops.trace(model, size, train=False):
        for parent in itertools.accumulate(call.path.split("/"), "{}/{}".format):
            cost[parent] = cost.get(parent, 0) + request["batch"] * call.macs

    def record(call, args, kwargs, context):
        block, result = context.module, call(*args, **kwargs)
        depth = len(block.path)
        arrays = jax.tree.leaves(args)
        if context.method_name == "__call__" and 0 < depth <= request["depth"] and arrays:
            key = f"{depth} {block.clone(parent=None, name=None)!r} {arrays}"
            row = seen.setdefault(key, {"block": block, "args": args, "kwargs": kwargs, "calls": 0})
            row["calls"] += 1
        return result

    image = jax.ShapeDtypeStruct((request["batch"], *size, 3), jnp.float32)
    with nn.intercept_methods(record):
        jax.eval_shape(lambda x: model.apply(variables, x, train=False), image)

    rows = []
    rng = np.random.default_rng(0)
    for row in seen.values():
        block, path = row["block"], row["block"].path
        own = {
            name: functools.reduce(lambda t, k: t.get(k, {}), path, tree)
            for name, tree in variables.items()
        }
        leaves, structure = jax.tree.flatten(row["args"])
        places = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape")]  # others are sizes
        arrays = [
            jax.device_put(rng.normal(size=leaves[i].shape).astype(leaves[i].dtype), device)
            for i in places
        ]
        alone = block.clone(parent=None, name=None)

        def run(
            *arrays, alone=alone, own=own, kwargs=row["kwargs"], tree=(structure, leaves, places)
        ):
            structure, leaves, places = tree
            given = {**dict(enumerate(leaves)), **dict(zip(places, arrays, strict=True))}
            arguments = jax.tree.unflatten(structure, given.values())
            constants = jax.tree.map(jnp.asarray, own)
            with nn.intercept_methods(infer.folding(own)):
                return alone.apply(constants, *arguments, **kwargs)

        compiled = jax.jit(run).lower(*arrays).compile()
        rival = Rival(
            [arrays], lambda a, f=compiled: f(*a), jax.block_until_ready, None, np.asarray, {}
        )
        name = "/".join(path)
        rows.append(
            {
                "path": name,
                "kind": type(block).__name__,
                "inputs": [list(array.shape) for array in arrays],
                "calls": row["calls"],
                "ms": _layer_time(rival, request["seconds"]),
                "macs": cost.get(name, 0),
            }
        )
    return {"whole_ms": _layer_time(whole, request["seconds"]), "rows": rows}


def _layer_time(rival: Rival, seconds: float) -> float:
    calls = calibrate(rival, seconds / 3)
    return statistics.median(time_round(rival, "throughput", calls, [])[0] for _ in range(3))


def _build(request: Request) -> Rival:
    builder = BUILDERS[request["backend"], request["train"]]
    start = time.perf_counter()
    rival = builder(request)
    rival.wait(rival.call(rival.inputs[0]))
    rival.about["compile_seconds"] = round(time.perf_counter() - start, 2)
    rival.about["threads"] = cpus() if request["device"] == "cpu" else None
    rival.about["versions"]["python"] = platform.python_version()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rival.about["peak_host_bytes"] = peak * 1024
    return rival


def _answers(requests: Any) -> Any:
    request = json.loads(next(requests))
    if request["do"] in ("export", "layers"):
        yield (export if request["do"] == "export" else layers)(request)
        return
    rival = _build(request)
    calls = calibrate(rival, request["seconds"])
    yield rival.about
    frames = [] if request["train"] else frames_of(request)
    for line in requests:
        asked = json.loads(line)
        if asked["do"] == "classes":
            np.save(asked["path"], rival.get(rival.call(rival.inputs[0])))
            yield {}
            continue
        with Foreign() as foreign:
            ms, spans, result = time_round(rival, asked["mode"], calls, frames)
        loss = rival.get(result) if asked["mode"] == "train" else None
        yield {
            "ms": ms,
            "spans": spans,
            "calls": calls,
            "loss": loss,
            "foreign": foreign.share,
        }


def serve() -> None:
    """The life of a rival: build, warm up, answer lines of JSON with lines of JSON; an error is an answer, the last."""
    # Answers keep the real stdout to themselves; whatever a library prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        for answer in _answers(sys.stdin):
            print(json.dumps(answer), file=answers)
    except ImportError as error:
        package = {"torch": "torch", "onnxruntime": "bench", "onnxscript": "bench"}
        extra = package.get(error.name or "")
        hint = f"; install it with: pip install 'rtseg_jax[{extra}]'" if extra else ""
        print(json.dumps({"error": f"{error}{hint}"}), file=answers)
    except Exception as error:  # whatever a framework raises becomes a row of the table
        text = " ".join(str(error).split()) or type(error).__name__
        print(json.dumps({"error": f"{type(error).__name__}: {text[:300]}"}), file=answers)
        if os.environ.get("RTSEG_TRACEBACK"):
            raise


if __name__ == "__main__":
    serve()
