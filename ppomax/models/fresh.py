"""A base model where no hub can be reached: a byte-level BPE tokenizer and a small Llama with random weights.

Everything is written in Hugging Face layout (``AutoTokenizer`` and ``AutoModelForCausalLM`` load it). The tokenizer is
lossless for any Unicode text, splits numbers into digits, and has distinct pad, bos and eos. Its chat template is::

    <|bos|><|system|>...<|user|>...<|assistant|>...<|end|><|user|>...<|assistant|>

A role marker is one token; ``<|end|>`` is the end-of-sequence token and the last token of every assistant turn, inside
the ``{% generation %}`` marks, so that a policy learns to stop. All other turns end where the next marker begins.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ppomax.errors import UserError
from ppomax.regular_file import expand_path, require_place

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|end|>"
ROLES = ("system", "user", "assistant", "tool")
MAX_POSITIONS = 2048

CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'assistant' %}"
    "{{- '<|assistant|>' }}"
    "{%- generation %}{{- message['content'] + eos_token }}{%- endgeneration %}"
    "{%- elif message['role'] in ['system', 'user', 'tool'] %}"
    "{{- '<|' + message['role'] + '|>' + message['content'] }}"
    "{%- else %}"
    "{{- raise_exception('unknown role ' + message['role'] + ': expected system, user, assistant or tool') }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)


@dataclass(frozen=True)
class Size:
    """Shape of a fresh Llama; ``vocab_size`` is what the tokenizer gets unless told otherwise."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab_size: int
    tied: bool


SIZES = {
    "1m": Size(128, 4, 4, 4, 344, 4096, True),
    "6m": Size(256, 6, 8, 8, 688, 4096, True),
    "25m": Size(512, 8, 8, 8, 1376, 4096, True),
    "100m": Size(768, 12, 12, 12, 2048, 16384, True),
    "300m": Size(1024, 24, 16, 16, 2816, 32000, True),
    "1b": Size(2048, 22, 32, 4, 5632, 32000, False),
    "7b": Size(4096, 32, 32, 32, 11008, 32000, False),
}


def size_named(name: str) -> Size:
    """The shape called ``name``; a UserError lists the names."""
    if name not in SIZES:
        raise UserError(f"unknown model size {name!r}; choose from {', '.join(SIZES)}")
    return SIZES[name]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with at most ``vocab_size`` entries: fewer when the texts hold no more pairs. Deterministic."""
    specials = [PAD, BOS, EOS, *(f"<|{role}|>" for role in ROLES)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(specials) + len(alphabet):
        raise UserError(
            f"vocab_size {vocab_size} is too small: the {len(alphabet)} bytes and {len(specials)} special tokens "
            f"alone need {len(specials) + len(alphabet)}"
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet, min_frequency=2, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    # As Llama does: plain `tokenizer(text)` starts with bos. The chat template writes its own.
    bos_id = backend.token_to_id(BOS)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B:1", special_tokens=[(BOS, bos_id)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[f"<|{role}|>" for role in ROLES],
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,  # decoding gives back exactly what was encoded
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def fresh_model(
    size: str, vocab_size: int, *, pad_id: int, bos_id: int, eos_id: int, seed: int = 0
) -> LlamaForCausalLM:
    """A Llama of the named size with random float32 weights, which depend on ``seed`` alone."""
    shape = size_named(size)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=shape.tied,
        attention_dropout=0.0,
        pad_token_id=pad_id,
        bos_token_id=bos_id,
        eos_token_id=eos_id,
        ppomax_stage="base",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).float()
    model.generation_config = GenerationConfig(pad_token_id=pad_id, bos_token_id=bos_id, eos_token_id=eos_id)
    return model.eval()


def require_empty(out: str | Path) -> Path:
    """``out`` as a path that is absent or an empty folder; anything else is a UserError."""
    folder = Path(expand_path(str(out)))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} already exists and is not empty: choose another place for the new model")
    require_place(folder, "out")
    return folder


def new_model(
    out: str | Path,
    texts: Iterable[str],
    *,
    size: str = "6m",
    vocab_size: int | None = None,
    seed: int = 0,
    config_yaml: str | None = None,
) -> dict[str, Any]:
    """Train a tokenizer on ``texts``, draw a model, and save both in ``out``, which must be absent or empty.

    ``config_yaml`` is kept as ``config.yaml`` beside the model. Returns ``{"parameters": int, "vocabulary": int}``.
    """
    folder = require_empty(out)
    shape = size_named(size)
    tokenizer = train_tokenizer(texts, vocab_size or shape.vocab_size)
    model = fresh_model(
        size,
        len(tokenizer),
        pad_id=tokenizer.pad_token_id,
        bos_id=tokenizer.bos_token_id,
        eos_id=tokenizer.eos_token_id,
        seed=seed,
    )
    part = folder.with_name(f".{folder.name}.part")  # whole or absent, never half
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    tokenizer.save_pretrained(part)
    model.save_pretrained(part)
    if config_yaml is not None:
        (part / "config.yaml").write_text(config_yaml, encoding="utf-8")
    if folder.exists():
        folder.rmdir()
    part.replace(folder)
    return {"parameters": sum(p.numel() for p in model.parameters()), "vocabulary": len(tokenizer)}
