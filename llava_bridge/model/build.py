"""Build a transformers LLaVA with its processor from an encoder and an LLM.

The default projector is LLaVA-1.5's ``mlp2x_gelu`` (two linear layers with GELU between), initialized as PyTorch
initializes linear layers, like the original LLaVA.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlavaNextProcessor,
    LlavaProcessor,
)

from clips.errors import UserError
from clips.model.loading import library_errors_as_user_errors, load_pretrained, silence_transformers
from clips.model_refs import resolve_model_dir
from llava_bridge.conversation import (
    IMAGE,
    ConversationEncoder,
    end_answers,
    resolve_chat_template,
    resolve_training_template,
)
from llava_bridge.encoders import load_encoder
from llava_bridge.encoders.encoder import VisionEncoder
from llava_bridge.encoders.transformers_families import FAMILIES
from llava_bridge.encoders.transformers_source import image_size_of
from llava_bridge.model.anyres import (
    effective_patch_size,
    is_anyres_processor,
    make_anyres_processor,
    num_image_tokens,
    resolve_pinpoints,
)
from llava_bridge.model.assembly_config import AssemblyConfig
from llava_bridge.model.auto_registration import register
from llava_bridge.model.configuration_llava import BridgeLlavaConfig, BridgeLlavaNextConfig
from llava_bridge.model.image_processing import make_image_processor
from llava_bridge.model.llava_checks import check_llm_dir, is_llava
from llava_bridge.model.lm_head import extract_lm_head, neutralize_logit_scaling
from llava_bridge.model.modeling_llava import (
    AnyConfig,
    AnyLlava,
    config_class,
    empty_llava,
    new_projector,
)
from llava_bridge.model.modeling_vision import build_vision_model, resolve_feature_layer
from llava_bridge.projectors import ProjectorShape, num_output_tokens

PAD_TOKEN = "<pad>"
AnyProcessor = LlavaProcessor | LlavaNextProcessor


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaParts(AssemblyConfig):
    """The parts of a LLaVA.

    Args:
        encoder: see :mod:`llava_bridge.encoders`.
        llm: a directory with a transformers causal LM and its tokenizer, or a LLaVA directory, whose LLM is used; or
            the Hub repo id of either.
    """

    encoder: str
    llm: str

    @classmethod
    def of(cls, config: AssemblyConfig, *, encoder: str, llm: str) -> LlavaParts:
        """These parts, assembled as ``config`` states."""
        fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(AssemblyConfig)}
        return cls(encoder=encoder, llm=llm, **fields)


def build_llava(parts: LlavaParts, *, keep_bf16: bool = False) -> tuple[AnyLlava, AnyProcessor]:
    """Build the untrained LLaVA in float32, its encoder frozen; ``keep_bf16`` as for :func:`load_llm`.

    Raises:
        UserError: an encoder or LLM is missing, incomplete or incompatible.
    """
    torch.manual_seed(parts.seed)
    encoder, tokenizer = load_encoder(parts.encoder, parts.image_size), load_tokenizer(parts.llm)
    return build_llava_from_parts(parts, encoder, tokenizer, load_llm(parts.llm, keep_bf16=keep_bf16))


def build_llava_from_parts(
    parts: LlavaParts, encoder: VisionEncoder, tokenizer: Any, llm: Any
) -> tuple[AnyLlava, AnyProcessor]:
    """Build the LLaVA of loaded parts; missing special tokens are added to tokenizer and LLM.

    Raises:
        UserError: they are incompatible.
    """
    register()  # transformers' LLaVA builds its tower by AutoModel
    vision = build_vision_model(encoder, parts.vision_feature_layer)
    add_tokens(tokenizer, llm)
    layers = resolve_feature_layer(vision.tower, parts.vision_feature_layer)
    use_class_token = parts.vision_feature_select_strategy == "full"
    if use_class_token and not vision.config.class_token:
        raise UserError(
            f"vision_feature_select_strategy: expected default, as {parts.encoder} has no class token, got full"
        )
    shape = ProjectorShape(
        patches=(vision.config.image_size // vision.config.patch_size) ** 2,
        width=vision.config.hidden_size * (len(layers) if isinstance(layers, list) else 1),
        llm=llm.config.hidden_size,
        extra=int(use_class_token),
    )
    extra_fields: dict[str, Any] = {}
    tiles = parts.image_aspect_ratio == "anyres"
    if not parts.projector.in_hf_llava:
        extra_fields |= {"projector": dataclasses.asdict(parts.projector), "projector_shape": vars(shape)}
    if tiles:
        vision.config.patch_size = effective_patch_size(parts.projector, shape, encoder.pixels.size)
        extra_fields["image_grid_pinpoints"] = resolve_pinpoints(encoder.pixels.size, parts.image_grid_pinpoints)
    head = extract_lm_head(llm)
    config = config_class(tiles=tiles, hf_projector=parts.projector.in_hf_llava)(
        vision_config=vision.config,
        text_config=llm.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=num_output_tokens(parts.projector, shape),
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default" if vision.config.class_token and not use_class_token else "full",
        vision_feature_layer=layers,
        tie_word_embeddings=llm.config.tie_word_embeddings,
        **extra_fields,
    )
    model = empty_llava(config)  # the parts take the place of its own; only projector and image_newline are new
    model.model.vision_tower = vision
    model.model.multi_modal_projector = new_projector(config)
    if tiles:  # the token that ends a row of tile features, initialized as in the original LLaVA
        width = llm.config.hidden_size
        model.model.image_newline = nn.Parameter(torch.randn(width) / width**0.5)
    model.model.language_model = llm.base_model
    model.lm_head = head
    model.eval()
    if tiles:
        images = make_anyres_processor(encoder.pixels, config.image_grid_pinpoints)
    else:
        images = make_image_processor(encoder.pixels, parts.image_aspect_ratio)  # type: ignore[arg-type]
    template = resolve_training_template(tokenizer.chat_template, parts.chat_template, tokenizer)
    processor = build_processor(images, tokenizer, encoder.pixels.size, config.image_seq_length, template)
    set_generation_config(model, processor)
    return model, processor


def build_processor(images: Any, tokenizer: Any, size: int, tokens: int, template: str) -> AnyProcessor:
    """Build the processor for images, or tiles, of ``size`` pixels that become ``tokens`` tokens.

    transformers' processor computes the number of an image's tokens from the patch size. A patch of the image's size
    and ``tokens - 1`` additional tokens give the correct number for any projector. Tiles, which are joined, need the
    real patches.
    """
    tokenizer.chat_template = template
    tokenizer.padding_side = "left"
    processor_class: Any = LlavaProcessor
    patch_size, others = size, tokens - 1
    if is_anyres_processor(images):
        processor_class, patch_size, others = LlavaNextProcessor, size // math.isqrt(tokens), 0
    return processor_class(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="full",
        chat_template=template,
        num_additional_image_tokens=others,
    )


def make_conversation_encoder(
    model: AnyLlava,
    processor: AnyProcessor,
    template: str | None = None,
    *,
    square_images: bool = False,
    ends_answers: bool = False,
) -> ConversationEncoder:
    """Return the :class:`ConversationEncoder` of a LLaVA.

    Args:
        model: the LLaVA.
        processor: its processor.
        template: name of a chat template; None uses its own.
        square_images: an image has the tokens of one square, also in a LLaVA with tiles.
        ends_answers: the tokenizer's EOS token follows an answer that the template does not end.
    """
    own, tokenizer = processor.chat_template or processor.tokenizer.chat_template, processor.tokenizer
    if template is None:
        chosen = resolve_chat_template(own, "auto")
    else:
        chosen = resolve_training_template(own, template, tokenizer)
    vision: Any = model.config.vision_config
    tokens: Any = (vision.image_size // vision.patch_size) ** 2 if square_images else model.config.image_seq_length
    tiles = is_anyres_processor(processor.image_processor) and not square_images
    if tiles:
        tokens = functools.partial(num_image_tokens, processor)
    chat = ConversationEncoder(tokenizer, chosen, tokens)
    if ends_answers and chat.end_token is None:
        return ConversationEncoder(tokenizer, end_answers(chosen), tokens)
    return chat


def state_image_tokens(config: AnyConfig, processor: AnyProcessor) -> None:
    """Let config and processor state the number of an image's tokens, if the tower is one of transformers.

    Configs without ``image_seq_length`` state LLaVA-1.5's 576, and older processors do not count the class token, or
    state no patch size.
    """
    vision: Any = config.vision_config
    if isinstance(config, BridgeLlavaConfig | BridgeLlavaNextConfig) or vision.model_type not in FAMILIES:
        return
    family, strategy = FAMILIES[vision.model_type], config.vision_feature_select_strategy
    side, patch, others = image_size_of(processor.image_processor), family.size_step(vision), family.prefix(vision)
    config.image_seq_length = ((side or vision.image_size) // patch) ** 2 + others - (strategy == "default")
    processor.patch_size, processor.num_additional_image_tokens = patch, others
    processor.vision_feature_select_strategy = strategy


def set_generation_config(model: AnyLlava, processor: AnyProcessor) -> None:
    """Set greedy decoding that stops at the template's EOS token.

    Raises:
        UserError: see :meth:`ConversationEncoder.check_end` and :meth:`ConversationEncoder.check_prompts`.
    """
    tokenizer, chat = processor.tokenizer, make_conversation_encoder(model, processor)
    chat.check_end()
    chat.check_prompts()  # before the first stage, which may have its own template
    end = tokenizer.convert_tokens_to_ids(chat.end_token)
    generation = model.generation_config
    generation.do_sample = False
    generation.temperature = generation.top_p = generation.top_k = None
    generation.bos_token_id = tokenizer.bos_token_id
    generation.pad_token_id = tokenizer.pad_token_id
    generation.eos_token_id = sorted({end, tokenizer.eos_token_id} - {None})


def load_tokenizer(llm: str) -> Any:
    """Load the tokenizer of an LLM directory.

    Raises:
        UserError: no directory, no tokenizer in it, or a slow one (only fast ones map characters to tokens).
    """
    check_llm_dir(llm)
    return read_tokenizer(llm)


def read_tokenizer(llm: str) -> Any:
    """As :func:`load_tokenizer`, regardless of the directory's other files."""
    directory = resolve_model_dir(llm, "llm")
    fault = f"llm: the tokenizer of {llm} cannot be read"
    if not (directory / "tokenizer.json").is_file() and (directory / "tokenizer.model").is_file():
        fault += "; tokenizer.model needs a protobuf compatible with the installed sentencepiece (0.2.1 works with any)"
    with library_errors_as_user_errors(fault), silence_transformers():
        tokenizer = AutoTokenizer.from_pretrained(directory)
        if is_llava(directory):  # its template may be in chat_template.json, which tokenizers do not read
            register()
            stated = AutoProcessor.from_pretrained(directory).chat_template
            tokenizer.chat_template = stated or tokenizer.chat_template
    if not tokenizer.is_fast:
        raise UserError(f"llm: {llm} has a slow tokenizer; expected tokenizer.json (the fast form)")
    if tokenizer.eos_token is None:
        raise UserError(f"llm: the tokenizer of {llm} has no end-of-text token (eos_token)")
    return tokenizer


