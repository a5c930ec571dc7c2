"""DDRNet-23-slim (Hong et al., "Deep Dual-Resolution Networks", IEEE T-ITS 2022, arXiv 2101.06085).

Two branches share the first layers. The detail branch stays at output stride 8; the context branch goes on to 64, where
a pyramid of means (DAPPM) is merged. They exchange their maps at 16 and at 32. The loss L_n + alpha L_a is
losses.auxiliary_loss().

Readings (what the paper leaves open, and what the authors' code settles):
  * the detail branch is given the context branch's map as it was before the detail branch's own was added to it;
  * where the branches meet, maps are summed before the ReLU, so that the last block of a layer there has none, nor have
    the bottlenecks at the ends of both branches;
  * the stem's two convolutions have a bias although a BatchNorm follows; every other one but a head's last has none;
  * the pyramid's means count the zeros of their padding;
  * the auxiliary head reads the detail branch after the first exchange;
  * BatchNorm epsilon is 1e-5; kernels start from He's normal over fan_out; all resizing is with half-pixel centres;
  * the code resizes to a floored eighth of the image and so takes multiples of 8 only; here the detail branch's size is
    taken, which is the same for those and makes any size work.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from rtseg_jax.models.zoo.resnet import BasicBlock, Bottleneck
from rtseg_jax.nn.conv import Conv, ConvBatchNorm, ConvBatchNormReLU, kaiming_normal_fan_out
from rtseg_jax.nn.norm import BatchNorm
from rtseg_jax.nn.pool import avg_pool, global_avg_pool
from rtseg_jax.nn.resize import resize_bilinear

EPSILON = 1e-5
# Strides of the pyramid's means before the global one; the windows have twice as many pixels and one.
POOLS = (2, 4, 8)


class NormReLUConv(nn.Module):
    """BatchNorm, ReLU and a convolution without bias: the order of the pyramids and heads.

    Attributes:
        kernel_size: Side of the kernel.
        groups: Groups of the convolution.
    """

    features: int
    kernel_size: int = 1
    groups: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h w features"]:
        x = nn.relu(BatchNorm(EPSILON, dtype=self.dtype, name="norm")(x, train=train))
        return Conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            groups=self.groups,
            use_bias=False,
            kernel_init=kaiming_normal_fan_out,
            dtype=self.dtype,
            name="conv",
        )(x)


class Head(nn.Module):
    """BatchNorm, ReLU and a 3x3 convolution, then the same again with a 1x1 convolution to the scores.

    Attributes:
        width: Channels between the two convolutions.
        features: Scores for each cell.
    """

    width: int
    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h w features"]:
        """Returns float32 scores."""
        x = nn.relu(BatchNorm(EPSILON, dtype=self.dtype, name="norm")(x, train=train))
        x = ConvBatchNormReLU(self.width, dtype=self.dtype, name="conv1")(x, train=train)
        init = kaiming_normal_fan_out
        conv = Conv(self.features, (1, 1), kernel_init=init, dtype=self.dtype, name="conv2")
        return conv(x).astype(jnp.float32)


def stem(image: Float[Array, "b h w 3"], width: int, dtype: DTypeLike, train: bool) -> Array:
    """Two strided 3x3 convolutions, to output stride 4. Called inside a network's __call__."""
    x = image
    for name in ("stem1", "stem2"):
        x = ConvBatchNormReLU(width, (3, 3), (2, 2), use_bias=True, dtype=dtype, name=name)(
            x, train=train
        )
    return x


def layer(
    name: str,
    x: Float[Array, "b h w c"],
    features: int,
    *,
    blocks: int = 2,
    stride: int = 1,
    relu: bool = True,
    dtype: DTypeLike,
    train: bool,
) -> Float[Array, "b h2 w2 features"]:
    """Blocks NAME_block0, ... of ResNet-18. Called inside a network's __call__.

    Args:
        name: Name of the layer.
        x: What goes in.
        features: Channels of the output.
        blocks: How many.
        stride: Of the first block.
        relu: Whether the last block ends in a ReLU.
        dtype: The type that is computed in.
        train: Whether the norms use their batch.
    """
    for i in range(blocks):
        strides = (stride, stride) if i == 0 else (1, 1)
        last = i == blocks - 1
        x = BasicBlock(features, strides, dtype, relu or not last, name=f"{name}_block{i}")(
            x, train=train
        )
    return x


