"""The OpenVision side of ``vs_openvision.py``, which starts it under a Python with jax.

Each line ``step`` on standard input runs a training step and is answered with a line of JSON: wall and processor
seconds. Model, loss, optimizer and config are those of a checkout of UCSC-VLAA/OpenVision.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import types
from typing import Any, TextIO


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--openvision", required=True)
    parser.add_argument("--batch", required=True, help="npz of the tensors of a batch")
    parser.add_argument("--size", required=True, help="OpenVision's name of the towers' size, such as S")
    parser.add_argument("--patch", type=int, required=True)
    parser.add_argument("--precision", required=True, choices=["fp32", "bf16"])
    parser.add_argument("--remat", required=True, help="activations that the towers recompute in the backward pass")
    args = parser.parse_args()
    sys.path.insert(0, args.openvision)
    replies, sys.stdout = sys.stdout, sys.stderr  # OpenVision's code prints
    replace_tensorflow()
    step, count = training_step(args)
    reply(replies, parameters=count)
    for line in sys.stdin:
        assert line.strip() == "step", line
        wall, processor = time.perf_counter(), time.process_time()
        loss = step()
        reply(replies, wall=time.perf_counter() - wall, cpu=time.process_time() - processor, loss=loss)


def reply(stream: TextIO, **values: float) -> None:
    print(json.dumps(values), file=stream, flush=True)


def replace_tensorflow() -> None:
    """Replace TensorFlow by empty modules: OpenVision's helpers import it for file access, which no step needs."""
    import flax.training.checkpoints  # noqa: F401  imported first, because it searches for TensorFlow, too

    for name in ("tensorflow", "tensorflow.io", "tensorflow.io.gfile"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["tensorflow"].io = sys.modules["tensorflow.io"]  # type: ignore[attr-defined]
    sys.modules["tensorflow.io"].gfile = sys.modules["tensorflow.io.gfile"]  # type: ignore[attr-defined]


def initial_value(path: Any, shape: Any) -> Any:
    """The initial value of a parameter: 1 for norm scales, OpenVision's temperature, noise for all others."""
    import jax
    import numpy as np

    name = path[-1].key
    if name in ("scale", "t"):
        return jax.numpy.full(shape.shape, 1.0 if name == "scale" else np.log(1 / 0.07), shape.dtype)
    return jax.numpy.asarray(0.02 * np.random.default_rng(0).standard_normal(shape.shape), shape.dtype)


def load_config(args: argparse.Namespace, batch: dict[str, Any]) -> Any:
    from src.configs import openvision

    config = openvision.get_config(
        f"res={batch['image'].shape[1]},img={args.size}/{args.patch},txt_name={args.size},"
        f"txt_decoder_name={args.size},remat={args.remat},token_len={batch['labels1'].shape[1]},"
        f"output_token_len={batch['targets'].shape[1]},data_parallelism=1,fsdp_parallelism=1"
    )
    for part in (config.model.image, config.model.text, config.model.text_decoder_config):
        part.dtype = "float32" if args.precision == "fp32" else "bfloat16"
    return config


def loss_function(config: Any, model: Any, devices: Any, rng: Any) -> Any:
    """The loss of OpenVision's training as a function of parameters and batch."""
    from jax import numpy as jnp
    from src import losses

    def loss_of(params: Any, batch: Any) -> Any:
        count = len(batch["image"])
        randoms = dict.fromkeys(("dropout", "drop_path", "random_mask"), rng)
        texts = jnp.concatenate([batch["labels1"], batch["labels2"]])
        image, text, outputs = model.apply({"params": params}, batch["image"], texts, train=True, rngs=randoms)
        contrastive, _ = losses.bidirectional_contrastive_loss(
            image, text[:count], text[count:], outputs["t"], reduction=True, local_loss=True, devices=devices
        )
        caption = losses.softmax_xent(
            logits=outputs["logits"], labels=batch["targets"], mask=batch["counted"], reduction=True, axis=-1
        )
        return config.clip_loss_weight * contrastive + config.coca_caption_loss_weight * caption

    return loss_of


def training_step(args: argparse.Namespace) -> tuple[Any, int]:
    """A function that runs one training step and returns its loss; and the number of parameters."""
    import jax
    import numpy as np
    import optax
    from flax import linen as nn
    from flax.core import meta
    from src import optim
    from src.models import two_towers

    with np.load(args.batch) as file:
        batch = {name: jax.numpy.asarray(file[name]) for name in file.files}
    config, devices, rng = load_config(args, batch), np.array(jax.devices()), jax.random.PRNGKey(0)
    mesh = jax.sharding.Mesh(devices.reshape(1, 1, 1), config.sharding.mesh_axes)
    model = two_towers.Model(**config.model, mesh=mesh)
    smallest = batch["image"][:1], batch["labels1"][:2]
    shapes = meta.unbox(jax.eval_shape(lambda *inputs: model.init(*inputs, train=True)["params"], rng, *smallest))
    params = jax.tree_util.tree_map_with_path(initial_value, shapes)  # OpenVision's own takes minutes to compile
    schedule = {"total_steps": 10**6, "batch_size": len(batch["image"]), "data_size": 10**6}
    tx, _ = optim.make(config, params, sched_kw=schedule)
    loss_of = loss_function(config, model, devices, rng)

    def update(state: Any, batch: Any) -> Any:
        params, optimizer = state
        loss, gradients = jax.value_and_grad(loss_of)(params, batch)
        updates, optimizer = tx.update(gradients, optimizer, params)
        return (optax.apply_updates(params, updates), optimizer), loss

    jitted = jax.jit(update, donate_argnums=0)
    state = [(params, jax.jit(tx.init)(params))]

    def step() -> float:
        with nn.logical_axis_rules(()):
            state[0], loss = jitted(state[0], batch)
        jax.block_until_ready(state[0])
        return float(loss)

    return step, sum(value.size for value in jax.tree.leaves(params))


if __name__ == "__main__":
    main()
