"""The reward model: its loss against a slow reference, splits, shared weights, and what is written."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ppomax.config import RewardConfig
from ppomax.data.batches import token_budget
from ppomax.data.chat import ChatFormat
from ppomax.data.records import Dialogue, PreferencePair, Text
from ppomax.errors import UserError
from ppomax.models.loading import load_scalar_model, load_tokenizer
from ppomax.models.scalar import on_backbone, reset_unit, score_sequences
from ppomax.models.shared_base import RewardAdapter
from ppomax.train.pairs import EncodedPair, collate, encode_pairs, make_schedule
from ppomax.train.reward import RewardTrainee, pair_losses, train_reward
from ppomax.train.run import RunDirectory

CPU = torch.device("cpu")


def reward_config(folder: Path, **changes: Any) -> RewardConfig:
    options: dict[str, Any] = {
        "model": "memory", "data": ["memory"], "output_dir": str(folder), "device": "cpu", "max_length": 96,
        "batch_tokens": 500, "epochs": 1, "eval_fraction": 0.3, "optim": {"lr": 3e-3, "eps": 1e-3},
    }  # fmt: skip
    return RewardConfig.model_validate(options | changes)


def random_pairs(lengths: list[tuple[int, int, int]], vocabulary: int, seed: int = 0) -> list[EncodedPair]:
    """(prompt, chosen, rejected) lengths -> random tokens with gaps in what is imitated, and margins."""
    draw = np.random.default_rng(seed)
    empty = PreferencePair((), (), ())
    out = []
    for p, c, r in lengths:
        prompt, chosen, rejected = (draw.integers(0, vocabulary, n).astype(np.int32) for n in (p, c, r))
        imitated = np.concatenate([np.zeros(p, bool), draw.random(c) < 0.7])
        imitated[-1] = True
        both = np.concatenate([prompt, chosen]), np.concatenate([prompt, rejected])
        out.append(EncodedPair(*both, imitated, float(draw.random()), empty))
    return out


def make_trainee(causal: Any, seed: int = 0, lm: bool = True) -> RewardTrainee:
    scalar = on_backbone(causal, pad_id=0)
    reset_unit(scalar, seed)
    return RewardTrainee(scalar, causal if lm else None)


def reference(trainee: RewardTrainee, pairs: list[EncodedPair], lm_coef: float) -> torch.Tensor:
    """Mean loss over pairs: float64, one sequence at a time, from the stock forward passes."""
    total = torch.zeros((), dtype=torch.float64)
    for pair in pairs:
        rewards = []
        for ids in (pair.chosen, pair.rejected):
            hidden = trainee.scalar.model(torch.tensor(ids[None], dtype=torch.long)).last_hidden_state[0, -1]
            rewards.append((trainee.scalar.score.weight[0] * hidden).sum())
        gap = rewards[0] - rewards[1] - pair.margin
        total = total + torch.log(1 + torch.exp(-gap))
        if trainee.causal is not None and lm_coef:
            logits = trainee.causal(torch.tensor(pair.chosen[None], dtype=torch.long)).logits[0]
            nll = [-torch.log_softmax(logits[t - 1], -1)[int(pair.chosen[t])] for t in np.flatnonzero(pair.imitated)]
            total = total + lm_coef * torch.stack(nll).mean()
    return total / len(pairs)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.grad.double().clone() for n, p in model.named_parameters() if p.grad is not None}


def step_gradients(trainee: RewardTrainee, pairs: list[EncodedPair], lm_coef: float, budget: int) -> tuple[float, Any]:
    """As the training loop does it."""
    trainee.zero_grad()
    value = 0.0
    for group in token_budget([p.longest for p in pairs], max(1, budget // 2)):
        preference, imitation, _ = pair_losses(trainee, collate([pairs[i] for i in group], pad_id=0, device=CPU))
        loss = (preference.sum() + lm_coef * imitation.sum()) / len(pairs)
        loss.backward()
        value += loss.item()
    return value, gradients(trainee)


# ----------------------------------------------------------------------------------------------- loss


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 8), st.integers(1, 10), st.integers(1, 10)), min_size=1, max_size=5),
    lm_coef=st.sampled_from([0.0, 0.3, 1.0]),
    budget=st.sampled_from([1, 40, 10_000]),
    tied=st.booleans(),
    seed=st.integers(0, 9),
)
def test_loss_and_gradients_against_reference(
    make_lm: Callable[..., Any], lengths: Any, lm_coef: float, budget: int, tied: bool, seed: int
) -> None:
    """Any split into micro-batches, with padding on either side of a pair, gives the float64 reference's gradients."""
    causal = make_lm(seed, tie_word_embeddings=tied)
    pairs = random_pairs(lengths, 400, seed)
    trainee = make_trainee(causal, seed, lm=lm_coef > 0)
    exact_causal = copy.deepcopy(causal).double()
    exact = make_trainee(exact_causal, seed, lm=lm_coef > 0)
    exact.scalar.double()
    with torch.no_grad():
        exact.scalar.score.weight.copy_(trainee.scalar.score.weight)
    expected = reference(exact, pairs, lm_coef)
    expected.backward()
    value, grads = step_gradients(trainee, pairs, lm_coef, budget)
    assert value == pytest.approx(expected.item(), rel=2e-5)
    wanted = gradients(exact)
    assert grads.keys() == wanted.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, wanted[name], rtol=2e-4, atol=2e-5)