def load_llm(llm: str, *, keep_bf16: bool = False) -> Any:
    """Load the causal LM of a directory, or that of a LLaVA, in float32.

    Args:
        llm: the directory.
        keep_bf16: whether a causal LM stored in bf16 stays in it.

    Raises:
        UserError: transformers cannot load it, or weights are missing.
    """
    check_llm_dir(llm)
    directory = resolve_model_dir(llm, "llm")
    if not is_llava(directory):
        dtype = torch.bfloat16 if keep_bf16 and is_stored_in_bf16(directory) else torch.float32
        return load_pretrained(AutoModelForCausalLM, directory, f"llm: {llm}", dtype=dtype)
    register()
    llava = load_pretrained(AutoModelForImageTextToText, directory, f"llm: {llm}", dtype=torch.float32)
    neutralize_logit_scaling(llava.config.text_config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(llava.config.text_config)
    setattr(model, model.base_model_prefix, llava.model.language_model)
    model.set_output_embeddings(llava.lm_head)
    return model.eval()


def is_stored_in_bf16(directory: Path) -> bool:
    """Whether all weights of a directory except those of a vision tower are stored in bf16.

    If they are loaded in it, they stay in the file's pages, which all processes of a machine share.
    """
    dtypes = set()
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            dtypes |= {file.get_slice(name).get_dtype() for name in file.keys() if "vision_tower" not in name}  # noqa: SIM118
    return dtypes == {"BF16"}


def add_tokens(tokenizer: Any, llm: Any) -> None:
    """Ensure an image token and a padding token, and an LLM embedding for each."""
    name_tokens(tokenizer)
    if len(tokenizer) > llm.get_input_embeddings().num_embeddings:
        for layer in filter(None, (llm.get_input_embeddings(), llm.get_output_embeddings())):
            layer.float()  # the new rows are not rounded
        with silence_transformers():
            llm.resize_token_embeddings(len(tokenizer), mean_resizing=True)
    llm.config.pad_token_id = tokenizer.pad_token_id


def name_tokens(tokenizer: Any) -> None:
    """Ensure an image token and a padding token in the vocabulary."""
    add_image_token(tokenizer)
    if tokenizer.pad_token is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})


def add_image_token(tokenizer: Any) -> None:
    """Ensure an image token, also where the vocabulary has its text as an ordinary piece, which is split."""
    from tokenizers import AddedToken

    token = AddedToken(IMAGE, special=True, normalized=False)
    if token not in tokenizer.added_tokens_decoder.values():
        tokenizer.add_tokens([token], special_tokens=True)
