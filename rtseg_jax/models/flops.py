"""Multiply-adds of a network, layer by layer and without running it; and how the papers' tools count.

A network is traced with shapes alone. Every call of a module that the outputs depend on becomes a `Call`, every
attention too. One multiply-add (MAC) is what the papers call one FLOP.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from rtseg_jax.nn import attention

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a module, or of dot_product_attention.

    Attributes:
        path: Names from the network's root, "backbone/down1/conv"; "" is the network itself.
        kind: The module's class, or "dot_product_attention".
        inputs: Shapes of the arrays that went in; query, key, value for an attention.
        outputs: Shapes of the arrays that came out.
        kernel: Shape of the kernel that the module itself holds.
        bias: Whether the module itself holds a bias.
    """

    path: str
    kind: str
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    kernel: Shape | None = None
    bias: bool = False

    @property
    def macs(self) -> int:
        """Multiply-adds of this call alone, those of its submodules not included.

        A bias, a norm, an activation, a pool and a resize have none. A transposed convolution multiplies each
        input by the whole kernel; every other kernel is applied once for each output.
        """
        if self.kind == "dot_product_attention":
            (b, n, c), (_, m, d) = self.inputs[0], self.inputs[2]
            return b * n * m * (c + d)
        if self.kernel is None:
            return 0
        if self.kind == "ConvTranspose":
            return math.prod(self.inputs[0][:-1]) * math.prod(self.kernel)
        return math.prod(self.outputs[0]) * math.prod(self.kernel[:-1])


def variable_shapes(model: nn.Module, *, train: bool = True) -> dict[str, Any]:
    """Shapes of a network's variables, {"params": ..., "batch_stats": ...}; they depend on no image size.

    Args:
        model: The network; equal ones are traced once, which takes seconds.
        train: Whether those of its training heads are among them.
    """
    return jax.tree.map(
        lambda leaf: leaf, _traced(model, train)
    )  # dictionaries of the caller's own


@functools.cache
def _traced(model: nn.Module, train: bool) -> dict[str, Any]:
    key = jax.random.key(0)
    return jax.eval_shape(
        functools.partial(model.init, train=train),
        {"params": key, "dropout": key},
        jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32),
    )


def parameters(params: Any) -> dict[str, int]:
    """Values of each parameter by path, "backbone/down1/conv/kernel"; of arrays or of shapes."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): math.prod(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def count_parameters(params: Any) -> int:
    """Values of all parameters."""
    return sum(parameters(params).values())


def trace(
    model: nn.Module,
    size: tuple[int, int],
    *,
    train: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> list[Call]:
    """Lists the calls that the outputs depend on, in the order in which they end, for one image.

    Args:
        model: Any network of ours, or a backbone; called as model(image, train=...).
        size: Size of the image, (h, w) in pixels.
        train: Count what only the loss needs too (auxiliary classifiers).
        variables: From variable_shapes, when they are known already.

    Raises:
        ValueError: a matrix or kernel is used that no call accounts for.
    """
    variables = variable_shapes(model) if variables is None else variables
    calls, inside = [], []

    def module_called(call, args, kwargs, context):
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        inside.append("/".join(context.module.path))
        outputs = call(*args, **kwargs)
        own = context.module.variables.get("params", {})
        kernel = own.get("kernel")
        calls.append(
            Call(
                inside.pop(),
                type(context.module).__name__,
                _shapes((args, kwargs)),
                _shapes(outputs),
                None if kernel is None else kernel.shape,
                "bias" in own,
            )
        )
        return outputs

    def attended(*shapes):
        calls.append(Call(inside[-1], "dot_product_attention", shapes, (shapes[2],)))

    def forward(variables, image, key):
        mutable = [name for name in variables if name != "params"] if train else False
        outputs = model.apply(variables, image, train=train, mutable=mutable, rngs={"dropout": key})
        return outputs[0] if train else outputs

    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    arguments = (variables, image, jax.random.key(0))
    with nn.intercept_methods(module_called), attention.observe(attended):
        jaxpr = jax.make_jaxpr(forward)(*arguments).jaxpr

    leaves = jax.tree_util.tree_leaves_with_path(arguments)
    live = _needed(jaxpr)
    used = {
        jax.tree_util.keystr(path[2:], simple=True, separator="/"): (variable in live, leaf)
        for (path, leaf), variable in zip(leaves, jaxpr.invars, strict=True)
        if path[:2] == (jax.tree_util.SequenceKey(0), jax.tree_util.DictKey("params"))
    }

    def contributes(path):
        below = [is_live for name, (is_live, _) in used.items() if name.startswith(f"{path}/")]
        return any(below) or not below or not path

    counted = {f"{call.path}/kernel" for call in calls if call.kernel is not None}
    for name, (is_live, leaf) in used.items():
        if is_live and len(leaf.shape) > 1 and name not in counted:
            raise ValueError(f"'{name}' {leaf.shape} is used, but no rule counts its multiply-adds")
    return [call for call in calls if contributes(call.path)]


def _shapes(tree: Any) -> tuple[Shape, ...]:
    return tuple(leaf.shape for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape"))


def _needed(jaxpr: Any) -> set[Any]:
    """The variables on which a jaxpr's outputs depend."""
    live = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    for equation in reversed(jaxpr.eqns):
        if live.intersection(equation.outvars):
            live.update(v for v in equation.invars if not isinstance(v, Literal))
    return live