def test_imitation_is_the_mean_over_each_answer(make_lm: Callable[..., Any]) -> None:
    """A long answer weighs no more than a short one, whatever stands beside it."""
    trainee = make_trainee(make_lm())
    pairs = random_pairs([(3, 2, 4), (3, 30, 4)], 400)
    _, together, _ = pair_losses(trainee, collate(pairs, pad_id=0, device=CPU))
    alone = [pair_losses(trainee, collate([p], pad_id=0, device=CPU))[1] for p in pairs]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_stable_for_huge_gaps(make_lm: Callable[..., Any], size: float) -> None:
    trainee = make_trainee(make_lm(), lm=False)
    batch = collate(random_pairs([(3, 4, 5)], 400), pad_id=0, device=CPU)
    with torch.no_grad():
        gap = pair_losses(trainee, batch)[2].diff().item() * -1
        trainee.scalar.score.weight.mul_(size / gap)
    preference, _, rewards = pair_losses(trainee, batch)
    preference.sum().backward()
    expected = max(0.0, -(rewards[0] - rewards[1] - batch.margins[0]).item())
    assert preference.item() == pytest.approx(expected, abs=1e-3)
    assert all(torch.isfinite(p.grad).all() for p in trainee.parameters() if p.grad is not None)


def test_weights_are_shared(make_lm: Callable[..., Any]) -> None:
    causal = make_lm(tie_word_embeddings=True)
    trainee = make_trainee(causal)
    assert trainee.scalar.model is causal.model
    assert causal.lm_head.weight is causal.model.embed_tokens.weight
    names = [n for n, _ in trainee.named_parameters()]
    assert len(names) == len(list(causal.parameters())) + 1 and "scalar.score.weight" in names
    untied = make_lm(tie_word_embeddings=False)
    assert {"causal.lm_head.weight"} == {n for n, _ in make_trainee(untied).named_parameters()} - set(names)


# ----------------------------------------------------------------------------------------------- pairs


def pair(prompt: str, chosen: str, rejected: str, **rest: Any) -> PreferencePair:
    sides = [
        ({"role": r, "content": t},) for r, t in (("user", prompt), ("assistant", chosen), ("assistant", rejected))
    ]
    return PreferencePair(*sides, **rest)


def test_pairs_are_truncated_on_the_left_alike(tmp_path: Path, tokenizer: Any) -> None:
    chat = ChatFormat(tokenizer, "model")
    long = pair("The river goes far. " * 20, "苹果、李子和梨。", "No.")
    hopeless = pair("Hi", "word " * 200, "No.")
    kept, lines = encode_pairs([long, hopeless], chat, reward_config(tmp_path, max_length=60))
    assert len(kept) == 1 and kept[0].longest == 60
    answers = [chat.encode_response(long.prompt, t) for t in ("苹果、李子和梨。", "No.")]
    prompt = chat.encode_prompt(long.prompt)
    room = 60 - len(answers[0])
    left = [chat.bos_id, *prompt[len(prompt) - room + 1 :]]
    assert kept[0].chosen.tolist() == left + answers[0]
    assert kept[0].rejected.tolist() == left + answers[1]  # the same prompt, though this answer had room for more
    assert kept[0].chosen[-1] in chat.eos_ids and kept[0].rejected[-1] in chat.eos_ids
    assert any("1 pairs over max_length 60 lost the left" in line for line in lines)
    assert any("1 pairs dropped: over max_length 60" in line for line in lines)
    kept, lines = encode_pairs([long, hopeless], chat, reward_config(tmp_path, max_length=60, overlong="drop"))
    assert not kept and any("2 pairs dropped" in line for line in lines)


