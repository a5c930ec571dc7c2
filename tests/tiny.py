"""Runs that cost next to nothing: a network that compiles at once, its config, and a run's folder for which nothing is trained.

In this process the network is the variant "tiny" where a test uses the fixture tiny_network; a child process knows it by
--config=tests/tiny.py.
"""

import functools
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax

from rtseg_jax import data, models
from rtseg_jax.base import config as settings
from rtseg_jax.data.sets import folder
from rtseg_jax.nn import losses
from rtseg_jax.nn.conv import Conv, ConvBatchNorm
from rtseg_jax.train import step
from rtseg_jax.weights import checkpoint
from tests.models.filling import filled

FILE = pathlib.Path(__file__).resolve()


class Backbone(nn.Module):
    """Two convolutions with their norms, at stride 2."""

    norm: bool
    dtype: Any

    @nn.compact
    def __call__(self, x, *, train):
        part = functools.partial(ConvBatchNorm, 8, activation=nn.relu, dtype=self.dtype)
        x = part(strides=(2, 2), name="stem")(x, train=train and self.norm)
        return part(name="block")(x, train=train and self.norm)


class Attention(nn.Module):
    """Stands where EACNet has its attention: a sum that begins as the input alone."""

    dtype: Any

    @nn.compact
    def __call__(self, x):
        alpha = self.param("alpha", nn.initializers.zeros, (), jnp.float32)
        return x + alpha.astype(self.dtype) * Conv(
            x.shape[-1], (1, 1), dtype=self.dtype, name="value"
        )(x)


class Tiny(nn.Module):
    """A network with the parts of EACNet.

    Attributes:
        attention: "none" leaves it out.
        norm: Whether training normalises by the batch, or by fixed statistics as evaluation does.
    """

    num_classes: int
    attention: str = "some"
    dropout: float = 0.0
    norm: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image, *, train):
        x = Backbone(self.norm, self.dtype, name="backbone")(image, train=train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = Conv(self.num_classes, (1, 1), dtype=self.dtype, name="classifier")(x)
        if self.attention != "none":
            x = Attention(self.dtype, name="attention")(x)
        return {"logits": x.astype(jnp.float32)}


VARIANT = models.Variant(Tiny, {}, losses.segmentation_loss)


def override(config, overrides):
    """Sets dotted keys (input__size=...) of a locked config."""
    with config.unlocked():
        for key, value in overrides.items():
            *parents, leaf = key.split("__")
            node = functools.reduce(lambda tree, parent: tree[parent], parents, config)
            assert leaf in node, key
            node[leaf] = value
    return config


def config(name: str = "eacnet:smoke", **overrides) -> ml_collections.ConfigDict:
    """A config with the tiny network in the place of its own, with dotted keys overridden."""
    found = settings.load(name)
    with found.unlocked():
        found.model = ml_collections.ConfigDict({"name": "tiny", "options": {"attention": "some"}})
    return override(found, overrides)


def get_config(_: str = "") -> ml_collections.ConfigDict:
    """For the command line of a child process."""
    models.VARIANTS["tiny"] = VARIANT
    return config()


def write(workdir: pathlib.Path, config: Any = "fast_scnn:smoke", seed: int = 0, **overrides):
    """Writes the folder of a run of a config (or of its name), with dotted keys overridden, at step 7."""
    config = override(settings.load(config) if isinstance(config, str) else config, overrides)
    table = data.class_table(config.input.dataset)
    model = models.create(
        config.model.name, num_classes=table.num_classes, **settings.model_options(config)
    )
    key = jax.random.key(0)
    shapes = jax.eval_shape(
        functools.partial(model.init, train=True),
        {"params": key, "dropout": key},
        jnp.zeros((1, 64, 64, 3)),
    )
    variables = jax.tree.map(jnp.asarray, filled(shapes, seed))
    state = step.create_state(variables, optax.sgd(0.1), ema=False)
    workdir.mkdir(parents=True, exist_ok=True)
    settings.write(config, workdir)
    folder.write_classes(table, workdir / "classes.json")
    with checkpoint.open_manager(workdir) as manager:
        checkpoint.save(manager, state.replace(step=jnp.int32(7)).as_tree(), miou=0.5)
    return workdir
