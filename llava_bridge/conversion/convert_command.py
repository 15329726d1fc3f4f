"""``llava-bridge convert``: LLaVAs from the original format to that of transformers, and back; without this package.

llava-bridge convert llava-v1.5-7b --output llava-1.5-7b-hf
llava-bridge convert runs/mine-llava --output mine-plain
llava-bridge convert runs/mine-llava --output mine-original --format original
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, Literal

from clips.core.artifact import atomic_artifact_dir, check_free, write_manifest
from clips.core.durable import atomic_write
from clips.errors import UserError
from clips.model_refs import resolve_model_dir
from clips.safe_text import log_info
from clips.text_files import safe_json_loads
from llava_bridge.model.llava_checks import is_llava, read_config, resolve_llava_dir

VISION_TOWER_DIR = "vision_tower"
"""The directory of the tower in a converted checkpoint, where the original code finds it."""
_TEMPLATES = {"llama": "vicuna_v1", "mistral": "mistral"}
_SLOW_TOKENIZER = "tokenizer.model"
_ORIGINAL_KIND = "llava_original"
_TILES_RESAMPLE = 3  # bicubic, PIL's default: the original resizes images for tiles by it, whatever its tower states


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Convert a LLaVA from the original format to that of transformers, or back.

    A LLaVA in the transformers format with a ViT of open_clip is written with transformers' own ``CLIPVisionModel``, if
    that computes the same: other programs, such as vLLM, then need no import of this package.

    Args:
        source: the directory, or ``ORG/NAME`` on the Hub: an original checkpoint, a projector (``mm_projector.bin``)
            with its config, or a LLaVA in the transformers format.
        output: the directory to write.
        format: the format to write: hf (transformers) or original (haotian-liu/LLaVA).
        vision_tower: for hf: a directory in the transformers format, or a name on the Hub, instead of the tower that
            the checkpoint names.
        llm: for hf: the LLM of a projector without one, a directory or a name on the Hub. For original: the directory
            of the ``tokenizer.model`` that the original code reads, if it is not in the source.
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
            raise UserError("vision_tower: expected none with format original, which uses the LLaVA's own")


def run_convert(config: ConvertConfig) -> None:
    """Convert the LLaVA.

    Raises:
        UserError: the source is missing, incomplete or already in that format, or the format does not support it.
    """
    llm = None if config.llm is None else str(resolve_model_dir(config.llm, "llm"))
    local = dataclasses.replace(config, source=str(resolve_model_dir(config.source, "source")), llm=llm)
    if not Path(local.source).is_dir():
        raise UserError(f"{local.source}: no such directory")
    check_free(local.output)
    if local.format == "original":
        resolve_llava_dir(local.source, "llava")
        _to_original(local, config)
    elif is_llava(local.source):
        _to_stock(local, config)
    else:
        _to_transformers(local, config)


# ---------------------------------------------------------------- transformers with a tower of this suite


def _to_stock(config: ConvertConfig, given: ConvertConfig) -> None:
    """Write a LLaVA whose ViT is open_clip's with transformers' own classes alone."""
    source = Path(config.source)
    stated = read_config(config.source)
    tower = stated.get("vision_config", {})
    if tower.get("model_type") != "llava_bridge_encoder" and stated["model_type"] in ("llava", "llava_next"):
        raise UserError(f"{source}: already in the transformers format; --format original writes the other")
    needs = f"{source}: already in the transformers format, and loads after `llava_bridge.register()`"
    if stated["model_type"] not in ("llava", "llava_next"):
        raise UserError(f"{needs}; transformers' LLaVA has no projector {stated.get('projector', {}).get('type')}")
    for field in ("vision_tower", "llm"):
        if getattr(config, field) is not None:
            raise UserError(f"{field}: expected none for a LLaVA in the transformers format")
    from llava_bridge.model.llava_files import convert_open_clip_tower, save_llava

    model, processor = _load(source)
    try:
        convert_open_clip_tower(model)
    except UserError as error:
        raise UserError(f"{needs}; {error}") from None
    with atomic_artifact_dir(config.output, kind="llava") as partial:
        log_info(f"writing {config.output}")
        save_llava(model, partial)
        processor.save_pretrained(partial)
        write_manifest(partial, kind="llava", config=given, parents={"source": str(source)})
    log_info(f"{config.output}: LLaVA of transformers' own classes")


def _load(source: Path) -> tuple[Any, Any]:
    """(model, processor) of a LLaVA in the transformers format, in its precision; in float32 with unmerged adapters."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from clips.model.loading import has_adapters, library_errors_as_user_errors, load_pretrained, merge_adapters
    from llava_bridge.model.modeling_llava import register

    register()
    dtype = "float32" if has_adapters(source) else "auto"
    model = load_pretrained(AutoModelForImageTextToText, source, f"{source}: this LLaVA", dtype=dtype)
    model = merge_adapters(model, source)
    with library_errors_as_user_errors(f"{source}: the processor of this LLaVA cannot be loaded"):
        return model, AutoProcessor.from_pretrained(source, trust_remote_code=False)