def test_users_turns_inside_an_answer_are_not_imitated(tmp_path: Path, tokenizer: Any) -> None:
    chat = ChatFormat(tokenizer, "model")
    turns = tuple(
        {"role": role, "content": text}
        for role, text in (("assistant", "To the sea."), ("user", "Thank you!"), ("assistant", "不客气。"))
    )
    talk = PreferencePair(({"role": "user", "content": "Where?"},), turns, turns[:1])
    (encoded,), _ = encode_pairs([talk], chat, reward_config(tmp_path))
    said = tokenizer.decode(encoded.chosen[encoded.imitated])
    assert said == f"To the sea.{tokenizer.eos_token}不客气。{tokenizer.eos_token}"


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 60), min_size=8, max_size=60), epochs=st.sampled_from([0.3, 1.0, 1.06, 2.5]),
    low=st.integers(1, 4), high=st.integers(8, 20),
)  # fmt: skip
def test_schedule(sizes: list[int], epochs: float, low: int, high: int) -> None:
    config = reward_config(Path("run"), batch_tokens=200, min_pairs=low, max_pairs=high, epochs=epochs)
    schedule = make_schedule(random_pairs([(1, n, 1) for n in sizes], 50), config)
    assert all(low <= len(batch) <= high for batch in schedule)
    seen = [i for batch in schedule for i in batch]
    whole = int(epochs)
    assert sorted(seen[: whole * len(sizes)]) == sorted(list(range(len(sizes))) * whole)
    rest = seen[whole * len(sizes) :]
    assert len(set(rest)) == len(rest)
    assert bool(rest) == (epochs > whole)


# -------------------------------------------------------------------------------------- runs and files


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "throughput/", "memory/"))} for line in lines]


