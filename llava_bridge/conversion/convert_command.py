"""LLaVAs between the layout of their first authors and that of transformers.

llava-bridge convert llava-v1.5-7b --output llava-1.5-7b-hf
llava-bridge convert runs/mine-llava --output mine-original --format original
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from clips.core.artifact import atomic_artifact_dir, atomic_write, check_overwritable, log_info, write_manifest
from clips.errors import UserError
from clips.jsontext import safe_json_loads
from clips.model_refs import resolve_model_dir
from llava_bridge.model.llava_checks import check_llava_dir, is_llava, read_config

VISION_TOWER_DIR = "vision_tower"
"""The directory in which a converted checkpoint has its tower, for the original code to find."""
_TEMPLATES = {"llama": "vicuna_v1", "mistral": "mistral"}
_SHARD = "5GB"
_SLOW = "tokenizer.model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Make a transformers directory of a LLaVA in its first authors' layout, or the other way round.

    Args:
        source: the directory, or ``ORG/NAME`` on the Hub: an original checkpoint, a projector (``mm_projector.bin``)
            with its config, or a LLaVA in transformers' layout.
        output: the directory to write.
        format: the layout to write: hf (transformers) or original (haotian-liu/LLaVA).
        vision_tower: for hf: a directory in transformers' layout, or a name on the Hub, instead of the tower that the
            checkpoint names.
        llm: for hf: the LLM, a directory or a name on the Hub, that a projector alone was trained for. For original:
            where the ``tokenizer.model`` is that the original code reads, if not in the source.
        chat_template: for hf: ``auto`` (the tokenizer's own, else LLaVA-1.5's vicuna_v1, or mistral for Mistral) or a
            template's name.
    """

    source: str
    output: str
    format: Literal["hf", "original"] = "hf"
    vision_tower: str | None = None
    llm: str | None = None
    chat_template: str = "auto"

    def __post_init__(self) -> None:
        if self.format == "original" and self.vision_tower is not None:
            raise UserError("vision_tower: expected none with format original, to which the LLaVA brings its own")


def run_convert(asked: ConvertConfig) -> None:
    """Carry out ``asked``.

    Raises:
        UserError: the source is missing, incomplete, of that layout already, or has no equal in the other.
    """
    config = _on_disk(asked)
    if not Path(config.source).is_dir():
        raise UserError(f"{config.source}: no such directory")
    there = is_llava(config.source)
    check_overwritable(config.output, _kind(config))
    if config.format == "original":
        check_llava_dir(config.source)
        _to_original(config, asked)
    elif there:
        raise UserError(_already(config.source))
    else:
        _to_transformers(config, asked)


def _on_disk(asked: ConvertConfig) -> ConvertConfig:
    """The same with directories for names on the Hub."""
    source = resolve_model_dir(asked.source, "source")
    llm = None if asked.llm is None else resolve_model_dir(asked.llm, "llm")
    return dataclasses.replace(asked, source=str(source), llm=None if llm is None else str(llm))


def _kind(config: ConvertConfig) -> str:
    return "llava" if config.format == "hf" else "llava_original"


def _already(source: str) -> str:
    """The reason why a LLaVA in transformers' format needs no conversion."""
    config = read_config(source)
    tower = config.get("vision_config", {})
    if tower.get("model_type") == "llava_bridge_encoder":
        what = f"its tower ({tower.get('source', 'open_clip')})"
    elif config["model_type"] in ("llava_bridge", "llava_next_bridge"):
        what = f"its projector ({config.get('projector', {}).get('type')})"
    else:
        return f"{source}: in transformers' layout already; --format original makes the other"
    return (
        f"{source}: in transformers' layout already, and loads after `import llava_bridge`: {what} is none that "
        "transformers' own LLaVA has"
    )


# ---------------------------------------------------------------- original to transformers