# ---------------------------------------------------------------- original to transformers


def _to_transformers(config: ConvertConfig, given: ConvertConfig) -> None:
    from transformers import AutoImageProcessor, LlavaImageProcessor

    from llava_bridge.conversion.original_llava import read_original
    from llava_bridge.encoders.transformers_source import image_size_of
    from llava_bridge.model.build import set_generation_config
    from llava_bridge.model.image_processing import max_image_tokens
    from llava_bridge.model.llava_files import convert_tower_to_transformers, save_llava

    original = read_original(Path(config.source), config.llm)
    name = config.vision_tower or original.config.get("mm_vision_tower")
    if name is None:
        raise UserError(f"vision_tower: {config.source} names none; expected a directory or a name on the Hub")
    inside = Path(config.source) / Path(name).name
    is_inside = config.vision_tower is None and inside.is_dir()
    tower = str(inside if is_inside else resolve_model_dir(name, "vision_tower"))
    model, processor = _build(config, original, tower)
    if original.pinpoints is None:  # the tower's own preprocessing, with LLaVA-1.5's square of the mean color
        own = AutoImageProcessor.from_pretrained(tower, trust_remote_code=False)
        preprocessing, side = own.to_dict(), image_size_of(own)
        if side is None:
            raise UserError(f"vision_tower: {tower}: expected a preprocessing that states the image size")
        same = ("size", "resample", "image_mean", "image_std", "rescale_factor", "do_rescale", "do_normalize")
        processor.image_processor = LlavaImageProcessor(
            **{field: preprocessing[field] for field in same},
            do_center_crop=bool(preprocessing.get("do_center_crop")),  # SigLIP's does not
            crop_size={"height": side, "width": side},
            do_pad=original.config.get("image_aspect_ratio") == "pad",
        )
    else:
        processor.image_processor.resample = _TILES_RESAMPLE
    set_generation_config(model, processor)
    stock = convert_tower_to_transformers(model) and original.projector_name == "mlp2x_gelu"
    dtype = next(iter(original.llm.values())).dtype
    model.to(dtype)
    with atomic_artifact_dir(config.output, kind="llava") as partial:
        log_info(f"writing {config.output}")
        save_llava(model, partial)
        processor.save_pretrained(partial)
        if (slow := _slow_tokenizer(config)) is not None:
            shutil.copyfile(slow, partial / slow.name)
        paths = {"source": config.source, "llm": config.llm, "vision_tower": tower}
        parents = {name: path for name, path in paths.items() if path is not None}
        write_manifest(partial, kind="llava", config=given, parents=parents, dtype=str(dtype))
    needs = "" if stock else ", needs `llava_bridge.register()`"
    tokens = model.config.image_seq_length if original.pinpoints is None else f"up to {max_image_tokens(processor):,}"
    log_info(f"{config.output}: LLaVA in the transformers format, {dtype}, {tokens} tokens per image{needs}")