@pytest.mark.parametrize("lm_coef", [pytest.param(0.0, marks=pytest.mark.draws_page), 1.0])
def test_learns_a_planted_preference(
    tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any, pairs: list[PreferencePair], dialogues: list[Dialogue],
    lm_coef: float,
) -> None:  # fmt: skip
    run = tmp_path / "run"
    config = reward_config(run, lm_coef=lm_coef, epochs=6, eval_every=4)
    result = train_reward(config, model=make_lm(), tokenizer=tokenizer, pairs=pairs, demonstrations=dialogues)
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["memory/peak"] > 10
    held_out = result.metrics["held_out"]
    assert held_out["overall"]["model"]["accuracy"] > 0.95
    assert set(held_out["sources"]) == {"en", "zh"}
    assert held_out["overall"]["longer"]["accuracy"] < 0.95
    assert held_out["gap"]["mean"] > 0.5
    lines = metrics_of(run)
    assert lines[-2]["loss/preference"] < 0.4 < lines[0]["loss/preference"]
    assert (lines[-2]["loss/imitation"] < lines[0]["loss/imitation"] - 0.5) == (lm_coef > 0)
    assert lines[0]["loss/train"] == pytest.approx(
        lines[0]["loss/preference"] + lm_coef * lines[0]["loss/imitation"], rel=1e-6
    )
    evaluated = [line["update"] for line in lines if "eval/accuracy" in line]
    assert evaluated == [*range(0, lines[-1]["update"], 4), lines[-1]["update"]]
    assert json.loads((run / "evaluation.json").read_text())["held_out"] == held_out
    for name in ("gap_histogram", "accuracy", "calibration"):
        assert (run / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert "longer wins" in (run / "final" / "README.md").read_text()
    if lm_coef == 0:
        assert "Reward-model run run" in (run / "report.html").read_text(encoding="utf-8")

    # the offset makes the mean over demonstrations 0, by our loader
    model, tok = load_scalar_model(str(run / "final")), load_tokenizer(str(run / "final"))
    assert model.config.reward_offset == result.metrics["reward_offset"] != 0
    chat = ChatFormat(tok, "model")
    ids = [chat.encode_dialogue(d.messages)[0] for d in dialogues]
    assert score_sequences(model, ids, pad_id=0).mean().item() == pytest.approx(0, abs=1e-5)


def test_stock_loader_gives_the_same_scores(
    tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any, pairs: list[PreferencePair], dialogues: list[Dialogue]
) -> None:
    """AutoModelForSequenceClassification on a batch padded by the saved tokenizer, and one at a time."""
    for offset in (None, dialogues):
        run = tmp_path / f"run{offset is None}"
        config = reward_config(run, epochs=0.5)
        result = train_reward(config, model=make_lm(), tokenizer=tokenizer, pairs=pairs, demonstrations=offset)
        stock, tok = (
            AutoModelForSequenceClassification.from_pretrained(run / "final"),
            AutoTokenizer.from_pretrained(run / "final"),
        )
        assert stock.config.num_labels == 1 and tok.pad_token_id == stock.config.pad_token_id != tok.eos_token_id
        assert tok.padding_side == "right"
        chat = ChatFormat(tok, "model")
        ids = [chat.encode_dialogue(d.messages)[0] for d in dialogues]
        ours = score_sequences(load_scalar_model(str(run / "final")), ids, pad_id=0) + result.metrics["reward_offset"]
        batch = tok.pad({"input_ids": ids}, return_tensors="pt")
        rendered = [tok.apply_chat_template(list(d.messages), tokenize=False) for d in dialogues]
        as_text = tok(rendered, add_special_tokens=False, padding=True, return_tensors="pt")
        assert torch.equal(as_text["input_ids"], batch["input_ids"])
        with torch.no_grad():
            theirs = stock(**batch).logits[:, 0]
            alone = torch.cat([stock(torch.tensor([i])).logits[:, 0] for i in ids])
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
        torch.testing.assert_close(alone, ours, rtol=0, atol=1e-5)
        in_memory = score_sequences(result.model, ids, pad_id=3) + result.metrics["reward_offset"]
        torch.testing.assert_close(in_memory, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pad", ["eos", None])
def test_pad_that_ends_answers_is_replaced(
    tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any, pairs: list[PreferencePair], dialogues: Any,
    pad: str | None, capsys: Any,
) -> None:  # fmt: skip
    tokenizer.pad_token = tokenizer.eos_token if pad else None
    mine = copy.deepcopy(tokenizer)
    # "<|pad|>" is in this vocabulary as an ordinary token, so another name must be found
    run = tmp_path / "run"
    train_reward(reward_config(run, epochs=0.5), model=make_lm(), tokenizer=tokenizer, pairs=pairs)
    assert "must differ from the tokens that end an answer" in capsys.readouterr().out
    assert len(tokenizer) == len(mine)  # the caller's tokenizer is left alone
    tok, stock = (
        AutoTokenizer.from_pretrained(run / "final"),
        AutoModelForSequenceClassification.from_pretrained(run / "final"),
    )
    assert tok.pad_token_id == len(mine) == stock.config.pad_token_id
    assert stock.get_input_embeddings().weight.shape[0] == len(mine) + 1
    chat = ChatFormat(tok, "model")
    ids = [chat.encode_dialogue(d.messages)[0] for d in dialogues]
    with torch.no_grad():
        theirs = stock(**tok.pad({"input_ids": ids}, return_tensors="pt")).logits[:, 0]
    torch.testing.assert_close(theirs, score_sequences(stock, ids, pad_id=0), rtol=0, atol=1e-5)


def test_disagreements_hold_the_widest_wrong_gaps(
    tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any, pairs: list[PreferencePair]
) -> None:
    turned = [PreferencePair(p.prompt, p.rejected, p.chosen, "turned") for p in pairs[:10]]
    run = tmp_path / "run"
    train_reward(
        reward_config(run, epochs=6), model=make_lm(), tokenizer=tokenizer, pairs=pairs[10:], eval_pairs=turned
    )
    wrong = [json.loads(line) for line in (run / "disagreements.jsonl").read_text().splitlines()]
    assert len(wrong) == 10
    assert [w["gap"] for w in wrong] == sorted(w["gap"] for w in wrong)
    assert all(w["gap"] < 0 and w["gap"] == pytest.approx(w["reward_chosen"] - w["reward_rejected"]) for w in wrong)
    assert {w["chosen"] for w in wrong} == {p.chosen[0]["content"] for p in turned}
    assert set(wrong[0]) == {
        "prompt",
        "chosen",
        "rejected",
        "reward_chosen",
        "reward_rejected",
        "gap",
        "source",
        "origin",
    }


def test_resumed_run_continues_bit_for_bit(
    tmp_path: Path,
    make_lm: Callable[..., Any],
    tokenizer: Any,
    pairs: list[PreferencePair],
    dialogues: Any,
    monkeypatch: Any,
) -> None:
    def go(folder: Path, resume: bool = False) -> Any:
        config = reward_config(folder, epochs=3, eval_every=2, checkpoint={"every": 3, "keep": 2})
        return train_reward(config, model=make_lm(tie_word_embeddings=False), tokenizer=tokenizer, pairs=pairs,
                            demonstrations=dialogues, resume=resume)  # fmt: skip

    whole = go(tmp_path / "whole")
    log = RunDirectory.log

    def killed(self: RunDirectory, record: Any, file: str = "metrics.jsonl") -> None:
        log(self, record, file)
        if record["update"] == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "log", killed)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "killed")
    monkeypatch.setattr(RunDirectory, "log", log)
    resumed = go(tmp_path / "killed", resume=True)
    assert metrics_of(tmp_path / "killed") == metrics_of(tmp_path / "whole")
    assert whole.metrics == resumed.metrics
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize("tied", [True, False])
def test_lora(
    tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any, pairs: list[PreferencePair], tied: bool
) -> None:
    pytest.importorskip("peft")
    config = reward_config(tmp_path / "run", lora={"rank": 4, "alpha": 16}, epochs=4, optim={"lr": 1e-2, "eps": 1e-3})
    start = make_lm(tie_word_embeddings=tied)
    before = {n: v.clone() for n, v in start.state_dict().items()}
    result = train_reward(config, model=start, tokenizer=tokenizer, pairs=pairs)
    lines = metrics_of(tmp_path / "run")
    assert lines[-2]["loss/imitation"] < lines[0]["loss/imitation"] - 0.2
    assert result.metrics["held_out"]["overall"]["model"]["accuracy"] > 0.9
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "final")
    assert torch.equal(stock.get_input_embeddings().weight, before["model.embed_tokens.weight"])
    assert torch.equal(start.get_output_embeddings().weight, before["lm_head.weight"])
    assert not torch.equal(stock.model.layers[0].mlp.up_proj.weight, before["model.layers.0.mlp.up_proj.weight"])
    ids = [[1, 30, 40, 2], [1, 50, 2]]
    torch.testing.assert_close(
        score_sequences(stock, ids, pad_id=0), score_sequences(result.model, ids, pad_id=0), rtol=1e-4, atol=1e-5
    )
    again = train_reward(config, model=make_lm(tie_word_embeddings=tied), tokenizer=tokenizer, pairs=pairs, resume=True)
    assert again.metrics == result.metrics