def macs(
    model: nn.Module, size: tuple[int, int], *, train: bool = False, attention: bool = True
) -> int:
    """Multiply-adds for one image of a size (h, w); attention=False leaves its two products out."""
    calls = trace(model, size, train=train)
    return sum(c.macs for c in calls if attention or c.kind != "dot_product_attention")


def by_layer(calls: Iterable[Call], depth: int | None = None) -> dict[str, int]:
    """Multiply-adds by path, those without any left out; `depth` sums over what shares so many names."""
    totals: dict[str, int] = {}
    for call in calls:
        if call.macs:
            path = "/".join(call.path.split("/")[:depth])
            totals[path] = totals.get(path, 0) + call.macs
    return totals


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a paper's tool counts operations, which it calls FLOPs.

    Convolutions count kernel x outputs, transposed ones too.

    Attributes:
        norm: Operations of a BatchNorm for each value.
        bias: What a bias costs for each output: 1, or "channels", the convolution's input channels.
        products: Whether the matrix products of an attention count.
        train: Whether what only the loss needs counts too.
        modules: What the calls of other classes cost, by class name.
        network: What does not belong to one call, by path, from all calls by path.
    """

    norm: int = 0
    bias: int | str = 0
    products: bool = False
    train: bool = False
    modules: Mapping[str, Callable[[Call], int]] = dataclasses.field(default_factory=dict)
    network: Callable[[Mapping[str, Call]], Mapping[str, int]] = lambda calls: {}

    def operations(self, call: Call) -> int:
        """Operations of one call, those of its submodules not included."""
        count = self.modules[call.kind](call) if call.kind in self.modules else 0
        if call.kernel is not None:
            bias = call.kernel[-2] if self.bias == "channels" else self.bias
            per_output = math.prod(call.kernel[:-1]) + (bias if call.bias else 0)
            count += math.prod(call.outputs[0]) * per_output
        if call.kind in ("BatchNorm", "BatchNormPReLU"):
            count += self.norm * math.prod(call.outputs[0])
        if call.kind == "dot_product_attention" and self.products:
            count += call.macs
        return count

    def by_path(self, calls: Sequence[Call]) -> dict[str, int]:
        """Operations by path; what belongs to no part of the network stands under ""."""
        totals: dict[str, int] = {}
        for call in calls:
            totals[call.path] = totals.get(call.path, 0) + self.operations(call)
        for path, count in self.network({call.path: call for call in calls}).items():
            totals[path] = totals.get(path, 0) + count
        return totals

    def total(self, calls: Sequence[Call]) -> int:
        """Operations of a whole network."""
        return sum(self.by_path(calls).values())


def _pixels(call: Call, halvings: int) -> int:
    """Pixels of a call's image after so many halvings, sizes rounded up."""
    return math.prod(-(-n // 2**halvings) for n in call.inputs[0][1:3])


def _injections(call: Call) -> int:
    """DABNet's code pools the image once, twice and three times, each from the start: 1 for each mean."""
    means = 3 * _pixels(call, 1) + 2 * _pixels(call, 2) + _pixels(call, 3)
    return call.inputs[0][-1] * means


def _outputs(call: Call) -> int:
    """One for each value: a ReLU at the end."""
    return math.prod(call.outputs[0])


def _stem(call: Call) -> int:
    """ResNet's 3x3 max pool, charged 3 for each value, and the ReLU before it."""
    return 3 * 64 * _pixels(call, 2) + 64 * _pixels(call, 1)


def _relu6(call: Call) -> int:
    """MobileNetV2's activations: after its stem and in its inverted residuals, but for their last convolution."""
    activated = call.path.rpartition("/")[2] in ("expand", "depthwise")
    return _outputs(call) if activated else 0


def _refinement(call: Call) -> int:
    """A CARModule's average pool of the two maps: what goes in and what comes out."""
    return 2 * math.prod(call.inputs[0]) + 2 * call.inputs[0][-1]


def _carnet(calls: Mapping[str, Call]) -> dict[str, int]:
    """The average pool of the trunk's last map, and the ReLU that the decoder shares with a ResNet's stem.

    Of that one the last call alone counts, at 1/32; MobileNetV2's decoder has one of its own, last called at 1/4.
    """
    if "global_feature" not in calls:
        return {}
    image, trunk = calls[""], calls["backbone"]
    pool = math.prod(trunk.outputs[-1]) + trunk.outputs[-1][-1]
    if trunk.kind == "ResNet":
        relu = 256 * _pixels(image, 5) - 64 * _pixels(image, 1)
    else:
        relu = 256 * _pixels(image, 2)
    return {"global_feature": pool, "": relu}


def _shortcut_pool(call: Call) -> int:
    """One for each mean of a ShuffleNet unit's average pool, which keeps the input's channels."""
    return math.prod(call.outputs[0][:-1]) * call.inputs[0][-1]


def _pyramid_pools(call: Call) -> int:
    """Adaptive pools to 1, 2x2, 3x3 and 6x6: what goes in and what comes out."""
    channels = call.inputs[0][-1]
    return 4 * math.prod(call.inputs[0]) + channels * (1 + 4 + 9 + 36)


RULES = {
    # thop 0.0.31: EACNet's Tables 1, 3 and 6.
    "eacnet": Rule(norm=2, bias=1, modules={"DABNetBackbone": _injections}),
    # The attention's conventional form in ASAP's Table III fits with biases only.
    "asap": Rule(norm=2, bias=1, products=True),
    # thop 0.0.22: CARNet's Tables 1, 2 and 4. A module called several times counts for its last call alone: a
    # bottleneck's ReLU and the pool of a chain count once.
    "carnet": Rule(
        norm=4,
        bias="channels",
        train=True,
        modules={
            "ResNet": _stem,
            "Bottleneck": _outputs,
            "MobileNetV2": lambda call: 32 * _pixels(call, 1),
            "ConvBatchNorm": _relu6,
            "ChainedResidualPooling": lambda call: 5 * _outputs(call),
            "ContextualAttentionRefinement": _refinement,
        },
        network=_carnet,
    ),
    # AFFNet's Tables II and III.
    "affnet": Rule(
        norm=2,
        modules={"ShuffleNetUnit": _shortcut_pool, "SpatialPyramidPooling": _pyramid_pools},
    ),
}
