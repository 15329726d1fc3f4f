"""The OpenVision side of ``vs_openvision.py``: runs under a Python that has jax, never by hand.

Standard input says ``step`` or nothing more; each step is answered with a line of JSON: wall and processor seconds.
The model, its loss and its optimizer are the authors', from a checkout of UCSC-VLAA/OpenVision, with their config.
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
    parser.add_argument("--batch", required=True, help="npz of the tensors that a step reads")
    parser.add_argument("--size", required=True, help="their name of the towers' size, such as S")
    parser.add_argument("--patch", type=int, required=True)
    parser.add_argument("--precision", required=True, choices=["fp32", "bf16"])
    parser.add_argument("--remat", required=True, help="what the towers compute again in the backward pass")
    args = parser.parse_args()
    sys.path.insert(0, args.openvision)
    answers, sys.stdout = sys.stdout, sys.stderr  # their code prints
    replace_tensorflow()
    step, count = build(args)
    tell(answers, parameters=count)
    for line in sys.stdin:
        assert line.strip() == "step", line
        wall, processor = time.perf_counter(), time.process_time()
        loss = step()
        tell(answers, wall=time.perf_counter() - wall, cpu=time.process_time() - processor, loss=loss)


def tell(answers: TextIO, **values: float) -> None:
    print(json.dumps(values), file=answers, flush=True)


def replace_tensorflow() -> None:
    """Their helpers import TensorFlow for its files alone, which a step does not touch."""
    import flax.training.checkpoints  # noqa: F401  looks for TensorFlow itself, and must not find it

    for name in ("tensorflow", "tensorflow.io", "tensorflow.io.gfile"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["tensorflow"].io = sys.modules["tensorflow.io"]  # type: ignore[attr-defined]
    sys.modules["tensorflow.io"].gfile = sys.modules["tensorflow.io.gfile"]  # type: ignore[attr-defined]


def start_value(path: Any, shape: Any) -> Any:
    """A parameter to begin with: norms' factors 1, the temperature theirs, the rest small noise."""
    import jax
    import numpy as np

    name = path[-1].key
    if name in ("scale", "t"):
        return jax.numpy.full(shape.shape, 1.0 if name == "scale" else np.log(1 / 0.07), shape.dtype)
    return jax.numpy.asarray(0.02 * np.random.default_rng(0).standard_normal(shape.shape), shape.dtype)


def build(args: argparse.Namespace) -> tuple[Any, int]:
    """A call that trains one step and returns its loss; the number of parameters."""
    import jax
    import numpy as np
    import optax
    import src.losses as losses
    import src.optim as optim
    from flax import linen as nn
    from flax.core import meta
    from jax import numpy as jnp
    from src.configs import openvision
    from src.models import two_towers

    with np.load(args.batch) as file:
        batch = {name: jnp.asarray(file[name]) for name in file.files}
    config = openvision.get_config(
        f"res={batch['image'].shape[1]},img={args.size}/{args.patch},txt_name={args.size},"
        f"txt_decoder_name={args.size},remat={args.remat},token_len={batch['labels1'].shape[1]},"
        f"output_token_len={batch['targets'].shape[1]},data_parallelism=1,fsdp_parallelism=1"
    )
    for part in (config.model.image, config.model.text, config.model.text_decoder_config):
        part.dtype = "float32" if args.precision == "fp32" else "bfloat16"
    devices = np.array(jax.devices())
    model = two_towers.Model(
        **config.model, mesh=jax.sharding.Mesh(devices.reshape(1, 1, 1), config.sharding.mesh_axes)
    )
    rng = jax.random.PRNGKey(0)
    smallest = batch["image"][:1], batch["labels1"][:2]
    shapes = meta.unbox(jax.eval_shape(lambda *inputs: model.init(*inputs, train=True)["params"], rng, *smallest))
    params = jax.tree_util.tree_map_with_path(start_value, shapes)  # their own start takes minutes to compile
    count = len(batch["image"])
    tx, _ = optim.make(config, params, sched_kw={"total_steps": 10**6, "batch_size": count, "data_size": 10**6})

    def loss_of(params: Any, batch: Any) -> Any:
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

    def update(state: Any, batch: Any) -> Any:
        params, optimizer = state
        loss, gradients = jax.value_and_grad(loss_of)(params, batch)
        updates, optimizer = tx.update(gradients, optimizer, params)
        return (optax.apply_updates(params, updates), optimizer), loss

    jitted = jax.jit(update, donate_argnums=0)
    held = [(params, jax.jit(tx.init)(params))]
    total = sum(value.size for value in jax.tree.leaves(params))

    def step() -> float:
        with nn.logical_axis_rules(()):
            held[0], loss = jitted(held[0], batch)
        jax.block_until_ready(held[0])
        return float(loss)

    return step, total


if __name__ == "__main__":
    main()
