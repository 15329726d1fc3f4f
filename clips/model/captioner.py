"""The captioner: a decoder that reads an image and its web caption and predicts the full synthetic caption.

Dimension letters: B samples, I image tokens, W web caption tokens, T learnable tokens, D decoder width, V vocabulary
rows, N counted target tokens of a batch. Source: [C] of `clips.method.recipes`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clips.errors import UserError
from clips.model.compute import group_by_length
from clips.model.losses import ChunkCrossEntropy, linear_cross_entropy
from clips.model.tokenizer import BOS, EOS, PAD, VOCAB_SIZE, ClipsTokenizer
from clips.model.towers import Towers, encode_image, encode_text

_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class CaptionerDims:
    """The sizes that determine the shapes of a captioner's weights, as in ``captioner_config.json``.

    Args:
        image_width: channels of the image tokens.
        text_width: channels of the text tower's tokens; None for a captioner that reads no text.
        width: the decoder's channels.
        layers: number of blocks.
        heads: attention heads of a block.
        length: number of learnable tokens.
        vocabulary: rows of the output head.
        teacher_forced: whether the target's tokens are embedded and added to the learnable ones.
    """

    image_width: int
    text_width: int | None
    width: int
    layers: int
    heads: int
    length: int
    vocabulary: int = VOCAB_SIZE
    teacher_forced: bool = False

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"captioner.width: expected a multiple of {self.heads} attention heads, got {self.width}")


def lower_right_mask(rows: int, columns: int, device: torch.device) -> Tensor:
    """Return the causal mask under which the last row attends to all columns, (rows, columns) bool."""
    return torch.ones(rows, columns, dtype=torch.bool, device=device).tril(columns - rows)


def combination_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Return the decoder's attention (B, heads, Q, C), under the combination mask of [C].

    Image and web caption tokens (the prefix) attend to each other, learnable token *i* to the full prefix and to the
    learnable tokens up to *i*.

    Args:
        query: (B, heads, Q, C), of all positions or of the learnable tokens only.
        key: (B, heads, prefix + T, C), of all positions.
        value: as ``key``.
        mask: `lower_right_mask` of the learnable tokens, (T, prefix + T).
    """
    # Two attentions without a dense mask over all positions, which would exclude flash attention on a GPU.
    length = mask.shape[-2]
    prefix, learnable = key.shape[2] - length, query[:, :, -length:]
    flash = False
    if query.is_cuda and mask.ndim == 2 and query.shape[-1] % 8 == 0:
        from torch.backends.cuda import SDPAParams, can_use_flash_attention

        flash = can_use_flash_attention(SDPAParams(learnable, key, value, None, 0.0, False, False))
    if flash:
        # torch.nn.attention.bias.causal_lower_right would choose it too, but torch's FLOP counter rejects its tensors.
        attended = torch.ops.aten._scaled_dot_product_flash_attention(learnable, key, value, is_causal=True)
        attended = cast("Tensor", attended[0])  # causal from the lower right in this operator
    else:
        attended = F.scaled_dot_product_attention(learnable, key, value, attn_mask=mask)
    if query.shape[2] == length:
        return attended
    query, key, value = (each[:, :, :prefix] for each in (query, key, value))
    return torch.cat([F.scaled_dot_product_attention(query, key, value), attended], dim=2)


