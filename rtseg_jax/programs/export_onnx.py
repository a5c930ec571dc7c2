"""A network's inference program as an ONNX model of standard nodes, one for each operation that runtimes have.

The program is traced in its plain form (`nn.form.portable`), where few lax primitives are left; PRIMITIVES and NAMED
say which node each becomes. Axes are never moved before an operation needs them elsewhere: a tensor carries the order
of its axes, and a network of convolutions stays in ONNX's N, C, H, W from end to end.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from rtseg_jax.nn import form

OPSET = 18
IR_VERSION = 8  # what runtimes of OPSET's time read

NCHW = (0, 3, 1, 2)
# Stands for a batch that is not known yet: a prime, so that no product of other sizes can be taken for it.
BATCH = 1_000_003
CONVOLUTIONS = ("Conv", "ConvTranspose")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A result in the graph.

    Attributes:
        name: Of the ONNX tensor.
        shape: In the program's order of axes; 1 where ONNX's own broadcasting gives the rest.
        order: Which of the program's axes stands at each place of the ONNX tensor.
    """

    name: str
    shape: tuple[int, ...]
    order: tuple[int, ...]


Value = Tensor | np.ndarray  # what depends on the frames, and what does not


@dataclasses.dataclass
class Node:
    """One ONNX node."""

    op: str
    inputs: list[str]
    output: str
    attributes: dict[str, Any]


class Graph:
    """Nodes in order, and the constants that they read."""

    def __init__(self):
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}

    def constant(self, value: Any) -> str:
        """The name of a new constant."""
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(value)
        return name

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """The name of a new node's output."""
        output = f"{op}_{len(self.nodes)}"
        self.nodes.append(Node(op, list(inputs), output, attributes))
        return output

    def arranged(self, value: Value, order: Sequence[int]) -> str:
        """The name of the value with its axes in this order; a scalar has none."""
        if isinstance(value, np.ndarray):
            return self.constant(value.transpose(order) if value.ndim else value)
        if tuple(order) == value.order:
            return value.name
        places = [value.order.index(axis) for axis in order]
        return self.node("Transpose", [value.name], perm=places)

    def whole(self, value: Value, shape: Sequence[int]) -> Value:
        """The value with nothing left to broadcasting."""
        if isinstance(value, np.ndarray):
            return np.broadcast_to(value, shape)
        if value.shape == tuple(shape):
            return value
        # Of what is there already, 1 keeps the size.
        sizes = [1 if value.shape[axis] == shape[axis] else shape[axis] for axis in value.order]
        name = self.node("Expand", [value.name, self.constant(np.array(sizes, np.int64))])
        return Tensor(name, tuple(shape), value.order)


def _order_of(operands: Sequence[Value], rank: int) -> tuple[int, ...]:
    """The order in which operands meet: that of the one with the most elements."""
    tensors = [x for x in operands if isinstance(x, Tensor) and len(x.order) == rank]
    return max(tensors, key=lambda x: math.prod(x.shape)).order


def _standard(rank: int) -> tuple[int, ...]:
    return NCHW if rank == 4 else tuple(range(rank))


# Handlers: (graph, equation, operands) -> value. An equation has .params, .invars and .outvars, with .aval.


def _elementwise(op: str) -> Callable[..., Value]:
    def convert(graph, equation, *operands):
        rank = len(equation.outvars[0].aval.shape)
        order = _order_of(operands, rank)
        shapes = [x.shape for x in operands if len(x.shape) == rank]
        shape = tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*shapes, strict=True))
        names = [graph.arranged(x, order if x.shape else ()) for x in operands]
        return Tensor(graph.node(op, names), shape, order)

    return convert


def _all(value: Value, number: float) -> bool:
    return isinstance(value, np.ndarray) and bool(np.all(value == number))


def _multiply(graph, equation, x, y):
    if _all(x, 1.0) or _all(y, 1.0):
        return y if _all(x, 1.0) else x
    return _elementwise("Mul")(graph, equation, x, y)


