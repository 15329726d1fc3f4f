"""The OpenVision side of ``check_openvision.py``: the features of its JAX model, with random parameters."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "bench"))
from openvision_step import replace_tensorflow


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--openvision", required=True)
    parser.add_argument("--size", required=True)
    parser.add_argument("--patch", type=int, required=True)
    parser.add_argument("--inputs", required=True, help="npz: image (B, H, W, 3), text (B, L)")
    parser.add_argument("--parameters", required=True, help="npz to write: name → value, in OpenVision's format")
    parser.add_argument("--features", required=True, help="npz to write: image, text, of unit length")
    args = parser.parse_args()
    sys.path.insert(0, args.openvision)
    replace_tensorflow()
    run(args)


def run(args: argparse.Namespace) -> None:
    import jax
    import numpy as np
    from flax import linen as nn
    from flax.core import meta
    from src.configs import openvision
    from src.models import two_towers

    jax.config.update("jax_default_matmul_precision", "highest")
    inputs = dict(np.load(args.inputs))
    config = openvision.get_config(
        f"res={inputs['image'].shape[1]},img={args.size}/{args.patch},txt_name={args.size},"
        f"txt_decoder_name={args.size},remat=none,token_len={inputs['text'].shape[1]},"
        "data_parallelism=1,fsdp_parallelism=1"
    )
    for part in (config.model.image, config.model.text, config.model.text_decoder_config):
        part.dtype = "float32"
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(1, 1, 1), config.sharding.mesh_axes)
    model = two_towers.Model(**config.model, mesh=mesh)
    image, text = (jax.numpy.asarray(inputs[name]) for name in ("image", "text"))
    rng = jax.random.PRNGKey(0)
    shapes = meta.unbox(jax.eval_shape(lambda *given: model.init(*given, train=False)["params"], rng, image, text))
    noise = np.random.default_rng(0)
    params = jax.tree_util.tree_map_with_path(lambda path, shape: initial_value(path, shape, noise), shapes)
    with nn.logical_axis_rules(()):
        images, texts, _ = model.apply({"params": params}, image, text, train=False)
    np.savez(args.features, image=np.asarray(images), text=np.asarray(texts))
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    np.savez(args.parameters, **{"/".join(key.key for key in path): np.asarray(value) for path, value in flat})  # type: ignore[arg-type]


def initial_value(path: Any, shape: Any, noise: Any) -> Any:
    mean = 1.0 if path[-1].key == "scale" else 0.0
    return (mean + 0.05 * noise.standard_normal(shape.shape)).astype(shape.dtype)


if __name__ == "__main__":
    main()
