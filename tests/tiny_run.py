"""A run's folder with a checkpoint, for tests of the programs that read one; nothing is trained for it."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import optax

from rtseg_jax import data, models
from rtseg_jax.base import config as settings
from rtseg_jax.data.sets import folder
from rtseg_jax.train import step
from rtseg_jax.weights import checkpoint
from tests.models.filling import filled


def override(config, overrides):
    """Sets dotted keys (input__size=...) of a locked config."""
    with config.unlocked():
        for key, value in overrides.items():
            *parents, leaf = key.split("__")
            node = functools.reduce(lambda tree, parent: tree[parent], parents, config)
            assert leaf in node, key
            node[leaf] = value
    return config


def write(workdir: pathlib.Path, name: str = "fast_scnn:smoke", seed: int = 0, **overrides):
    """Writes the folder of a run of a config, with dotted keys overridden (input__size=...), at step 7."""
    config = override(settings.load(name), overrides)
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
