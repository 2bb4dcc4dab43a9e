"""Loading and saving models: clear complaints, atomic folders, adapters merged, a critic from a policy."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    HyperCLOVAXConfig,
    HyperCLOVAXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from ppomax.config import LoraConfig
from ppomax.errors import UserError
from ppomax.models.loading import (
    add_lora,
    check_tokenizer,
    load_causal_lm,
    load_scalar_model,
    load_tokenizer,
    load_trainable_state,
    save_final,
    scalar_from_causal,
    trainable_state,
)
from ppomax.models.logprobs import hidden_states

CONFIG = {
    "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
IDS = torch.tensor([[1, 5, 7, 2]])


def policy(**more: Any) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(CONFIG | more))).eval()


class Silent:
    """A tokenizer that can be saved."""

    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


def test_what_is_not_a_model_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "sft" / "final").mkdir(parents=True)
    for name in ("nowhere", "./nowhere", "runs/nothing", str(tmp_path / "x"), "a/b/c", "sft/final", "ppo/best"):
        with pytest.raises(UserError, match="no such model directory"):
            load_causal_lm(name)
    with pytest.raises(UserError, match=r"not a model directory \(no config.json in it\)$"):
        load_causal_lm("runs/sft")
    (tmp_path / "runs" / "sft" / "final" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="did you mean runs/sft/final"):
        load_causal_lm("runs/sft")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="no such model directory"):
        load_causal_lm("file")


def test_reward_models_must_have_one_label(tmp_path: Path) -> None:
    LlamaForSequenceClassification(LlamaConfig(**CONFIG, num_labels=2)).save_pretrained(tmp_path / "two")
    with pytest.raises(UserError, match="has 2 labels, expected 1"):
        load_scalar_model(str(tmp_path / "two"))
    policy().save_pretrained(tmp_path / "lm")
    with pytest.raises(UserError, match="LlamaForCausalLM is not a reward model"):
        load_scalar_model(str(tmp_path / "lm"))


def test_tokenizer_needs_an_eos() -> None:
    with pytest.raises(UserError, match="no eos token"):
        check_tokenizer(SimpleNamespace(eos_token_id=None, pad_token_id=None))


def test_a_model_without_its_tokenizer_is_told(tmp_path: Path) -> None:
    policy().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="there are no tokenizer files in it") as error:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_language_model_that_scales_its_logits_otherwise_is_refused(tmp_path: Path) -> None:
    model = HyperCLOVAXForCausalLM(HyperCLOVAXConfig(**CONFIG, logits_scaling=0.125))
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="HyperCLOVAXForCausalLM scales its logits in a way that is not known here"):
        load_causal_lm(str(tmp_path))


def test_critic_from_a_policy_shares_its_backbone_but_no_memory() -> None:
    model = policy()
    critic = scalar_from_causal(model, seed=3)
    assert torch.equal(hidden_states(critic, IDS, None), hidden_states(model, IDS, None))
    assert torch.equal(critic.score.weight, scalar_from_causal(model, seed=3).score.weight)
    assert not torch.equal(critic.score.weight, scalar_from_causal(model, seed=4).score.weight)
    with torch.no_grad():
        critic.model.embed_tokens.weight.zero_()
    assert model.model.embed_tokens.weight.abs().sum() > 0


@pytest.mark.parametrize("tied", [True, False])
def test_save_final_round_trip_replaces_the_old_folder(tmp_path: Path, tied: bool) -> None:
    model = policy(tie_word_embeddings=tied)
    final = tmp_path / "final"
    final.mkdir()
    (final / "old").write_text("x")
    save_final(model, Silent(), final, stage="sft", card="card", extra=3)
    assert not (final / "old").exists() and (final / "README.md").read_text() == "card"
    again = AutoModelForCausalLM.from_pretrained(final)
    assert again.config.ppomax_stage == "sft" and again.config.extra == 3 and again.config.use_cache
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["final"]


def test_adapters_are_merged_into_what_is_saved(tmp_path: Path) -> None:
    wrapped = add_lora(policy(), LoraConfig(rank=2), "CAUSAL_LM")
    plain = policy()(IDS).logits
    with torch.no_grad():
        for p in wrapped.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    changed = wrapped(IDS).logits
    assert not torch.allclose(changed, plain, atol=1e-2)
    with wrapped.disable_adapter():
        assert torch.allclose(wrapped(IDS).logits, plain, atol=1e-6)
    save_final(wrapped, Silent(), tmp_path / "final", stage="ppo", card="c")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert torch.allclose(merged(IDS).logits, changed, atol=1e-5)
    assert torch.allclose(wrapped(IDS).logits, changed, atol=1e-6), "saving must not change the model"


def test_trainable_state_of_another_model_is_refused() -> None:
    model = policy()
    state = {name: p.clone() for name, p in trainable_state(model).items()}
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    load_trainable_state(model, state)
    assert all(torch.equal(p, state[name]) for name, p in trainable_state(model).items())
    state.pop(next(iter(state)))
    with pytest.raises(UserError, match="another model"):
        load_trainable_state(model, state)


def test_incomplete_weights_are_refused_not_drawn(tmp_path: Path) -> None:
    policy().save_pretrained(tmp_path / "lm")
    settings = json.loads((tmp_path / "lm" / "config.json").read_text())
    (tmp_path / "lm" / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 3, "layer_types": None}))
    with pytest.raises(UserError, match=r"lack 9 of the weights .* no complete language model"):
        load_causal_lm(str(tmp_path / "lm"))
    (tmp_path / "lm" / "config.json").write_text(json.dumps({**settings, "hidden_size": 16}))
    with pytest.raises(UserError, match="its weights have other shapes than"):
        load_causal_lm(str(tmp_path / "lm"))
    (tmp_path / "lm" / "config.json").write_text(json.dumps(settings))
    file = tmp_path / "lm" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot load the language model"):
        load_causal_lm(str(tmp_path / "lm"))


def test_a_reward_model_without_its_unit_is_refused_unless_a_fresh_one_is_asked_for(tmp_path: Path) -> None:
    policy().save_pretrained(tmp_path / "lm")
    assert load_scalar_model(str(tmp_path / "lm"), fresh_unit=True).score.weight.shape == (1, 8)
    settings = json.loads((tmp_path / "lm" / "config.json").read_text())
    settings |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "a"}, "label2id": {"a": 0}}
    (tmp_path / "lm" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"lack 1 of the weights .*score\.weight"):
        load_scalar_model(str(tmp_path / "lm"))


def test_adapters_alone_are_merged_into_the_model_they_name(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    policy().save_pretrained(tmp_path / "base")
    seeded = torch.Generator().manual_seed(1)

    def trained(model: Any, task: str) -> Any:
        wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type=task, r=2, target_modules=["q_proj", "v_proj"]))
        with torch.no_grad():
            for p in wrapped.parameters():
                if p.requires_grad:
                    p.add_(torch.randn(p.shape, generator=seeded) * 0.3)
        return wrapped.eval()

    lm = trained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), "CAUSAL_LM")
    lm.save_pretrained(tmp_path / "lm")
    loaded = load_causal_lm(str(tmp_path / "lm"))
    assert type(loaded) is LlamaForCausalLM and torch.allclose(loaded(IDS).logits, lm(IDS).logits, atol=1e-5)
    assert not any("lora" in name for name, _ in loaded.named_parameters())

    scalar = load_scalar_model(str(tmp_path / "base"), fresh_unit=True)
    rm = trained(scalar, "SEQ_CLS")
    rm.save_pretrained(tmp_path / "rm")
    loaded = load_scalar_model(str(tmp_path / "rm"))
    assert torch.allclose(loaded(IDS).logits, rm(IDS).logits, atol=1e-5)
    with pytest.raises(UserError, match="is a reward model"):
        load_causal_lm(str(tmp_path / "rm"))
    with pytest.raises(UserError, match="not a reward model's"):
        load_scalar_model(str(tmp_path / "lm"))