def sample_tokens(tokens: Tensor, seeds: Tensor, ratio: float) -> Tensor:
    """Return a random ``ratio`` of each image's tokens (B, I, D), at least one, rounded down, in their order.

    The sample is a function of the image's seed (B,) int64 alone, so that it is the same in any batch, process and
    micro-batch: the tokens of the largest keys, which are SplitMix64 (Steele et al., 2014) of seed and position.
    """
    count = tokens.shape[1]
    places = torch.arange(1, count + 1, device=tokens.device)
    keys = seeds.to(tokens.device, non_blocking=True)[:, None] + places * (0x9E3779B97F4A7C15 - 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        keys = (keys ^ ((keys >> shift) & ((1 << (64 - shift)) - 1))) * (factor - 2**64)  # int64 has no logical shift
    keys = keys ^ ((keys >> 31) & ((1 << 33) - 1))
    drawn = keys.topk(max(1, int(count * ratio)), dim=1).indices.sort(dim=1).values
    return tokens.gather(1, drawn[..., None].expand(-1, -1, tokens.shape[2]))


class Block(nn.Module):
    """A pre-norm transformer block, batch first, that can compute only its last positions."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(width, eps=_EPSILON)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width, eps=_EPSILON)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)
        for linear in (self.query, self.key_value):
            nn.init.normal_(linear.weight, std=width**-0.5)
        for linear in (self.out, self.mlp_out):
            nn.init.normal_(linear.weight, std=width**-0.5 * (2 * layers) ** -0.5)
        nn.init.normal_(self.mlp_in.weight, std=(2 * width) ** -0.5)
        for linear in (self.query, self.key_value, self.out, self.mlp_in, self.mlp_out):
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, mask: Tensor, first: int = 0) -> Tensor:
        """Return positions ``first``… of the next layer, (B, L - first, D), from all positions (B, L, D).

        ``first`` is 0 or the first learnable token; see `combination_attention` for the mask.
        """
        y = self.norm_1(x)
        query = self._split(self.query(y[:, first:]))
        key, value = (self._split(part) for part in self.key_value(y).chunk(2, dim=-1))
        attended = combination_attention(query, key, value, mask)
        x = x[:, first:] + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.norm_2(x)), approximate="tanh"))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, L, D / heads)


class CaptionHead(nn.Module):
    """Output LayerNorm and bias-free vocabulary matrix.

    LayerNorm, softmax and loss are float32; an autocast applies to the matrix product only, which is the captioner's
    largest and takes less than half the time in bfloat16 (docs/scores/measurements.md).
    """

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=_EPSILON)
        self.weight = nn.Parameter(torch.randn(vocabulary, width) * width**-0.5)
        self.cross_entropy = ChunkCrossEntropy()

    def forward(self, hidden: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits (…, V) of hidden states (…, D), or, given labels (N,), their sum-reduced cross-entropy ()."""
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        with torch.autocast(device, enabled=False):
            normed = self.norm(hidden.float())
            if labels is None:
                return normed @ self.weight.t()
            return linear_cross_entropy(normed, self.weight, labels, dtype, self.cross_entropy)


class Captioner(nn.Module):
    """Decoder from image and web caption tokens to the synthetic caption's tokens.

    Learnable token *i* predicts target token *i*. With teacher forcing, which is not part of the method, token *i* of
    the target is added to learnable token *i*, so that previous words are known, as in CoCa.
    """

    def __init__(self, shape: CaptionerDims) -> None:
        super().__init__()
        self.config = shape
        self.image_projection = _projection(shape.image_width, shape.width)
        self.text_projection = None if shape.text_width is None else _projection(shape.text_width, shape.width)
        self.learnable_tokens = nn.Parameter(torch.randn(shape.length, shape.width))
        self.embedding = nn.Embedding(shape.vocabulary, shape.width) if shape.teacher_forced else None
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads, shape.layers) for _ in range(shape.layers))
        self.head = CaptionHead(shape.width, shape.vocabulary)

    def forward(self, image_tokens: Tensor, text_tokens: Tensor | None, target: Tensor, counted: Tensor) -> Tensor:
        """Return the sum-reduced cross-entropy () over the counted labels of a batch.

        Samples are decoded in groups of similar length, each only up to its last counted label: earlier tokens do not
        attend to later ones.

        Args:
            image_tokens: (B, I, image width) patch tokens of the image tower.
            text_tokens: (B, W, text width) tokens of the text tower for the web caption; None if it reads no text.
            target: (B, T) rows of ``ClipsTokenizer.encode_target``, on the CPU or the model's device.
            counted: (B, T) bool, the counted labels; label *i* is target token *i* + 1. On the CPU: what is computed
                depends on it.
        """
        device = image_tokens.device
        positions = torch.arange(1, counted.shape[1] + 1, device=counted.device)
        order, sizes, lengths = group_by_length((counted * positions).amax(dim=1).clamp(min=1), device, "captions")
        groups = list(zip(order.split(sizes), lengths, strict=True))
        selected = [counted[rows, :length].flatten().nonzero()[:, 0] for rows, length in groups]
        hidden, labels = [], []
        for (group, length), counted_indices in zip(groups, selected, strict=True):
            targets = target[group]
            labels.append(shift_labels(targets)[:, :length].flatten()[counted_indices])
            rows, indices = (value.to(device, non_blocking=True) for value in (group, counted_indices))
            image = image_tokens.index_select(0, rows)
            text = None if text_tokens is None else text_tokens.index_select(0, rows)
            hidden.append(self.decode(image, text, length, targets).flatten(0, 1).index_select(0, indices))
        return self.head(torch.cat(hidden), torch.cat(labels).to(device, non_blocking=True))

    def logits(self, image_tokens: Tensor, text_tokens: Tensor | None, target: Tensor | None = None) -> Tensor:
        """Return vocabulary logits (B, T, V), float32; ``target`` (B, T) is fed to a teacher-forced captioner."""
        length = None if target is None else target.shape[1]
        return self.head(self.decode(image_tokens, text_tokens, length, target))

    def decode(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor | None,
        length: int | None = None,
        target: Tensor | None = None,
    ) -> Tensor:
        """Return hidden states (B, length, D) of the first ``length`` learnable tokens (all if not given)."""
        queries = self.learnable_tokens[:length].expand(image_tokens.shape[0], -1, -1)
        if self.embedding is not None:
            assert target is not None
            queries = queries + self.embedding(target[:, : queries.shape[1]].to(queries.device, non_blocking=True))
        prefix = self.image_projection(image_tokens)
        if self.text_projection is not None:
            prefix = torch.cat([prefix, self.text_projection(text_tokens)], dim=1)
        start = prefix.shape[1]
        mask = lower_right_mask(queries.shape[1], start + queries.shape[1], prefix.device)
        x = torch.cat([prefix, queries.to(prefix.dtype)], dim=1)
        for number, block in enumerate(self.blocks, 1):
            first = start if number == len(self.blocks) else 0  # the last block's prefix is not used
            x = block(x, mask, first)
        return x


