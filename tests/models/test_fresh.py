"""Fresh models: lossless deterministic tokenizer, chat template, shapes, seeds, Hugging Face layout."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from ppomax.commands.new_model import NewModelConfig
from ppomax.data.chat import ChatFormat
from ppomax.errors import UserError
from ppomax.models.fresh import MAX_POSITIONS, ROLES, SIZES, fresh_model, new_model, train_tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "def f(x):\n\treturn x + 12345  # 67890\n",
] * 20
DIALOGUE = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": " hello \n"},
    {"role": "assistant", "content": "Hi! 你好 🤖 "},
    {"role": "user", "content": "1 + 1 <|end|>?"},
    {"role": "assistant", "content": "2"},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS, 500)


@pytest.mark.parametrize(
    "text",
    [
        "plain", " leading and trailing ", "\n\n\t mixed \r\n white\u00a0space\u3000", "中文，标点。", "👩‍👩‍👧‍👦🇨🇳 e\u0301",
        "\x00\x07\x1b[31m\ufeff\u200b\u202e", "don't can't I'll", "a" * 300, "٣٤٥ ⅷ ½", "\U0010ffff", "",
    ],
)  # fmt: skip
def test_round_trip(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_round_trip_of_any_text(text: str) -> None:
    tokenizer = _TOKENIZER
    if any(special in text for special in tokenizer.all_special_tokens):
        return
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


_TOKENIZER = train_tokenizer(TEXTS, 300)


def test_specials_are_distinct_single_tokens(tokenizer: Any) -> None:
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    for role in ROLES:
        assert len(tokenizer(f"<|{role}|>", add_special_tokens=False)["input_ids"]) == 1


def test_digits_are_tokens_of_their_own(tokenizer: Any) -> None:
    assert tokenizer.tokenize("12345") == list("12345")


def test_plain_encoding_starts_with_bos_as_llama_does(tokenizer: Any) -> None:
    ids = tokenizer("ab")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and tokenizer.eos_token_id not in ids


def test_training_is_deterministic_and_learns(tokenizer: Any) -> None:
    again = train_tokenizer(iter(TEXTS), 500)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert len(tokenizer) <= 500
    assert len(tokenizer.tokenize("the lazy dog")) < len("the lazy dog") / 2


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match="need 263"):
        train_tokenizer(TEXTS, 100)
    assert len(train_tokenizer(TEXTS, 263)) == 263


def test_template_text(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template(DIALOGUE[:3], tokenize=False)
    assert text == "<|bos|><|system|>Be brief.\n<|user|> hello \n<|assistant|>Hi! 你好 🤖 <|end|>"
    prompt = tokenizer.apply_chat_template(DIALOGUE[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|bos|><|system|>Be brief.\n<|user|> hello \n<|assistant|>"
    assert text.startswith(prompt)


def test_template_marks_assistant_turns_with_their_eos(tokenizer: Any) -> None:
    out = tokenizer.apply_chat_template(
        [*DIALOGUE[:3], {"role": "user", "content": "x"}, {"role": "assistant", "content": "yo"}],
        tokenize=True, return_dict=True, return_assistant_tokens_mask=True,
    )  # fmt: skip
    marked = [i for i, m in zip(out["input_ids"], out["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(marked) == "Hi! 你好 🤖 <|end|>yo<|end|>"


def test_template_refuses_unknown_roles(tokenizer: Any) -> None:
    with pytest.raises(Exception, match="unknown role robot"):
        tokenizer.apply_chat_template([{"role": "robot", "content": "x"}], tokenize=False)


def test_template_works_with_chat_format(tokenizer: Any) -> None:
    chat = ChatFormat(tokenizer, "model")
    ids, mask = chat.encode_dialogue(DIALOGUE)  # type: ignore[arg-type]
    spoken = [i for i, m in zip(ids, mask, strict=True) if m]
    assert tokenizer.decode(spoken) == "Hi! 你好 🤖 <|end|>2<|end|>"
    assert ids[0] == tokenizer.bos_token_id and ids[1] != tokenizer.bos_token_id
    assert ids.count(tokenizer.eos_token_id) == 2  # the one that a user spelled is no control token
    prompt = chat.encode_prompt(DIALOGUE[:2])  # type: ignore[arg-type]
    assert ids[: len(prompt)] == prompt
    assert chat.eos_ids == {tokenizer.eos_token_id}


def test_sizes_have_the_parameters_of_their_name() -> None:
    counted = {}
    for name, shape in SIZES.items():
        with torch.device("meta"):
            model = fresh_model(name, shape.vocab_size, pad_id=0, bos_id=1, eos_id=2)
        counted[name] = sum(p.numel() for p in model.parameters()) / 1e6
        assert model.config.max_position_embeddings == MAX_POSITIONS
    nominal = {"1m": 1, "6m": 6, "25m": 25, "100m": 100, "300m": 300, "1b": 1000, "7b": 7000}
    for name, millions in nominal.items():
        assert 0.85 * millions < counted[name] < 1.4 * millions, (name, counted[name])
    assert set(get_args(NewModelConfig.model_fields["size"].annotation)) == set(SIZES)


def test_weights_depend_on_the_seed_alone() -> None:
    def weights(seed: int) -> torch.Tensor:
        model = fresh_model("1m", 300, pad_id=0, bos_id=1, eos_id=2, seed=seed)
        return torch.cat([p.flatten() for p in model.parameters()])

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = weights(0)
    assert torch.equal(torch.get_rng_state(), before)  # the caller's generator is left alone
    torch.manual_seed(6)
    assert torch.equal(weights(0), first)
    assert not torch.equal(weights(1), first)
    assert first.dtype == torch.float32


def test_unknown_size() -> None:
    with pytest.raises(UserError, match="unknown model size '2m'; choose from 1m, 6m"):
        fresh_model("2m", 300, pad_id=0, bos_id=1, eos_id=2)


def test_saved_layout(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "base"
    made = new_model(out, TEXTS, size="1m", vocab_size=300, seed=3, config_yaml="seed: 3\n")
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert made == {"parameters": sum(p.numel() for p in model.parameters()), "vocabulary": 300}
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    for holder in (model.config, model.generation_config):
        assert (holder.pad_token_id, holder.bos_token_id, holder.eos_token_id) == ids
    assert model.config.ppomax_stage == "base" and model.config.tie_word_embeddings
    assert (out / "model.safetensors").exists() and not list(out.glob("*.bin"))
    assert (out / "config.yaml").read_text() == "seed: 3\n"
    assert tokenizer.chat_template == train_tokenizer(TEXTS, 300).chat_template
    text = "x  你好\n"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert not list(out.parent.glob(".*"))  # nothing half-made is left
    fresh = fresh_model("1m", 300, pad_id=ids[0], bos_id=ids[1], eos_id=ids[2], seed=3)
    for a, b in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_existing_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(UserError, match="already exists"):
            new_model(tmp_path / name, TEXTS, size="1m", vocab_size=300)
    assert (tmp_path / "full" / "x").read_text() == "mine" and stat.S_ISREG((tmp_path / "file").stat().st_mode)
    (tmp_path / "empty").mkdir()
    new_model(tmp_path / "empty", TEXTS, size="1m", vocab_size=300)


def test_real_chinese_and_english(real_data: Path) -> None:
    from ppomax.commands.new_model import texts_of
    from ppomax.config import DataSource

    names = ("dialogues_en", "dialogues_zh", "hh_harmless_pairs", "harmless_prompts_zh", "text_zh")
    texts = texts_of([DataSource(path=str(real_data / f"{name}.jsonl.gz"), limit=60) for name in names])
    tokenizer = train_tokenizer(texts, 1000)
    assert len(tokenizer) == 1000
    for text in texts:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