class DualResolutionBackbone(nn.Module):
    """Everything before the pyramid.

    Attributes:
        width: Channels of the stem.
    """

    width: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> tuple[Float[Array, "b h8 w8 _"], Float[Array, "b h8 w8 _"], Float[Array, "b h64 w64 _"]]:
        """Returns the detail branch after the first exchange and at its end, then the context branch at its end."""
        w, options = self.width, {"dtype": self.dtype, "train": train}

        def norm_conv(name, x, features, size=1, stride=1):
            return ConvBatchNorm(
                features, (size, size), (stride, stride), dtype=self.dtype, name=name
            )(nn.relu(x), train=train)

        def to_detail(stage, x, detail):
            x = norm_conv(f"compress{stage}", x, 2 * w)
            return detail + resize_bilinear(x, detail.shape[1:3])

        x = stem(image, w, self.dtype, train)
        x = layer("layer1", x, w, **options)
        x = layer("layer2", x, 2 * w, stride=2, **options)

        detail = layer("detail3", x, 2 * w, relu=False, **options)
        x = layer("layer3", x, 4 * w, stride=2, relu=False, **options)
        down = norm_conv("down3", detail, 4 * w, 3, 2)
        x, detail = x + down, to_detail(3, x, detail)
        early = detail

        detail = layer("detail4", nn.relu(detail), 2 * w, relu=False, **options)
        x = layer("layer4", nn.relu(x), 8 * w, stride=2, relu=False, **options)
        down = norm_conv("down4_1", detail, 4 * w, 3, 2)
        down = norm_conv("down4_2", down, 8 * w, 3, 2)
        x, detail = x + down, to_detail(4, x, detail)

        def bottleneck(name, x, features, stride):
            block = Bottleneck(
                features, (stride, stride), self.dtype, relu=False, expansion=2, name=name
            )
            return block(nn.relu(x), train=train)

        detail = bottleneck("detail5_block0", detail, 2 * w, 1)
        return early, detail, bottleneck("layer5_block0", x, 8 * w, 2)


class Pyramid(nn.Module):
    """A map and four means of it, each through a 1x1 convolution, refined and merged, beside a shortcut.

    Attributes:
        width: Channels of a scale.
        features: Channels of the output.
    """

    width: int
    features: int
    dtype: DTypeLike = jnp.float32

    def refined(self, first: Array, others: list[Array], train: bool) -> list[Array]:
        """What is merged, of the map's own scale and of its means', all at the map's size."""
        raise NotImplementedError

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h w features"]:
        means = [avg_pool(x, (2 * n + 1, 2 * n + 1), (n, n), (n, n)) for n in POOLS]
        scales = [
            NormReLUConv(self.width, dtype=self.dtype, name=f"scale{i}")(y, train=train)
            for i, y in enumerate((x, *means, global_avg_pool(x)))
        ]
        first, *others = (resize_bilinear(y, x.shape[1:3]) for y in scales)
        maps = jnp.concatenate(self.refined(first, others, train), axis=-1)
        merged = NormReLUConv(self.features, dtype=self.dtype, name="compress")(maps, train=train)
        shortcut = NormReLUConv(self.features, dtype=self.dtype, name="shortcut")
        return merged + shortcut(x, train=train)


class DeepAggregationPyramid(Pyramid):
    """Deep Aggregation Pyramid Pooling Module, DAPPM: each scale is refined on top of the one before."""

    def refined(self, first: Array, others: list[Array], train: bool) -> list[Array]:
        """The scales one by one."""
        maps = [first]
        for i, scale in enumerate(others, start=1):
            process = NormReLUConv(self.width, 3, dtype=self.dtype, name=f"process{i}")
            maps.append(process(scale + maps[-1], train=train))
        return maps


class DDRNet(nn.Module):
    """DDRNet-23-slim.

    Attributes:
        width: Channels of the stem.
        pyramid_width: Channels of the pyramid's scales.
        head_width: Channels inside of the heads.
        dtype: The type that is computed in; parameters, statistics and logits are float32.
    """

    num_classes: int
    width: int = 32
    pyramid_width: int = 128
    head_width: int = 64
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> dict[str, Float[Array, "b h8 w8 k"]]:
        """Returns "logits", float32 scores at output stride 8; under train "aux" too."""
        early, detail, context = DualResolutionBackbone(self.width, self.dtype, name="backbone")(
            image, train=train
        )
        context = DeepAggregationPyramid(
            self.pyramid_width, 4 * self.width, self.dtype, name="pyramid"
        )(context, train=train)
        x = detail + resize_bilinear(context, detail.shape[1:3])

        def scores(name, x):
            return Head(self.head_width, self.num_classes, self.dtype, name=name)(x, train=train)

        outputs = {"logits": scores("classifier", x)}
        if train:
            outputs["aux"] = scores("aux", early)
        return outputs