def _build(config: ConvertConfig, original: Any, tower: str) -> tuple[Any, Any]:
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    from clips.model.loading import load_pretrained, silence_transformers
    from llava_bridge.conversation import add_sentencepiece_spaces, is_wrapped_template
    from llava_bridge.conversion.original_llava import LLM_TYPES, llm_config, rename_hf_projector
    from llava_bridge.encoders import load_encoder
    from llava_bridge.encoders.encoder import load_weights
    from llava_bridge.model.build import LlavaParts, build_llava_from_parts, name_tokens, read_tokenizer
    from llava_bridge.projectors import ProjectorConfig

    tokenizer = read_tokenizer(config.llm or config.source)
    template = config.chat_template
    from_this_suite = template == "auto" and is_wrapped_template(tokenizer.chat_template)
    if template == "auto" and tokenizer.chat_template is None:
        template = _TEMPLATES[LLM_TYPES[original.config["model_type"]]]
        log_info(f"chat_template: {template}, since the checkpoint states none; --chat_template sets another")
    try:
        encoder = load_encoder(f"transformers:{tower}")
    except UserError as error:
        raise UserError(f"vision_tower: {str(error).removeprefix('encoder: ')}; --vision_tower DIR sets it") from None
    if original.tower:
        weights = {f"model.{name}": value.float() for name, value in original.tower.items()}
        encoder = dataclasses.replace(encoder, weights=weights)
    has_class_token = original.config.get("mm_vision_select_feature", "patch") == "cls_patch"
    parts = LlavaParts(
        encoder=tower,
        llm=config.llm or config.source,
        vision_feature_layer=original.config.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="full" if has_class_token else "default",
        projector=ProjectorConfig(type=original.projector_name),
        image_aspect_ratio="squash" if original.pinpoints is None else "anyres",
        image_grid_pinpoints=original.pinpoints,
        chat_template=template,
    )

    # The LLM in its precision. Rows for missing special tokens are the mean of all others, so that no such token is the
    # most probable one.
    where = f"{config.llm or config.source}: its LLM"
    settings = (
        AutoConfig.from_pretrained(config.llm, trust_remote_code=False) if config.llm else llm_config(original.config)
    )
    model_class, state = MODEL_FOR_CAUSAL_LM_MAPPING[type(settings)], dict(original.llm)
    dtype = next(iter(state.values())).dtype
    llm = load_pretrained(model_class, None, where, config=settings, state_dict=state, dtype=dtype)
    if unknown := sorted(state.keys() - llm.state_dict().keys()):
        raise UserError(f"{where} has weights that its config.json does not describe: '{unknown[0]}'")
    llm.config.name_or_path = ""
    name_tokens(tokenizer)
    known = llm.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        with silence_transformers(), torch.no_grad():
            llm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            for rows in (llm.get_input_embeddings().weight, llm.get_output_embeddings().weight):
                rows[known:] = rows[:known].mean(0, dtype=torch.float32)

    model, processor = build_llava_from_parts(parts, encoder, tokenizer, llm)
    projector = model.model.multi_modal_projector
    names = dict(zip(rename_hf_projector(projector.state_dict()), projector.state_dict(), strict=True))
    renamed = {names.get(name, name): value for name, value in original.projector.items()}
    load_weights(projector, renamed, f"{config.source}: mm_projector")
    if original.newline is not None:
        model.model.image_newline = torch.nn.Parameter(original.newline.float())
    if not from_this_suite:
        spaced = add_sentencepiece_spaces(str(processor.chat_template), tokenizer)
        processor.chat_template = tokenizer.chat_template = spaced
    return model, processor


# ---------------------------------------------------------------- transformers to original


