"""A tiny LLaVA in the layout of its first authors, written by hand, and what their code computes with it."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

LLM = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rope_theta": 5000.0,
}
TOWER = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
SIZE, PATCH = 32, 8
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
STATED = {
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_hidden_size": 24,
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "use_mm_proj": True,
    "tune_mm_mlp_adapter": False,
    "image_aspect_ratio": "pad",
}


def llama_tokenizer() -> Any:
    """Llama's, in which SentencePiece puts a blank before a text: letters, bytes, a few merged words; no <image>."""
    from transformers import LlamaTokenizer

    words = ["▁A", "▁AB", "▁W", "▁Wh", "US", "ER", "AS", "SI"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *string.ascii_letters, *string.digits, *":.,?'!-", *words]
    merges = [(word[:-1], word[-1]) for word in words]
    return LlamaTokenizer(vocab={piece: place for place, piece in enumerate(pieces)}, merges=merges)


class Parts:
    """The original's parts, with random weights, and its computation."""

    def __init__(self, kind: str = "llama", projector: str = "mlp2x_gelu") -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel

        torch.manual_seed(0)
        self.tokenizer = llama_tokenizer()
        config = AutoConfig.for_model(kind, vocab_size=len(self.tokenizer), **LLM)
        self.kind = kind
        self.llm = AutoModelForCausalLM.from_config(config).eval()
        self.tower = CLIPVisionModel(CLIPVisionConfig(image_size=SIZE, patch_size=PATCH, **TOWER)).eval()
        depth = 1 if projector == "linear" else int(projector[3])
        layers: list[nn.Module] = [nn.Linear(24, 32)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(32, 32)]
        self.projector = layers[0] if projector == "linear" else nn.Sequential(*layers)
        for part in (self.llm, self.tower, self.projector):
            for weight in part.parameters():
                weight.data += torch.randn_like(weight) * 0.05

    def pixels(self, picture: Image.Image) -> Tensor:
        """(1, 3, 32, 32): a square of the mean color around the image, resized, normalized."""
        from transformers import CLIPImageProcessor

        side = max(picture.size)
        square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in MEAN))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        return CLIPImageProcessor(**preprocessing())(square, return_tensors="pt")["pixel_values"]

    def ids(self, prompt: str) -> list[list[int]]:
        """The tokens before, between and behind images, each text tokenized by itself, the first with its <s>."""
        texts = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in prompt.split("<image>")]
        return [[self.tokenizer.bos_token_id, *texts[0]], *texts[1:]]

    @torch.no_grad()
    def logits(self, texts: Sequence[Sequence[int]], pixels: Tensor, patches_only: bool = True) -> Tensor:
        """(T, V): state -2 without its class token, projected, between the embedded texts, through the LLM."""
        state = self.tower(pixels, output_hidden_states=True).hidden_states[-2]
        seen = self.projector(state[:, 1:] if patches_only else state)
        embed = self.llm.get_input_embeddings()
        first, second = (embed(torch.tensor([list(text)])) for text in texts)
        return self.llm(inputs_embeds=torch.cat([first, seen, second], dim=1)).logits[0]


def preprocessing() -> dict[str, Any]:
    return {
        "size": {"shortest_edge": SIZE},
        "crop_size": {"height": SIZE, "width": SIZE},
        "image_mean": MEAN,
        "image_std": STD,
        "resample": 3,
    }


def write_tower(parts: Parts, directory: Path, *, pickled: bool = False) -> Path:
    """The tower as CLIP's own directories are, with the names of older versions of transformers."""
    from transformers import CLIPImageProcessor

    parts.tower.save_pretrained(directory)
    (directory / "model.safetensors").unlink()
    weights = {f"vision_model.{name}": value for name, value in parts.tower.state_dict().items()}
    weights["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    if pickled:
        torch.save(weights, directory / "pytorch_model.bin")
    else:
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    CLIPImageProcessor(**preprocessing()).save_pretrained(directory)
    return directory


def projector_weights(parts: Parts) -> dict[str, Tensor]:
    return {f"model.mm_projector.{name}": value for name, value in parts.projector.state_dict().items()}


def write_config(parts: Parts, directory: Path, tower: str | None, **fields: Any) -> None:
    names = {"llama": ("llava_llama", "LlavaLlamaForCausalLM"), "mistral": ("llava_mistral", "LlavaMistralForCausalLM")}
    kind, architecture = names[parts.kind]
    config = {
        **LLM,
        **STATED,
        "architectures": [architecture],
        "model_type": kind,
        "vocab_size": len(parts.tokenizer),
        "torch_dtype": "float16",
        "rope_scaling": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "mm_vision_tower": tower,
        "transformers_version": "4.31.0",
        **fields,
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))


def write_original(
    parts: Parts, directory: Path, tower: str | None, *, pickled: bool = True, shards: int = 2, **fields: Any
) -> Path:
    """A whole checkpoint; ``fields`` of the config override it."""
    write_config(parts, directory, tower, **fields)
    parts.tokenizer.save_pretrained(directory)
    weights = {**parts.llm.state_dict(), **projector_weights(parts)}
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # as older versions saved it
    stem, ending = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    files: dict[str, str] = {}
    for shard in range(shards):
        name = f"{stem}-{shard + 1:05}-of-{shards:05}.{ending}" if shards > 1 else f"{stem}.{ending}"
        part = {key: weights[key].contiguous() for key in sorted(weights)[shard::shards]}
        if pickled:
            torch.save(part, directory / name)
        else:
            save_file(part, directory / name, metadata={"format": "pt"})
        files |= dict.fromkeys(part, name)
    if shards > 1:
        (directory / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return directory


def convert(source: Path, output: Path, **options: Any) -> Path:
    from llava_bridge.conversion.convert_command import ConvertConfig, run_convert

    run_convert(ConvertConfig(source=str(source), output=str(output), **options))
    return output


def expect_no_conversion(source: Path, match: str, **options: Any) -> None:
    """The conversion ends in one line and writes nothing."""
    import pytest

    from clips.errors import UserError

    output = source.parent / "output"
    with pytest.raises(UserError, match=match) as caught:
        convert(source, output, **options)
    assert "\n" not in str(caught.value)
    assert not output.exists()
    assert not list(source.parent.glob(".output*"))


def restated(source: Path, fields: dict[str, Any], directory: Path) -> Path:
    """The same checkpoint with other fields in its config."""
    directory.mkdir()
    for file in source.iterdir():
        (directory / file.name).symlink_to(file)
    config = json.loads((source / "config.json").read_text())
    (directory / "config.json").unlink()
    (directory / "config.json").write_text(json.dumps({**config, **fields}))
    return directory


def draw_image() -> Image.Image:
    """A wide image of noise."""
    noise = torch.randint(0, 256, (20, 50, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())