def _to_transformers(config: ConvertConfig, asked: ConvertConfig) -> None:
    from llava_bridge.conversion.original_llava import read_original
    from llava_bridge.model.anyres import max_image_tokens
    from llava_bridge.model.build import convert_tower_to_transformers, set_generation_config

    original = read_original(Path(config.source), config.llm)
    tower = _tower_of(config, original.config)
    model, processor = _assembled(config, original, tower)
    if original.pinpoints is None:
        processor.image_processor = _image_processor(tower, original.config.get("image_aspect_ratio"))
    set_generation_config(model, processor)
    stock = convert_tower_to_transformers(model) and original.projector_name == "mlp2x_gelu"
    dtype = next(iter(original.llm.values())).dtype
    model.to(dtype)
    with atomic_artifact_dir(config.output, kind="llava") as partial:
        log_info(f"writing {config.output}")
        model.save_pretrained(partial, max_shard_size=_SHARD)
        processor.save_pretrained(partial)
        if (slow := _slow_tokenizer(config)) is not None:
            shutil.copyfile(slow, partial / slow.name)
        parents = {"source": config.source, "llm": config.llm, "vision_tower": tower}
        there = {name: path for name, path in parents.items() if path is not None}
        write_manifest(partial, kind="llava", config=asked, parents=there, dtype=str(dtype))
    needs = "" if stock else ", needs `import llava_bridge`"
    tokens = model.config.image_seq_length if original.pinpoints is None else f"up to {max_image_tokens(processor):,}"
    log_info(f"{config.output}: LLaVA in transformers' layout, {dtype}, {tokens} tokens for an image{needs}")


def _tower_of(config: ConvertConfig, stated: Mapping[str, Any]) -> str:
    """The directory of the tower."""
    name = config.vision_tower or stated.get("mm_vision_tower")
    if name is None:
        raise UserError(f"vision_tower: {config.source} names none; expected a directory or a name on the Hub")
    beside = Path(config.source) / Path(name).name
    if config.vision_tower is None and beside.is_dir():
        return str(beside)
    return str(resolve_model_dir(name, "vision_tower"))


def _assembled(config: ConvertConfig, original: Any, tower: str) -> tuple[Any, Any]:
    import torch

    from llava_bridge.conversation import add_sentencepiece_spaces, is_wrapped_template
    from llava_bridge.conversion.original_llava import LLM_TYPES, hf_projector_names
    from llava_bridge.encoders import load_encoder
    from llava_bridge.encoders.encoder import load_weights
    from llava_bridge.model.build import LlavaParts, build_llava_from_parts, read_tokenizer
    from llava_bridge.projectors import ProjectorConfig

    tokenizer = read_tokenizer(config.llm or config.source)
    template = config.chat_template
    trained_with = template == "auto" and is_wrapped_template(
        tokenizer.chat_template
    )  # a LLaVA of this suite, converted back
    if template == "auto" and tokenizer.chat_template is None:
        template = _TEMPLATES[LLM_TYPES[original.config["model_type"]]]
        log_info(f"chat_template: {template}, as the checkpoint does not say; --chat_template takes another")
    try:
        encoder = load_encoder(f"transformers:{tower}")
    except UserError as error:
        raise UserError(f"vision_tower: {str(error).removeprefix('encoder: ')}; --vision_tower DIR takes it") from None
    if original.tower:
        weights = {f"model.{name}": value.float() for name, value in original.tower.items()}
        encoder = dataclasses.replace(encoder, weights=weights)
    whole = original.config.get("mm_vision_select_feature", "patch") == "cls_patch"
    parts = LlavaParts(
        encoder=tower,
        llm=config.llm or config.source,
        vision_feature_layer=original.config.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="full" if whole else "default",
        projector=ProjectorConfig(type=original.projector_name),
        image_aspect_ratio="squash" if original.pinpoints is None else "anyres",
        image_grid_pinpoints=original.pinpoints,
        chat_template=template,
    )
    llm = _llm(config, original)
    _make_room(tokenizer, llm)
    model, processor = build_llava_from_parts(parts, encoder, tokenizer, llm)
    projector = model.model.multi_modal_projector
    names = dict(zip(hf_projector_names(projector.state_dict()), projector.state_dict(), strict=True))
    renamed = {names.get(name, name): value for name, value in original.projector.items()}
    load_weights(projector, renamed, f"{config.source}: mm_projector")
    if original.newline is not None:
        model.model.image_newline = torch.nn.Parameter(original.newline.float())
    if not trained_with:
        processor.chat_template = tokenizer.chat_template = add_sentencepiece_spaces(
            str(processor.chat_template), tokenizer
        )
    return model, processor