def _to_original(config: ConvertConfig, given: ConvertConfig) -> None:
    from huggingface_hub import save_torch_state_dict
    from safetensors.torch import save_file
    from transformers import CLIPImageProcessor

    from llava_bridge.conversion.original_llava import original_config, original_weights
    from llava_bridge.encoders.transformers_source import image_size_of
    from llava_bridge.model.image_processing import is_anyres_processor
    from llava_bridge.model.llava_files import (
        MAX_SHARD_SIZE,
        check_anyres_consistency,
        convert_open_clip_tower,
        convert_tower_to_transformers,
    )
    from llava_bridge.model.modeling_vision import EncoderVisionModel

    source = Path(config.source)
    model, processor = _load(source)
    if isinstance(model.model.vision_tower, EncoderVisionModel) and not convert_tower_to_transformers(model):
        try:
            convert_open_clip_tower(model, clip_only=True)
        except UserError as error:
            raise UserError(f"{source}: the original LLaVA has CLIP's towers only; {error}") from None
    check_anyres_consistency(model.config, processor.image_processor, str(source))
    if hasattr(model.model, "image_newline") and not is_anyres_processor(processor.image_processor):
        raise UserError(
            f"{source}: a LLaVA-NeXT whose processor makes no tiles, which the original format does not support"
        )
    if is_anyres_processor(processor.image_processor) and processor.image_processor.resample != _TILES_RESAMPLE:
        raise UserError(
            f"{source}: resample: the original LLaVA resizes tiles by {_TILES_RESAMPLE} (bicubic), "
            f"got {int(processor.image_processor.resample)}"
        )
    try:
        stated = original_config(model, processor, str(Path(config.output) / VISION_TOWER_DIR))
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    with atomic_artifact_dir(config.output, kind=_ORIGINAL_KIND) as partial:
        log_info(f"writing {config.output}")
        atomic_write(partial / "config.json", json.dumps(stated, indent=2, sort_keys=True) + "\n")
        weights = {name: value.contiguous() for name, value in original_weights(model).items()}
        save_torch_state_dict(weights, partial, max_shard_size=MAX_SHARD_SIZE, metadata={"format": "pt"})
        model.generation_config.save_pretrained(partial)
        _write_tokenizer(processor.tokenizer, config, partial)
        folder, tower, images = partial / VISION_TOWER_DIR, model.model.vision_tower, processor.image_processor
        folder.mkdir()
        # names that every version of transformers reads
        weights = {f"vision_model.{name}": value.contiguous() for name, value in tower.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        tower.config.architectures = ["CLIPVisionModel"]
        tower.config.save_pretrained(folder)
        names = CLIPImageProcessor().to_dict().keys()
        stated = {name: value for name, value in images.to_dict().items() if name in names}
        if is_anyres_processor(images):  # the original resizes the base image to a square itself
            stated |= {"size": {"shortest_edge": image_size_of(images)}, "do_center_crop": True}
        CLIPImageProcessor(**{**stated, "do_pad": None}).save_pretrained(folder)
        write_manifest(partial, kind=_ORIGINAL_KIND, config=given, parents={"source": source})
    log_info(f"{config.output}: LLaVA in the original format; its tower is in {config.output}/{VISION_TOWER_DIR}")


def _slow_tokenizer(config: ConvertConfig) -> Path | None:
    """The SentencePiece file, which the original code reads; None if it is missing."""
    files = [Path(folder) / _SLOW_TOKENIZER for folder in (config.source, config.llm) if folder is not None]
    return next((file for file in files if file.is_file()), None)


def _write_tokenizer(tokenizer: Any, config: ConvertConfig, directory: Path) -> None:
    """Write the tokenizer, also in the slow form that the original code's version of transformers reads."""
    tokenizer.save_pretrained(directory)
    slow = _slow_tokenizer(config)
    if slow is None:
        log_info(f"{config.source} has no {_SLOW_TOKENIZER}: the original code needs the LLM's; set it by --llm DIR")
        return
    shutil.copyfile(slow, directory / _SLOW_TOKENIZER)
    path = directory / "tokenizer_config.json"
    stated = {name: value for name, value in safe_json_loads(path.read_text()).items() if value is not None}
    options = ("lstrip", "normalized", "rstrip", "single_word", "special")
    stated["added_tokens_decoder"] = {
        str(number): {"content": token.content, **{option: getattr(token, option) for option in options}}
        for number, token in tokenizer.added_tokens_decoder.items()
    }
    first = getattr(tokenizer.backend_tokenizer.pre_tokenizer, "prepend_scheme", None) == "first"
    stated |= {"tokenizer_class": "LlamaTokenizer", "legacy": not first}
    atomic_write(path, json.dumps(stated, indent=2) + "\n")