def _add(graph, equation, x, y):
    if _all(x, 0.0) or _all(y, 0.0):
        return y if _all(x, 0.0) else x
    return _elementwise("Add")(graph, equation, x, y)


def _maximum(graph, equation, x, y):
    if _all(x, -np.inf) or _all(y, -np.inf):
        return y if _all(x, -np.inf) else x
    if _all(y, 0.0):
        return _elementwise("Relu")(graph, equation, x)
    return _elementwise("Max")(graph, equation, x, y)


def _relu6(graph, equation, x):
    bounds = [np.array(bound, equation.outvars[0].aval.dtype) for bound in (0, 6)]
    return _elementwise("Clip")(graph, equation, x, *bounds)


def _square(graph, equation, x):
    return _elementwise("Mul")(graph, equation, x, x)


def _rsqrt(graph, equation, x):
    return _elementwise("Reciprocal")(graph, equation, _elementwise("Sqrt")(graph, equation, x))


def _cast(graph, x, dtype):
    if isinstance(x, np.ndarray):
        return x.astype(dtype)
    from onnx import helper

    name = graph.node("Cast", [x.name], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    return Tensor(name, x.shape, x.order)


def _convert_element_type(graph, equation, x):
    new = equation.params["new_dtype"]
    return x if equation.invars[0].aval.dtype == new else _cast(graph, x, new)


def _prelu(graph, equation, x, slope):
    return _elementwise("PRelu")(graph, equation, x, slope)


def _softmax(graph, equation, x):
    last = len(x.order) - 1
    order = (*(axis for axis in x.order if axis != last), last)
    name = graph.node("Softmax", [graph.arranged(x, order)], axis=last)
    return Tensor(name, x.shape, order)


def _conv(graph, equation, x, kernel):
    p = equation.params
    dimensions = p["dimension_numbers"]
    if not isinstance(kernel, np.ndarray):
        raise ValueError("ONNX export takes convolutions whose kernel is a constant")
    kernel = kernel.transpose(dimensions.rhs_spec)
    x = graph.whole(x, equation.invars[0].aval.shape)
    name = graph.arranged(x, dimensions.lhs_spec)
    low, high = zip(*p["padding"], strict=True)
    attributes = {
        "kernel_shape": kernel.shape[2:],
        "dilations": p["rhs_dilation"],
        "group": p["feature_group_count"],
    }
    if any(step != 1 for step in p["lhs_dilation"]):
        # A convolution over an input spread with zeros is a transposed one with its kernel turned round.
        kernel = kernel[:, :, ::-1, ::-1].swapaxes(0, 1)
        spans = [(k - 1) * d for k, d in zip(kernel.shape[2:], p["rhs_dilation"], strict=True)]
        pads = [span - n for span, n in zip(spans, low, strict=True)]
        op, attributes = (
            "ConvTranspose",
            {
                **attributes,
                "strides": p["lhs_dilation"],
                "pads": [*pads, *pads],
                "output_padding": [b - a for a, b in zip(low, high, strict=True)],
            },
        )
    else:
        op, attributes = (
            "Conv",
            {
                **attributes,
                "strides": p["window_strides"],
                "pads": [*low, *high],
            },
        )
    output = graph.node(op, [name, graph.constant(kernel)], **attributes)
    return Tensor(output, equation.outvars[0].aval.shape, dimensions.out_spec)


def _pool(op: str, **attributes: Any) -> Callable[..., Value]:
    def convert(graph, equation, x):
        p = equation.params
        if "jaxpr" in p:  # a named sub-program, whose window says all
            inner = [e for e in p["jaxpr"].eqns if e.primitive.name.startswith("reduce_window")]
            p = inner[0].params
        low, high = zip(*p["padding"][1:3], strict=True)
        output = graph.node(
            op,
            [graph.arranged(graph.whole(x, equation.invars[0].aval.shape), NCHW)],
            kernel_shape=p["window_dimensions"][1:3],
            strides=p["window_strides"][1:3],
            pads=[*low, *high],
            **attributes,
        )
        return Tensor(output, equation.outvars[0].aval.shape, NCHW)

    return convert


def _scale(old: int, new: int) -> np.float32:
    """The least factor of which runtimes, which round down, make the new size."""
    scale = np.float32(new / old)
    while old * float(scale) < new:
        scale = np.nextafter(scale, np.float32(np.inf))
    return scale


def _resize(coordinates: str) -> Callable[..., Value]:
    def convert(graph, equation, *operands):
        # Of the plain form's operands two may be its matrices; Resize computes its own.
        ((x, old),) = (
            (x, v.aval.shape)
            for x, v in zip(operands, equation.invars, strict=True)
            if isinstance(x, Tensor)
        )
        new = equation.outvars[0].aval.shape
        if old == new:
            return x
        inputs = [graph.arranged(graph.whole(x, old), NCHW), ""]
        if BATCH in new:
            scales = [_scale(old[axis], new[axis]) for axis in NCHW]
            inputs.append(graph.constant(np.array(scales, np.float32)))
        else:
            sizes = [new[axis] for axis in NCHW]
            inputs += ["", graph.constant(np.array(sizes, np.int64))]
        name = graph.node(
            "Resize", inputs, mode="linear", coordinate_transformation_mode=coordinates
        )
        return Tensor(name, new, NCHW)

    return convert


def _reduce(op: str) -> Callable[..., Value]:
    def convert(graph, equation, x):
        x = graph.whole(x, equation.invars[0].aval.shape)
        gone = equation.params["axes"]
        places = np.array([x.order.index(axis) for axis in gone], np.int64)
        left = [axis for axis in range(len(x.order)) if axis not in gone]
        order = tuple(left.index(axis) for axis in x.order if axis in left)
        name = graph.node(op, [x.name, graph.constant(places)], keepdims=0)
        return Tensor(name, equation.outvars[0].aval.shape, order)

    return convert


def _argmax(graph, equation, x):
    x = graph.whole(x, equation.invars[0].aval.shape)
    (axis,) = equation.params["axes"]
    order = tuple(a - (a > axis) for a in x.order if a != axis)
    name = graph.node("ArgMax", [x.name], axis=x.order.index(axis), keepdims=0)
    # In int64, which the program's cast to uint8 narrows as well as the int32 that it expects.
    return Tensor(name, equation.outvars[0].aval.shape, order)


def _concatenate(graph, equation, *operands):
    axis = equation.params["dimension"]
    order = _order_of(operands, len(equation.outvars[0].aval.shape))
    names = [
        graph.arranged(graph.whole(x, v.aval.shape), order)
        for x, v in zip(operands, equation.invars, strict=True)
    ]
    name = graph.node("Concat", names, axis=order.index(axis))
    return Tensor(name, equation.outvars[0].aval.shape, order)


def _slice(graph, equation, x):
    p = equation.params
    x = graph.whole(x, equation.invars[0].aval.shape)
    strides = p["strides"] or (1,) * len(x.shape)
    limits = tuple(zip(p["start_indices"], p["limit_indices"], strides, strict=True))
    cut = [axis for axis, n in enumerate(x.shape) if limits[axis] != (0, n, 1)]
    starts, ends, steps = zip(*(limits[axis] for axis in cut), strict=True)
    places = [x.order.index(axis) for axis in cut]
    arguments = [graph.constant(np.array(v, np.int64)) for v in (starts, ends, places, steps)]
    name = graph.node("Slice", [x.name, *arguments])
    return Tensor(name, equation.outvars[0].aval.shape, x.order)


def _transpose(graph, equation, x):
    del graph  # nothing moves: the axes have other numbers
    permutation = equation.params["permutation"]
    return Tensor(
        x.name,
        tuple(x.shape[axis] for axis in permutation),
        tuple(permutation.index(axis) for axis in x.order),
    )


def _broadcast_in_dim(graph, equation, x):
    shape, kept = equation.params["shape"], equation.params["broadcast_dimensions"]
    if isinstance(x, np.ndarray):
        return x.reshape([x.shape[kept.index(a)] if a in kept else 1 for a in range(len(shape))])
    new = [axis for axis in range(len(shape)) if axis not in kept]
    if not new:
        return x
    present = [kept[axis] for axis in x.order]
    order = _standard(len(shape))
    if [axis for axis in order if axis in kept] != present:
        order = (*present, *new)
    places = sorted(order.index(axis) for axis in new)
    name = graph.node("Unsqueeze", [x.name, graph.constant(np.array(places, np.int64))])
    sizes = tuple(x.shape[kept.index(a)] if a in kept else 1 for a in range(len(shape)))
    return Tensor(name, sizes, order)


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Which old axes a reshaping turns into which new ones, in the smallest groups."""
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        olds, news = [], []
        while True:
            sizes = math.prod(old[a] for a in olds), math.prod(new[a] for a in news)
            if olds and news and sizes[0] == sizes[1]:
                break
            if i < len(old) and (j == len(new) or not olds or sizes[0] < sizes[1]):
                olds, i = [*olds, i], i + 1
            elif j < len(new):
                news, j = [*news, j], j + 1
            else:
                break
        groups.append((olds, news))
    return groups


def _reshape(graph, equation, x):
    old, new = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    x = graph.whole(x, old)
    groups = _groups(old, new)
    first = [x.order.index(olds[0]) if olds else len(old) for olds, _ in groups]
    # Without moving anything, where each group's axes stand side by side.
    if any(
        x.order[at : at + len(olds)] != tuple(olds)
        for at, (olds, _) in zip(first, groups, strict=True)
    ):
        identity = tuple(range(len(old)))
        x = Tensor(graph.arranged(x, identity), x.shape, identity)
        first = [olds[0] if olds else len(old) for olds, _ in groups]
    arranged = sorted(range(len(groups)), key=lambda g: first[g])
    order = tuple(axis for g in arranged for axis in groups[g][1])
    sizes = [-1 if new[axis] == BATCH else new[axis] for axis in order]
    name = graph.node("Reshape", [x.name, graph.constant(np.array(sizes, np.int64))])
    return Tensor(name, new, order)


def _along_axis(graph, matrix, tensor, axis, numbers, shape):
    """The product of a constant [new, old] with one axis of a tensor, which stays where it is."""
    order = tensor.order
    if axis not in order[-2:]:
        order = (*(a for a in order if a != axis), axis)
    inputs = [graph.arranged(tensor, order)]
    if order[-1] == axis:
        inputs.append(graph.constant(matrix.T))
    else:
        inputs.insert(0, graph.constant(matrix))
    return Tensor(graph.node("MatMul", inputs), shape, tuple(numbers[a] for a in order))


def _dot_general(graph, equation, *operands):
    p, shape = equation.params, equation.outvars[0].aval.shape
    contracted, batch = p["dimension_numbers"]
    values, free = [], []
    for value, variable, gone, shared in zip(
        operands, equation.invars, contracted, batch, strict=True
    ):
        value = graph.whole(value, variable.aval.shape)
        if p["preferred_element_type"] not in (None, variable.aval.dtype):
            value = _cast(graph, value, p["preferred_element_type"])
        values.append(value)
        free.append([a for a in range(len(value.shape)) if a not in (*gone, *shared)])
    (x, y), ranks = values, [len(axes) for axes in free]
    if len(contracted[0]) == 1 and ranks == [1, 1]:
        names = [
            graph.arranged(x, (*batch[0], *free[0], *contracted[0])),
            graph.arranged(y, (*batch[1], *contracted[1], *free[1])),
        ]
        return Tensor(graph.node("MatMul", names), shape, tuple(range(len(shape))))
    if len(contracted[0]) == 1 and not batch[0] and ranks[0] == 1 and isinstance(x, np.ndarray):
        matrix, (axis,) = x.transpose(*free[0], *contracted[0]), contracted[1]
        numbers = {axis: 0, **{a: n + 1 for n, a in enumerate(free[1])}}
        return _along_axis(graph, matrix, y, axis, numbers, shape)
    if len(contracted[0]) == 1 and not batch[0] and ranks[1] == 1 and isinstance(y, np.ndarray):
        matrix, (axis,) = y.transpose(*free[1], *contracted[1]), contracted[0]
        numbers = {axis: len(shape) - 1, **{a: n for n, a in enumerate(free[0])}}
        return _along_axis(graph, matrix, x, axis, numbers, shape)
    given = " by ".join(str(tuple(v.aval.shape)) for v in equation.invars)
    raise ValueError(f"no ONNX node for this product: {given}; those known are of matrices")


def _same(graph, equation, x):
    del graph, equation
    return x


PRIMITIVES = {
    "add": _add,
    "argmax": _argmax,
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "conv_general_dilated": _conv,
    "convert_element_type": _convert_element_type,
    "div": _elementwise("Div"),
    "dot_general": _dot_general,
    "logistic": _elementwise("Sigmoid"),
    "max": _maximum,
    "min": _elementwise("Min"),
    "mul": _multiply,
    "reduce_max": _reduce("ReduceMax"),
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_window_max": _pool("MaxPool"),
    "reshape": _reshape,
    "rsqrt": _rsqrt,
    "slice": _slice,
    "square": _square,
    "stop_gradient": _same,
    "sub": _elementwise("Sub"),
    "transpose": _transpose,
}

# Sub-programs that are one node; form.named gives them their names, and jax.nn does to relu6.
NAMED = {
    "avg_pool": _pool("AveragePool", count_include_pad=1),
    "prelu": _prelu,
    "relu6": _relu6,
    "resize_align_corners": _resize("align_corners"),
    "resize_half_pixel": _resize("half_pixel"),
    "softmax": _softmax,
}


def _run(
    graph: Graph, jaxpr: Any, constants: Sequence[Any], operands: Sequence[Value]
) -> list[Value]:
    """Adds the nodes of a jaxpr to the graph; what depends on constants alone is computed here."""
    values = dict(zip(jaxpr.constvars, map(np.asarray, constants), strict=True))
    values.update(zip(jaxpr.invars, operands, strict=True))

    def value_of(atom):
        return np.asarray(atom.val, atom.aval.dtype) if hasattr(atom, "val") else values[atom]

    for equation in jaxpr.eqns:
        name, inputs = equation.primitive.name, [value_of(v) for v in equation.invars]
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        constant = all(isinstance(x, np.ndarray) for x in inputs)
        if inner is not None:
            handler = NAMED.get(equation.params.get("name"))
            if handler is None or constant:
                closed = hasattr(inner, "consts")
                outputs = _run(
                    graph,
                    inner.jaxpr if closed else inner,
                    inner.consts if closed else (),
                    inputs,
                )
                values.update(zip(equation.outvars, outputs, strict=True))
                continue
        elif constant and name != "broadcast_in_dim":
            results = equation.primitive.bind(*inputs, **equation.params)
            results = results if equation.primitive.multiple_results else [results]
            values.update(zip(equation.outvars, map(np.asarray, results), strict=True))
            continue
        elif name not in PRIMITIVES:
            raise ValueError(f"no ONNX node for '{name}'; those known are {', '.join(PRIMITIVES)}")
        else:
            handler = PRIMITIVES[name]
        values[equation.outvars[0]] = handler(graph, equation, *inputs)
    return [value_of(v) for v in jaxpr.outvars]


def _prune(graph: Graph, result: str) -> None:
    """Removes the nodes that the result does not depend on: a trace holds those of training alone too."""
    read = {result}
    for node in reversed(graph.nodes.copy()):
        if node.output in read:
            read.update(node.inputs)
        else:
            graph.nodes.remove(node)


def _fold(graph: Graph, result: str) -> None:
    """Makes a factor or a summand per channel that follows a convolution a part of the convolution."""
    readers: dict[str, int] = {result: 1}
    for node in graph.nodes:
        for name in node.inputs:
            readers[name] = readers.get(name, 0) + 1
    convolutions = {}
    for node in list(graph.nodes):
        if node.op in CONVOLUTIONS:
            convolutions[node.output] = node
        elif node.op in ("Mul", "Add"):
            source, other = node.inputs
            if other in convolutions:
                source, other = other, source
            if source not in convolutions or readers[source] > 1 or other not in graph.constants:
                continue
            convolution, term = convolutions[source], graph.constants[other]
            kernel = graph.constants[convolution.inputs[1]]
            axis = 0 if convolution.op == "Conv" else 1
            if term.ndim != 4 or term.shape != (1, kernel.shape[axis], 1, 1):
                continue
            term = term.reshape(-1)
            if node.op == "Mul":
                shape = [-1 if a == axis else 1 for a in range(4)]
                convolution.inputs[1] = graph.constant(kernel * term.reshape(shape))
            bias = graph.constants[convolution.inputs[2]] if len(convolution.inputs) > 2 else None
            if node.op == "Add" or bias is not None:
                bias = np.zeros_like(term) if bias is None else bias
                bias = bias * term if node.op == "Mul" else bias + term
                convolution.inputs[2:] = [graph.constant(bias)]
            convolution.output = node.output
            convolutions[node.output] = convolution
            graph.nodes.remove(node)


def convert(
    program: Callable[[jax.Array], jax.Array],
    shape: Sequence[int],
    *,
    output: str = "classes",
    metadata: dict[str, str] | None = None,
) -> Any:
    """Converts a program to an ONNX model that takes uint8 "frames" and gives `output`.

    Args:
        program: Of infer.program, not traced before.
        shape: (b, h, w, 3) of the frames; BATCH for b leaves it to the call.
        output: The name of the result.
        metadata: Strings by name, to be kept in the model.

    Returns:
        A checked onnx.ModelProto.

    Raises:
        ValueError: the program holds something that has no node here.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    with form.portable():
        traced = jax.make_jaxpr(program)(jax.ShapeDtypeStruct(tuple(shape), np.uint8))
    graph = Graph()
    # Moved here, where a pixel is three bytes.
    frames = Tensor(graph.node("Transpose", ["frames"], perm=NCHW), tuple(shape), NCHW)
    (classes,) = _run(graph, traced.jaxpr, traced.consts, [frames])
    (aval,) = traced.out_avals
    classes = graph.whole(classes, aval.shape)
    result = graph.arranged(classes, range(len(aval.shape)))
    _prune(graph, result)
    _fold(graph, result)

    nodes = [
        helper.make_node(
            node.op,
            node.inputs,
            [output if node.output == result else node.output],
            name=node.output,
            **node.attributes,
        )
        for node in graph.nodes
    ]
    read = {name for node in graph.nodes for name in node.inputs}
    weights = [
        numpy_helper.from_array(value, name)
        for name, value in graph.constants.items()
        if name in read
    ]

    def described(name, dtype, sizes):
        sizes = ["batch" if n == BATCH else n for n in sizes]
        return helper.make_tensor_value_info(name, dtype, sizes)

    model = helper.make_model(
        helper.make_graph(
            nodes,
            "segmentation",
            [described("frames", TensorProto.UINT8, shape)],
            [described(output, helper.np_dtype_to_tensor_dtype(aval.dtype), aval.shape)],
            weights,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="rtseg_jax",
    )
    helper.set_model_props(model, metadata or {})
    onnx.checker.check_model(model, full_check=True)
    return model
