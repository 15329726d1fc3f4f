"""Build a transformers LLaVA with its processor from an encoder and an LLM.

The default projector is LLaVA-1.5's ``mlp2x_gelu`` (two linear layers with GELU between), initialized as PyTorch
initializes linear layers, like the original LLaVA.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlamaTokenizer,
    LlavaNextProcessor,
    LlavaProcessor,
)

from clips.errors import UserError
from clips.model.loading import (
    has_adapters,
    library_errors_as_user_errors,
    load_pretrained,
    merge_adapters,
    silence_transformers,
)
from clips.model_refs import resolve_model_dir
from clips.safe_text import log_info
from clips.text_files import safe_json_loads
from llava_bridge.conversation import (
    IMAGE,
    ConversationEncoder,
    end_answers,
    resolve_chat_template,
    resolve_training_template,
)
from llava_bridge.encoders import load_encoder
from llava_bridge.encoders.encoder import VisionEncoder
from llava_bridge.encoders.transformers_source import FAMILIES, image_size_of
from llava_bridge.model.assembly_config import AssemblyConfig
from llava_bridge.model.image_processing import (
    effective_patch_size,
    is_anyres_processor,
    make_anyres_processor,
    make_image_processor,
    num_image_tokens,
    resolve_pinpoints,
)
from llava_bridge.model.llava_checks import is_llava, resolve_llm_dir
from llava_bridge.model.modeling_llava import (
    LLAVAS,
    AnyConfig,
    AnyLlava,
    BridgeLlavaConfig,
    BridgeLlavaNextConfig,
    new_projector,
    register,
)
from llava_bridge.model.modeling_vision import build_vision_model, resolve_feature_layer
from llava_bridge.projectors import ProjectorShape, num_output_tokens

PAD_TOKEN = "<pad>"
AnyProcessor = LlavaProcessor | LlavaNextProcessor


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaParts(AssemblyConfig):
    """The parts of a LLaVA, by name as for :class:`llava_bridge.training.train_config.LlavaTrainConfig`."""

    encoder: str
    llm: str

    @classmethod
    def of(cls, config: AssemblyConfig, *, encoder: str, llm: str) -> LlavaParts:
        """These parts, assembled as ``config`` states."""
        fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(AssemblyConfig)}
        return cls(encoder=encoder, llm=llm, **fields)


def build_llava(parts: LlavaParts, *, keep_bf16: bool = False) -> tuple[AnyLlava, AnyProcessor]:
    """Build the untrained LLaVA in float32, its encoder frozen; with ``keep_bf16`` an LLM stored in bf16 stays in it.

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
    config_class, model_class = LLAVAS[tiles, parts.projector.in_hf_llava]
    config = config_class(
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
    with torch.device("meta"):  # the parts take the place of its own; only projector and image_newline are new
        model = model_class(config)
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
    """The :class:`ConversationEncoder` of a LLaVA, with its own template or another one by name.

    With ``square_images`` an image has the tokens of one square, also in a LLaVA with tiles; with ``ends_answers`` the
    tokenizer's EOS token follows an answer that the template does not end.
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
    resolve_llm_dir(llm)
    return read_tokenizer(llm)


def read_tokenizer(llm: str) -> Any:
    """As :func:`load_tokenizer`, regardless of the directory's other files."""
    directory = resolve_model_dir(llm, "llm")
    fault = f"llm: the tokenizer of {llm} cannot be read"
    slow = not (directory / "tokenizer.json").is_file() and (directory / "tokenizer.model").is_file()
    if slow:
        fault += "; tokenizer.model needs a protobuf compatible with the installed sentencepiece (0.2.1 works with any)"
    with library_errors_as_user_errors(fault), silence_transformers():
        path = directory / "tokenizer_config.json"
        stated = safe_json_loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        is_llama = str(stated.get("tokenizer_class")).removesuffix("Fast") == "LlamaTokenizer"
        # By the model_type of original LLaVAs and of Mistral AutoTokenizer ignores this class for a tokenizer.model,
        # and its tokenizer does not put SentencePiece's space before a text.
        tokenizer = (
            LlamaTokenizer.from_pretrained(directory)
            if is_llama and slow
            else AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        )
        if is_llava(directory):  # its template may be in chat_template.json, which tokenizers do not read
            register()
            template = AutoProcessor.from_pretrained(directory, trust_remote_code=False).chat_template
            tokenizer.chat_template = template or tokenizer.chat_template
    if not tokenizer.is_fast:
        raise UserError(f"llm: {llm} has a slow tokenizer; expected tokenizer.json (the fast form)")
    if tokenizer.eos_token is None:
        raise UserError(f"llm: the tokenizer of {llm} has no end-of-text token (eos_token)")
    return tokenizer


def load_llm(llm: str, *, keep_bf16: bool = False) -> Any:
    """Load the causal LM of a directory, or that of a LLaVA, in float32.

    With ``keep_bf16`` a causal LM stored in bf16 stays in it.

    Raises:
        UserError: transformers cannot load it, or weights are missing.
    """
    directory = resolve_llm_dir(llm)
    if not is_llava(directory):
        dtype = torch.bfloat16 if keep_bf16 and is_stored_in_bf16(directory) else torch.float32
        return load_pretrained(AutoModelForCausalLM, directory, f"llm: {llm}", dtype=dtype)
    register()
    llava = load_pretrained(AutoModelForImageTextToText, directory, f"llm: {llm}", dtype=torch.float32)
    llava = merge_adapters(llava, directory)
    _neutralize(llava.config.text_config, _FACTORS | _CAPS)  # the LLaVA's head has the factor in its weights
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(llava.config.text_config)
    setattr(model, model.base_model_prefix, llava.model.language_model)
    model.set_output_embeddings(llava.lm_head)
    return model.eval()


def is_stored_in_bf16(directory: Path) -> bool:
    """Whether all weights of a directory except those of a vision tower are stored in bf16, without unmerged adapters.

    If they are loaded in it, they stay in the file's pages, which all processes of a machine share.
    """
    dtypes = {"F32"} if has_adapters(directory) else set()  # which are merged in float32
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
    token = AddedToken(IMAGE, special=True, normalized=False)
    if token not in tokenizer.added_tokens_decoder.values():
        tokenizer.add_tokens([token], special_tokens=True)


# ---------------------------------------------------------------- the output layer
# transformers' LLaVA uses the layer's output as the logits. Some LLMs process it further: Granite divides it by
# `logits_scaling`, Cohere and Falcon-H1 multiply it (`logit_scale`, `lm_head_multiplier`), Gemma 2 caps it with
# `final_logit_softcapping`.

# Config fields of the operations on the output, and their values without effect.
_FACTORS: dict[str, Any] = {"logits_scaling": 1.0, "logit_scale": 1.0, "lm_head_multiplier": 1.0}
_CAPS: dict[str, Any] = {"final_logit_softcapping": None}


def extract_lm_head(llm: Any) -> nn.Module:
    """Return an output layer with which a LLaVA has the logits of ``llm``.

    A factor is merged into the layer's weights. A tied layer is copied if it has a factor, or if the embedding is not
    called ``embed_tokens``, where transformers' LLaVA expects it. A cap is dropped, with a message: the LLM in the
    LLaVA has none. ``llm.config`` is updated.

    Raises:
        UserError: it has no output layer, processes its output in another way, has no key-value cache (as state
            space models), or needs more than embeddings: transformers' LLaVA does not support these.
    """
    layer, config = llm.get_output_embeddings(), llm.config
    if layer is None:
        raise UserError(f"llm: {config.model_type} has no output layer; expected a causal LM")
    with computing_in_float32(llm):
        outputs, logits = _outputs_and_logits(llm, layer)
    factor, scaled = float((logits * outputs).sum() / outputs.square().sum()), False
    if _neutralize(config, _CAPS):
        log_info(
            f"llm: {config.model_type} caps its logits, which LLaVAs do not: greedy answers are the same, but "
            "probabilities and losses differ from those of the LLM alone"
        )
    elif not torch.allclose(logits, outputs, rtol=1e-4, atol=1e-5, equal_nan=True):  # float16 may overflow
        scaled = torch.allclose(logits, factor * outputs, rtol=1e-4, atol=1e-5) and _neutralize(config, _FACTORS)
        if not scaled:
            raise UserError(
                f"llm: {config.model_type} processes the output layer's result further, which no LLaVA supports"
            )
    if scaled or (config.tie_word_embeddings and not hasattr(llm.base_model, "embed_tokens")):
        layer, config.tie_word_embeddings = copy.deepcopy(layer).float(), False
    if scaled:
        with torch.no_grad():
            for weight in layer.parameters():
                weight.mul_(factor)
    return layer


@contextlib.contextmanager
def computing_in_float32(model: nn.Module) -> Iterator[None]:
    """Meanwhile each module converts its weights in 16 bits to float32 for the time of its call."""
    stored: dict[nn.Parameter, Tensor] = {}

    def convert(module: nn.Module, _: Any) -> None:
        for weight in module.parameters(recurse=False):
            if weight.dtype in (torch.bfloat16, torch.float16):
                stored[weight] = weight.data
                weight.data = weight.data.float()

    def restore(module: nn.Module, _: Any, __: Any) -> None:
        for weight in module.parameters(recurse=False):
            if weight in stored:
                weight.data = stored.pop(weight)

    modules = list(model.modules())
    hooks = [module.register_forward_pre_hook(convert) for module in modules]
    hooks += [module.register_forward_hook(restore, always_call=True) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def without_flash_attention(llm: Any) -> Iterator[None]:
    """Meanwhile an LLM does not attend by FlashAttention, which supports neither float32 nor CPU."""
    attention = llm.config._attn_implementation  # a package or a kernel of the Hub
    llm.config._attn_implementation = "sdpa" if attention == "sdpa" else "eager"
    try:
        yield
    finally:
        llm.config._attn_implementation = attention


def _neutralize(config: Any, neutral: dict[str, Any]) -> bool:
    """Set these fields; return whether any had another value."""
    changed = [name for name, value in neutral.items() if getattr(config, name, value) != value]
    for name in changed:
        setattr(config, name, neutral[name])
    return bool(changed)


@torch.no_grad()
def _outputs_and_logits(llm: Any, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """For a few tokens the output of ``layer`` on the last hidden states, and the LLM's logits."""
    tokens = torch.arange(1, 5, device=llm.device)[None]
    was_training, _ = llm.training, llm.eval()
    base = llm.base_model(input_ids=tokens, use_cache=False)
    if not hasattr(base, "past_key_values"):
        raise UserError(f"llm: {llm.config.model_type} has no key-value cache, which transformers' LLaVA requires")
    logits = llm(input_ids=tokens, use_cache=False).logits
    embedded = llm.get_input_embeddings()(tokens)  # must be all that the LLM needs: an image is no token
    try:
        from_embeddings = llm.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        llm.base_model(inputs_embeds=embedded + 1, use_cache=False)  # Gemma 4 looks up the tokens of its embeddings
        equal = torch.allclose(from_embeddings, base.last_hidden_state, rtol=1e-3, atol=1e-4, equal_nan=True)
    except (RuntimeError, TypeError, ValueError):
        equal = False
    if not equal:
        raise UserError(
            f"llm: {llm.config.model_type} needs tokens in addition to their embeddings, but images in a LLaVA have "
            "only embeddings; expected another LLM, such as Gemma 2 or Qwen 3"
        )
    llm.train(was_training)
    return layer(base.last_hidden_state), logits