@pytest.mark.parametrize("pad", [True, False])
def test_adapters_by_themselves_score_as_the_merged_model(
    tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any, pairs: list[PreferencePair], pad: bool
) -> None:
    pytest.importorskip("peft")
    own = copy.deepcopy(tokenizer)
    if not pad:  # then one is added, and the embeddings grow where there is no room
        own.pad_token = None
        own.add_tokens([f"<{i}>" for i in range(make_lm().config.vocab_size - len(own))])
    make_lm().save_pretrained(tmp_path / "base")
    own.save_pretrained(tmp_path / "base")
    config = reward_config(
        tmp_path / "run", model=str(tmp_path / "base"), lora={"rank": 4, "alpha": 16}, optim={"lr": 1e-2}
    )
    train_reward(config, pairs=pairs, demonstrations=[Dialogue((*p.prompt, *p.chosen)) for p in pairs])
    final = tmp_path / "run" / "final"
    models = [load_scalar_model(str(place)) for place in (final, final / "adapter")]
    assert models[0].config.reward_offset == models[1].config.reward_offset != 0
    assert models[0].get_input_embeddings().weight.shape == models[1].get_input_embeddings().weight.shape
    ids, pad_id = [[1, 30, 40, 2], [1, 50, 2]], models[1].config.pad_token_id
    assert pad_id == models[0].config.pad_token_id == load_tokenizer(str(final / "adapter")).pad_token_id
    scores = [score_sequences(model, ids, pad_id=pad_id) - model.config.reward_offset for model in models]
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-5)
    assert RewardAdapter.read(str(final / "adapter"), None).config["reward_offset"] == models[0].config.reward_offset


