"""What all systems are given in a benchmark: the same models, tokenizer and prompts, in Hugging Face layout.

The models are Llamas with random weights. Lengths must not depend on chance alone nor on training, so the probability of
the end-of-sequence token is put into the weights: the first dimension of the residual stream holds the same number for
every token (no layer writes to it), and one row of the unembedding reads it. With probability 0 every response has the
full length; `eos_probability` finds the probability for a given mean length, which is then geometric, cut at the limit.
The pad is never drawn: TRL takes every pad in a sequence for padding.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ppomax.models.scalar import on_backbone, reset_unit

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
NEVER = -30.0
"""logit of a token that must not be drawn"""
CONSTANT = 0.5
"""what the residual stream's first dimension holds"""

CHAT_TEMPLATE = (
    "{%- for message in messages %}{%- if message['role'] == 'assistant' %}"
    "{%- generation %}{{- message['content'] + eos_token }}{%- endgeneration %}"
    "{%- else %}{{- message['content'] }}{%- endif %}{%- endfor %}"
)


@dataclass(frozen=True)
class Shape:
    """A Llama with tied embeddings; heads are 32 wide or 64."""

    layers: int
    width: int
    heads: int
    ffn: int
    vocabulary: int = 4096
    tied: bool = True


SHAPES = {
    "tiny": Shape(2, 64, 2, 172, 512),
    "1m": Shape(4, 128, 4, 344),
    "5.7m": Shape(6, 256, 8, 688),
    "27m": Shape(8, 512, 8, 1376),
    "62m": Shape(12, 640, 10, 1712),
    "101m": Shape(14, 768, 12, 2048),
    "300m": Shape(22, 1024, 16, 2752, 32000),
    "1b": Shape(22, 2048, 32, 5632, 32000, False),
}
"""by their parameters; the largest has grouped queries with 4 key heads"""


def parameters(shape: Shape) -> int:
    """Parameters of the language model, tied embeddings counted once."""
    keys = shape.width if shape.tied else shape.width // 8
    layer = 2 * shape.width**2 + 2 * shape.width * keys + 3 * shape.width * shape.ffn + 2 * shape.width
    return shape.vocabulary * shape.width * (1 if shape.tied else 2) + shape.layers * layer + shape.width


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One token a word: w4, w5, ... stand for their own ids."""
    words = {PAD: 0, BOS: 1, EOS: 2, UNKNOWN: 3} | {f"w{i}": i for i in range(4, vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNKNOWN, padding_side="left",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def fresh_llama(shape: Shape, *, seed: int = 0, positions: int = 2048, device: str = "cpu") -> Any:
    """Random float32 weights that depend on ``seed`` and the kind of device."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads if shape.tied else shape.heads // 8, max_position_embeddings=positions,
        tie_word_embeddings=shape.tied, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).float()
    model.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return model.eval()


@torch.no_grad()
def set_eos_probability(model: Any, probability: float, *, seed: int = 0) -> None:
    """Make the model end with this probability at every token (0: never), and never draw the pad."""
    embedding, unembedding = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    embedding[:, 0] = CONSTANT
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0
        layer.mlp.down_proj.weight[0] = 0
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, model.config.vocab_size, (8, 64), generator=generator).to(model.device)
    hidden = model.model(input_ids=ids).last_hidden_state
    constant = hidden[..., 0].double().mean().item()
    logits = model.lm_head(hidden).float()
    others = logits[..., 3:].double().logsumexp(-1).mean().item()
    unembedding[[0, 2], 1:] = 0  # with tied weights these are the two tokens' own embeddings, too; no prompt holds them
    wanted = NEVER if probability == 0 else others + torch.logit(torch.tensor(probability, dtype=torch.float64)).item()
    unembedding[2, 0] = wanted / constant
    unembedding[0, 0] = NEVER / constant


def eos_probability(mean: float, limit: int) -> float:
    """Probability of ending at each token with which responses of at most ``limit`` tokens have this mean length.

    Lengths count the end-of-sequence token: E = (1 - (1 - p)^limit) / p.
    """
    if mean >= limit:
        return 0.0
    low, high = 1e-9, 1.0
    for _ in range(100):
        p = (low + high) / 2
        low, high = (p, high) if (1 - (1 - p) ** limit) / p > mean else (low, p)
    return (low + high) / 2


def make_prompts(count: int, length: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    """Random prompts of exactly ``length`` tokens, without special ones."""
    generator = random.Random(seed)
    return [[generator.randrange(4, vocabulary) for _ in range(length)] for _ in range(count)]


@dataclass(frozen=True)
class Start:
    """Where the models and prompts of a benchmark lie."""

    policy: Path
    reward: Path
    prompts: Path
    parameters: int


def make_start(
    folder: Path, shape: Shape, *, prompts: int, prompt_length: int, response_length: int, mean_length: float,
    seed: int = 0,
) -> Start:  # fmt: skip
    """Write policy, reward model (same shape, other weights) and prompts below ``folder``."""
    tokenizer = make_tokenizer(shape.vocabulary)
    positions = max(2048, prompt_length + response_length)
    policy = fresh_llama(shape, seed=seed, positions=positions)
    set_eos_probability(policy, eos_probability(mean_length, response_length))
    reward = on_backbone(fresh_llama(shape, seed=seed + 1, positions=positions), pad_id=0)
    reset_unit(reward, seed)
    start = Start(folder / "policy", folder / "reward", folder / "prompts.jsonl", policy.num_parameters())
    for model, path in ((policy, start.policy), (reward, start.reward)):
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    with start.prompts.open("w", encoding="utf-8") as file:
        for ids in make_prompts(prompts, prompt_length, shape.vocabulary, seed):
            text = " ".join(f"w{i}" for i in ids)
            file.write(json.dumps({"prompt": text, "ids": ids}) + "\n")
    return start
