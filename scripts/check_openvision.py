"""Compare the features of OpenVision's JAX model with those of the same parameters after `clips import`.

    python scripts/check_openvision.py --openvision OpenVision --jax-python jaxenv/bin/python

``OpenVision`` is a checkout of github.com/UCSC-VLAA/OpenVision, ``jaxenv`` an environment as in ``vs_openvision.py``.
Exit status 1 if features differ by more than 1e-5.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from clips.encoder import load_encoder
from clips.interchange.importing import ImportConfig, run_import
from clips.model.tokenizer import ClipsTokenizer

TEXTS = ("A cow stands in the back of a truck.", "two keys", "Best key soccer ball 2010, " * 12)
TOLERANCE = 1e-5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--openvision", required=True)
    parser.add_argument("--jax-python", required=True)
    parser.add_argument("--size", default="Ti", help="OpenVision's name of the towers' size: Ti, S, B, L")
    parser.add_argument("--patch", type=int, default=16)
    args = parser.parse_args()
    architecture = f"clips-{args.size.lower()}-{args.patch}"
    with tempfile.TemporaryDirectory() as folder:
        differences = compare(args, architecture, Path(folder))
    for name, (between, within) in differences.items():
        print(f"{architecture}: {name} features differ by {between:.2g} at most, those of other inputs by {within:.2g}")
    return int(any(between > TOLERANCE or within < 100 * TOLERANCE for between, within in differences.values()))


def compare(args: argparse.Namespace, architecture: str, folder: Path) -> dict[str, tuple[float, float]]:
    """Input type → the largest difference between the two models, and between two inputs of one model."""
    from clips.model.architectures import ModelConfig, model_cfg

    cfg = model_cfg(ModelConfig(architecture=architecture))
    size = cfg["vision_cfg"]["image_size"]
    pixels = torch.randn(len(TEXTS), 3, size, size, generator=torch.Generator().manual_seed(0))
    tokens = ClipsTokenizer(cfg["text_cfg"]["context_length"])(list(TEXTS))
    image = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
    np.savez(folder / "inputs.npz", image=image, text=tokens.numpy().astype(np.int32))
    script = Path(__file__).with_name("openvision_features.py")
    files = [f"--{name}={folder / name}.npz" for name in ("inputs", "parameters", "features")]
    options = [f"--openvision={args.openvision}", f"--size={args.size}", f"--patch={args.patch}", *files]
    subprocess.run([args.jax_python, str(script), *options], check=True, stdout=sys.stderr)
    run_import(
        ImportConfig(path=str(folder / "parameters.npz"), output=str(folder / "encoder"), architecture=architecture)
    )
    model = load_encoder(str(folder / "encoder")).model.eval()
    with torch.no_grad():
        ours = {"image": model.encode_image(pixels), "text": model.encode_text(tokens)}
    with np.load(folder / "features.npz") as theirs:
        found = {name: (F.normalize(value, dim=-1), torch.from_numpy(theirs[name])) for name, value in ours.items()}
    return {
        name: (float((mine - other).abs().max()), float((mine - mine.roll(1, 0)).abs().max()))
        for name, (mine, other) in found.items()
    }


if __name__ == "__main__":
    sys.exit(main())