def test_models_saved_elsewhere_load(tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any) -> None:
    """A stock classifier with pad equal to eos (as other trainers write) is read at the last real token."""
    make_lm().save_pretrained(tmp_path / "lm")
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "lm", num_labels=1, pad_token_id=2).eval()
    stock.save_pretrained(tmp_path / "theirs")
    ours = load_scalar_model(str(tmp_path / "theirs"))
    ids = [[1, 30, 40, 2], [1, 50, 60, 70, 80, 2]]
    with torch.no_grad():
        expected = torch.stack([stock.score(stock.model(torch.tensor([i])).last_hidden_state)[0, -1, 0] for i in ids])
    torch.testing.assert_close(score_sequences(ours, ids, pad_id=2), expected, rtol=0, atol=1e-5)


def test_margin(tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any, pairs: list[PreferencePair]) -> None:
    wide = [PreferencePair(p.prompt, p.chosen, p.rejected, p.source, margin=2.0) for p in pairs]
    first = []
    for name, margin in (("with", True), ("without", False)):
        train_reward(
            reward_config(tmp_path / name, margin=margin, epochs=0.5), model=make_lm(), tokenizer=tokenizer, pairs=wide
        )
        first.append(metrics_of(tmp_path / name)[0]["loss/preference"])
    assert first[0] > first[1] + 0.5
    with pytest.raises(UserError, match="no training pair has a `margin`"):
        train_reward(reward_config(tmp_path / "run", margin=True), model=make_lm(), tokenizer=tokenizer, pairs=pairs)


# -------------------------------------------------------------------------------------------- bad input


def test_mistakes_are_told_in_one_line(
    tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any, pairs: list[PreferencePair], model_dir: Path
) -> None:
    run = tmp_path / "run"

    def complaint(given: Any = pairs, model: Any = None, demonstrations: Any = None, **changes: Any) -> str:
        with pytest.raises(UserError) as caught:
            train_reward(reward_config(run, **changes), model=model or make_lm(), tokenizer=tokenizer, pairs=given,
                         demonstrations=demonstrations)  # fmt: skip
        assert not run.exists()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "min_pairs 9 is above max_pairs 8" in complaint(min_pairs=9, max_pairs=8)
    assert "expected PreferencePair, found Text" in complaint(given=[Text("hello")])
    assert "no training pair is left" in complaint(max_length=8)
    assert "context of 256" in complaint(max_length=300)
    assert "is a dialogue" in complaint(demonstrations=[Text("hello")])
    same = pair("Hi", "the same", "the same")
    assert "no training pair is left" in complaint(given=[same])
    reward_model = on_backbone(make_lm(), pad_id=0)
    reward_model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    with pytest.raises(UserError, match="is a reward model, not a language model"):
        train_reward(reward_config(run, model=str(tmp_path / "rm")), pairs=pairs)
    with pytest.raises(UserError, match="no such model directory"):
        train_reward(reward_config(run, model=str(tmp_path / "absent")), pairs=pairs)
    dialogues = tmp_path / "dialogues.jsonl"
    dialogues.write_text(json.dumps({"messages": list(pairs[0].prompt + pairs[0].chosen)}) + "\n")
    with pytest.raises(UserError, match="pairs"):
        train_reward(reward_config(run, model=str(model_dir), data=[str(dialogues)]))
    assert not run.exists()


def test_nothing_held_out(
    tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any, pairs: list[PreferencePair]
) -> None:
    config = reward_config(tmp_path / "run", eval_fraction=0, epochs=0.5)
    result = train_reward(config, model=make_lm(), tokenizer=tokenizer, pairs=pairs)
    assert "held_out" not in result.metrics and math.isfinite(result.metrics["train_accuracy"])
    assert (tmp_path / "run/final/model.safetensors").is_file()


def test_bf16_compares_rewards_in_float32(
    tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any, pairs: list[PreferencePair]
) -> None:
    first = []
    for name in ("float32", "bf16"):
        config = reward_config(tmp_path / name, precision=name, epochs=4)
        result = train_reward(config, model=make_lm(), tokenizer=tokenizer, pairs=pairs)
        assert all(p.dtype == torch.float32 for p in result.model.parameters())
        assert result.metrics["held_out"]["overall"]["model"]["accuracy"] > 0.9
        first.append(metrics_of(tmp_path / name)[0]["loss/train"])
    assert first[0] != first[1] and first[1] == pytest.approx(first[0], rel=0.01)