def _projection(inputs: int, width: int) -> nn.Linear:
    linear = nn.Linear(inputs, width, bias=False)
    nn.init.normal_(linear.weight, std=inputs**-0.5)
    return linear


def shift_labels(target: Tensor) -> Tensor:
    """Return labels (…, T) of target rows (…, T): without the begin token, with a pad appended."""
    return F.pad(target[..., 1:], (0, 1))


@torch.inference_mode()
def caption_images(towers: Towers, captioner: Captioner, images: Tensor, texts: Tensor | None) -> list[str]:
    """Return the captions of B images.

    Args:
        towers: an encoder's open_clip model, in evaluation mode.
        captioner: of the same encoder, in evaluation mode.
        images: (B, 3, S, S), normalized pixels.
        texts: (B, L) token sequences of their web captions; not used, and may be None, if the captioner reads no text.
    """
    image_tokens = encode_image(towers, images)[1].float()
    text_tokens = None
    if captioner.text_projection is not None and texts is not None:
        text_tokens = encode_text(towers, texts)[1].float()
    return [ClipsTokenizer().decode(tokens) for tokens in generate(captioner, image_tokens, text_tokens)]


def generate(captioner: Captioner, image_tokens: Tensor, text_tokens: Tensor | None) -> list[list[int]]:
    """Return the tokens of the captions of B images, without begin and end token.

    A captioner of learnable tokens predicts all words in parallel, a teacher-forced one word after word: the most
    probable token at each position.

    Args:
        captioner: in evaluation mode.
        image_tokens: (B, I, image width).
        text_tokens: (B, W, text width), or None if it reads no text.
    """
    if captioner.embedding is None:
        hidden = captioner.decode(image_tokens, text_tokens)  # the head runs per sample: it has 32,000 logits per word
        rows = [captioner.head(row).argmax(dim=-1).tolist() for row in hidden]
    else:
        tokens = torch.full((len(image_tokens), 1), BOS, device=image_tokens.device)
        ended = torch.zeros_like(tokens[:, 0], dtype=torch.bool)
        while tokens.shape[1] < captioner.config.length and not ended.all():
            hidden = captioner.decode(image_tokens, text_tokens, tokens.shape[1], tokens)
            logits = captioner.head(hidden[:, -1])
            logits[:, [PAD, BOS]] = -torch.inf
            following = logits.argmax(dim=-1)
            ended |= following == EOS
            tokens = torch.cat([tokens, following[:, None]], dim=1)
        rows = tokens.tolist()
    written = [itertools.takewhile(lambda token: token != EOS, row) for row in rows]
    return [[token for token in row if token not in {PAD, BOS}] for row in written]