def _llm(config: ConvertConfig, original: Any) -> Any:
    """The causal LM around the checkpoint's weights, in their precision."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    from clips.model.loading import load_pretrained
    from llava_bridge.conversion.original_llava import llm_config

    where = f"{config.llm or config.source}: its LLM"
    settings = AutoConfig.from_pretrained(config.llm) if config.llm else llm_config(original.config)
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(settings)]
    weights = dict(original.llm)
    dtype = next(iter(weights.values())).dtype
    llm = load_pretrained(kind, None, where, config=settings, state_dict=weights, dtype=dtype)
    if unknown := sorted(weights.keys() - llm.state_dict().keys()):
        raise UserError(f"{where} has weights that its config.json has no place for: '{unknown[0]}'")
    llm.config.name_or_path = ""
    return llm


def _make_room(tokenizer: Any, llm: Any) -> None:
    """Rows for the tokens that the original lacks: the mean of all others, so that they are never the likeliest."""
    import torch

    from clips.model.loading import silence_transformers
    from llava_bridge.model.build import name_tokens

    name_tokens(tokenizer)
    known = llm.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        with silence_transformers(), torch.no_grad():
            llm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            for rows in (llm.get_input_embeddings().weight, llm.get_output_embeddings().weight):
                rows[known:] = rows[:known].mean(0, dtype=torch.float32)


def _image_processor(tower: str, aspect: str | None) -> Any:
    """The tower's preprocessing; ``pad`` first puts an image in the middle of a square of the mean color."""
    from transformers import AutoImageProcessor, LlavaImageProcessor

    from llava_bridge.encoders.transformers_source import image_size_of

    theirs = AutoImageProcessor.from_pretrained(tower)
    stated = theirs.to_dict()
    settings = {name: stated[name] for name in ("size", "resample", "image_mean", "image_std", "rescale_factor")}
    side = image_size_of(theirs)
    if side is None:
        raise UserError(f"vision_tower: {tower}: expected a preprocessing that says the size of images")
    crops = bool(stated.get("do_center_crop"))  # SigLIP's does not
    return LlavaImageProcessor(
        **settings, do_center_crop=crops, crop_size={"height": side, "width": side}, do_pad=aspect == "pad"
    )


# ---------------------------------------------------------------- transformers to original


