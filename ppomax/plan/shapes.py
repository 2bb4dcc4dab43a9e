"""Shapes of language models: parameters by module, counted on the meta device, where weights take no memory."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppomax.errors import UserError
from ppomax.models.fresh import MAX_POSITIONS, SIZES
from ppomax.regular_file import expand_path

# name -> (layers, width, ffn, heads, key-value heads, head width, vocabulary, tied, family); written down from the published
# config.json of each model, since a hub may be out of reach. Parameter totals are tested.
NAMED: dict[str, tuple[int, int, int, int, int, int, int, bool, str]] = {
    "llama-7b": (32, 4096, 11008, 32, 32, 128, 32000, False, "llama"),
    "llama-13b": (40, 5120, 13824, 40, 40, 128, 32000, False, "llama"),
    "llama-33b": (60, 6656, 17920, 52, 52, 128, 32000, False, "llama"),
    "llama-70b": (80, 8192, 28672, 64, 8, 128, 32000, False, "llama"),
    "llama-3-1b": (16, 2048, 8192, 32, 8, 64, 128256, True, "llama"),
    "llama-3-3b": (28, 3072, 8192, 24, 8, 128, 128256, True, "llama"),
    "llama-3-8b": (32, 4096, 14336, 32, 8, 128, 128256, False, "llama"),
    "llama-3-70b": (80, 8192, 28672, 64, 8, 128, 128256, False, "llama"),
    "mistral-7b": (32, 4096, 14336, 32, 8, 128, 32000, False, "mistral"),
    "qwen2.5-0.5b": (24, 896, 4864, 14, 2, 64, 151936, True, "qwen2"),
    "qwen2.5-1.5b": (28, 1536, 8960, 12, 2, 128, 151936, True, "qwen2"),
    "qwen2.5-3b": (36, 2048, 11008, 16, 2, 128, 151936, True, "qwen2"),
    "qwen2.5-7b": (28, 3584, 18944, 28, 4, 128, 152064, False, "qwen2"),
    "qwen2.5-14b": (48, 5120, 13824, 40, 8, 128, 152064, False, "qwen2"),
    "qwen2.5-32b": (64, 5120, 27648, 40, 8, 128, 152064, False, "qwen2"),
    "qwen2.5-72b": (80, 8192, 29568, 64, 8, 128, 152064, False, "qwen2"),
    "qwen3-0.6b": (28, 1024, 3072, 16, 8, 128, 151936, True, "qwen3"),
    "qwen3-1.7b": (28, 2048, 6144, 16, 8, 128, 151936, True, "qwen3"),
    "qwen3-4b": (36, 2560, 9728, 32, 8, 128, 151936, True, "qwen3"),
    "qwen3-8b": (36, 4096, 12288, 32, 8, 128, 151936, False, "qwen3"),
    "qwen3-14b": (40, 5120, 17408, 40, 8, 128, 151936, False, "qwen3"),
    "qwen3-32b": (64, 5120, 25600, 64, 8, 128, 151936, False, "qwen3"),
}
NAMED |= {
    f"new-{name}": (s.layers, s.width, s.ffn, s.heads, s.kv_heads, s.width // s.heads, s.vocab_size, s.tied, "llama")
    for name, s in SIZES.items()
}
CONTEXTS = {
    "llama-7b": 2048, "llama-13b": 2048, "llama-33b": 2048, "llama-70b": 4096, "llama-3-1b": 131072, "llama-3-3b": 131072,
    "llama-3-8b": 8192, "llama-3-70b": 8192, "qwen3": 40960, "new": MAX_POSITIONS,
}  # fmt: skip
"""tokens of a named shape's context, by its name or family; 32768 for the others"""
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""model types whose layers the formulas describe: attention with rotary positions and a gated feed-forward part"""


@dataclass(frozen=True)
class Shape:
    """One causal language model, by its numbers."""

    name: str
    layers: int
    width: int
    """D, of the residual stream"""
    ffn: int
    """F, of the feed-forward part"""
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    """V"""
    tied: bool
    """the unembedding is the embedding"""
    head_norms: bool
    """queries and keys are normalised head by head (Qwen3)"""
    layer_parameters: int
    """of one layer"""
    layer_matrices: int
    """of one layer, in weight matrices alone"""
    other_parameters: int
    """norms outside the layers"""
    context: int | None
    """tokens it can read; None: its config does not say"""
    reward_model: bool
    """its config says that it scores, and so it cannot be a policy"""

    @property
    def embedding(self) -> int:
        """V x D parameters."""
        return self.vocabulary * self.width

    @property
    def backbone(self) -> int:
        """Parameters without an unembedding of its own."""
        return self.embedding + self.layers * self.layer_parameters + self.other_parameters

    @property
    def causal(self) -> int:
        """Parameters of the language model."""
        return self.backbone + (0 if self.tied else self.embedding)

    @property
    def scalar(self) -> int:
        """Parameters of a critic or reward model on this backbone: one linear unit instead of the unembedding."""
        return self.backbone + self.width

    @property
    def attention_width(self) -> int:
        """Of all queries together."""
        return self.heads * self.head_width

    @property
    def kv_width(self) -> int:
        """Of all keys, or all values, of one layer."""
        return self.kv_heads * self.head_width

    @property
    def matrices(self) -> int:
        """Parameters that a token is multiplied with, without embedding and unembedding."""
        return self.layers * self.layer_matrices


def shape_of(name: str, trust_remote_code: bool = False) -> Shape:
    """The shape called ``name`` (`llama-7b`, `new-6m`, ...), or of a model directory or config.json."""
    if name in NAMED:
        return count(name, _config_of(name))
    path = Path(expand_path(name))
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        close = difflib.get_close_matches(name.lower(), NAMED, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known shapes: {', '.join(NAMED)}"
        raise UserError(f"{name}: neither a known shape nor a model directory or config.json; {hint}")
    return count(name, _read_config(file, trust_remote_code))


def _config_of(name: str) -> Any:
    from transformers import AutoConfig

    layers, width, ffn, heads, kv_heads, head_width, vocabulary, tied, family = NAMED[name]
    return AutoConfig.for_model(
        family, num_hidden_layers=layers, hidden_size=width, intermediate_size=ffn, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head_width, vocab_size=vocabulary, tie_word_embeddings=tied,
        max_position_embeddings=CONTEXTS.get(name) or CONTEXTS.get(name.partition("-")[0], 32768),
    )  # fmt: skip


def _read_config(file: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    try:
        if not isinstance(json.loads(file.read_text(encoding="utf-8")), dict):
            raise ValueError("not a mapping")
        return AutoConfig.from_pretrained(file, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{file}: cannot be read as a model's config: {str(error).strip().splitlines()[0]}") from None


def count(name: str, config: Any) -> Shape:
    """Make the model on the meta device and count its parameters by module."""
    import torch
    from transformers import AutoModelForCausalLM

    text = config.get_text_config()
    if getattr(text, "model_type", None) not in FAMILIES:
        raise UserError(
            f"{name}: a model of type {getattr(text, 'model_type', '?')}; the plan's formulas hold for {', '.join(FAMILIES)}"
        )
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(f"{name}: no language model from this config: {str(error).strip().splitlines()[0]}") from None
    backbone = getattr(model, model.base_model_prefix)
    layer = list(backbone.layers[0].parameters())
    per_layer = sum(p.numel() for p in layer)
    embedding = model.get_input_embeddings().weight
    whole = sum(p.numel() for p in backbone.parameters())
    return Shape(
        name=name, layers=len(backbone.layers), width=text.hidden_size, ffn=text.intermediate_size,
        heads=text.num_attention_heads, kv_heads=text.num_key_value_heads,
        head_width=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        vocabulary=embedding.shape[0], tied=bool(text.tie_word_embeddings),
        head_norms=hasattr(backbone.layers[0].self_attn, "q_norm"), layer_parameters=per_layer,
        layer_matrices=sum(p.numel() for p in layer if p.ndim == 2),
        other_parameters=whole - embedding.numel() - len(backbone.layers) * per_layer,
        context=getattr(text, "max_position_embeddings", None),
        reward_model=any("SequenceClassification" in kind for kind in config.architectures or []),
    )  # fmt: skip