def _to_original(config: ConvertConfig, asked: ConvertConfig) -> None:
    from huggingface_hub import save_torch_state_dict
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from clips.model.loading import library_errors_as_user_errors, load_pretrained
    from llava_bridge.conversion.original_llava import original_config, original_weights
    from llava_bridge.model.anyres import is_anyres_processor
    from llava_bridge.model.build import convert_tower_to_transformers
    from llava_bridge.model.load_llava import check_anyres_consistency
    from llava_bridge.model.modeling_vision import EncoderVisionModel

    source = Path(config.source)
    model = load_pretrained(AutoModelForImageTextToText, source, f"{source}: this LLaVA", dtype="auto")
    if isinstance(model.model.vision_tower, EncoderVisionModel) and not convert_tower_to_transformers(model):
        kind = model.config.vision_config.source
        raise UserError(f"{source}: the original LLaVA has no class for this tower ({kind}); expected CLIP's")
    with library_errors_as_user_errors(f"{source}: the processor of this LLaVA cannot be loaded"):
        processor = AutoProcessor.from_pretrained(source)
    check_anyres_consistency(model.config, processor.image_processor, str(source))
    if hasattr(model.model, "image_newline") and not is_anyres_processor(processor.image_processor):
        raise UserError(
            f"{source}: a LLaVA-NeXT whose processor makes no tiles, which the original layout does not have"
        )
    try:
        stated = original_config(model, processor, str(Path(config.output) / VISION_TOWER_DIR))
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    with atomic_artifact_dir(config.output, kind=_kind(config)) as partial:
        log_info(f"writing {config.output}")
        atomic_write(partial / "config.json", json.dumps(stated, indent=2, sort_keys=True) + "\n")
        weights = {name: value.contiguous() for name, value in original_weights(model).items()}
        save_torch_state_dict(weights, partial, max_shard_size=_SHARD, metadata={"format": "pt"})
        model.generation_config.save_pretrained(partial)
        _write_tokenizer(processor.tokenizer, config, partial)
        _write_tower(model.model.vision_tower, processor.image_processor, partial / VISION_TOWER_DIR)
        write_manifest(partial, kind=_kind(config), config=asked, parents={"source": source})
    log_info(f"{config.output}: LLaVA in the original layout; its tower is in {config.output}/{VISION_TOWER_DIR}")


def _slow_tokenizer(config: ConvertConfig) -> Path | None:
    """SentencePiece's file, which the original code reads, if there is one."""
    folders = [Path(folder) for folder in (config.source, config.llm) if folder is not None]
    return next((folder / _SLOW for folder in folders if (folder / _SLOW).is_file()), None)


def _write_tokenizer(tokenizer: Any, config: ConvertConfig, directory: Path) -> None:
    """The tokenizer, and in the slow form of older versions of transformers, which the original code uses."""
    tokenizer.save_pretrained(directory)
    slow = _slow_tokenizer(config)
    if slow is None:
        log_info(f"{config.source} has no {_SLOW}: the original code needs the LLM's; --llm DIR says where it is")
        return
    shutil.copyfile(slow, directory / _SLOW)
    path = directory / "tokenizer_config.json"
    stated = {name: value for name, value in safe_json_loads(path.read_text()).items() if value is not None}
    ways = ("lstrip", "normalized", "rstrip", "single_word", "special")
    stated["added_tokens_decoder"] = {
        str(number): {"content": token.content, **{way: getattr(token, way) for way in ways}}
        for number, token in tokenizer.added_tokens_decoder.items()
    }
    first = getattr(tokenizer.backend_tokenizer.pre_tokenizer, "prepend_scheme", None) == "first"
    stated |= {"tokenizer_class": "LlamaTokenizer", "legacy": not first}
    atomic_write(path, json.dumps(stated, indent=2) + "\n")


def _write_tower(tower: Any, image_processor: Any, directory: Path) -> None:
    """The tower with names that any version of transformers knows, and its preprocessing."""
    from safetensors.torch import save_file
    from transformers import CLIPImageProcessor

    from llava_bridge.encoders.transformers_source import image_size_of
    from llava_bridge.model.anyres import is_anyres_processor

    directory.mkdir()
    weights = {f"vision_model.{name}": value.contiguous() for name, value in tower.state_dict().items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    tower.config.architectures = ["CLIPVisionModel"]
    tower.config.save_pretrained(directory)
    names = CLIPImageProcessor().to_dict().keys()
    stated = {name: value for name, value in image_processor.to_dict().items() if name in names}
    if is_anyres_processor(image_processor):  # the original resizes the base image to a square itself
        stated |= {"size": {"shortest_edge": image_size_of(image_processor)}, "do_center_crop": True}
    CLIPImageProcessor(**{**stated, "do_pad": None}).save_pretrained(directory)
