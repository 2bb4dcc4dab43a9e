"""SFT: the loss against a slow reference, packing, splits, resuming, and what is written."""

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
from transformers import AutoModelForCausalLM, AutoTokenizer, BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from ppomax.config import SFTConfig
from ppomax.data.chat import ChatFormat
from ppomax.data.records import Dialogue, Text
from ppomax.errors import UserError
from ppomax.models.attention import allow_rows_in_one
from ppomax.train.parallel import Ranks
from ppomax.train.run import RunDirectory
from ppomax.train.sft import (
    Example,
    batch_of,
    collate,
    encode_records,
    evaluate_lm,
    make_rows,
    require_packing,
    token_nll,
    train_sft,
)

CPU = torch.device("cpu")


def sft_config(folder: Path, **changes: Any) -> SFTConfig:
    options: dict[str, Any] = {
        "model": "memory", "data": ["memory"], "output_dir": str(folder), "device": "cpu", "max_length": 64,
        "batch_size": 2, "epochs": 2, "eval_fraction": 0.0, "optim": {"lr": 5e-3, "schedule": "cosine", "eps": 1e-3},
    }  # fmt: skip
    return SFTConfig.model_validate(options | changes)


def examples_of(lengths: list[int], vocabulary: int, seed: int = 0) -> list[Example]:
    """Random tokens; about two thirds of them are trained, at least one a record."""
    draw = np.random.default_rng(seed)
    out = []
    for n in lengths:
        trained = draw.random(n) < 0.66
        trained[0], trained[-1] = False, True
        out.append(Example(draw.integers(0, vocabulary, n).astype(np.int32), trained, f"s{len(out) % 2}"))
    return out


def reference_nll(model: Any, examples: list[Example]) -> torch.Tensor:
    """Sum of the NLL of trained tokens: float64, one record at a time, one token at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for e in examples:
        logits = model(torch.tensor(e.ids[None], dtype=torch.long)).logits[0]
        for t in range(1, len(e.ids)):
            if e.trained[t]:
                total = total - torch.log_softmax(logits[t - 1], dim=-1)[int(e.ids[t])]
    return total


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}


def loss_and_gradients(model: Any, rows: list[Any], packed: bool) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = token_nll(model, batch_of(model, rows, packed=packed, pad_id=0, device=CPU)).sum()
    loss.backward()
    return loss.item(), gradients(model)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            value, other[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


# ----------------------------------------------------------------------------------------------- loss


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(st.lists(st.integers(2, 12), min_size=1, max_size=4), min_size=1, max_size=3), seed=st.integers(0, 9)
)
def test_packed_rows_equal_separate_records(make_lm: Callable[..., Any], rows: list[list[int]], seed: int) -> None:
    """Rows of several records and rows of one, together in a batch, against a float64 reference without packing."""
    model = make_lm(seed)
    examples = [examples_of(row, 300, seed + i) for i, row in enumerate(rows)]
    flat = [e for row in examples for e in row]
    exact = copy.deepcopy(model).double()
    expected = reference_nll(exact, flat)
    expected.backward()
    packed_loss, packed_grads = loss_and_gradients(model, examples, packed=True)
    alone_loss, alone_grads = loss_and_gradients(model, [[e] for e in flat], packed=False)
    allow_rows_in_one(model.model)
    without_pads = batch_of(model, examples, packed=True, pad_id=0, device=CPU)
    assert len(without_pads.ids) == len(flat) and without_pads.position_ids is None
    quick_loss, quick_grads = loss_and_gradients(model, examples, packed=True)
    assert quick_loss == pytest.approx(expected.item(), rel=2e-6)
    assert_same(quick_grads, gradients(exact), 2e-4)
    assert packed_loss == pytest.approx(expected.item(), rel=2e-6)
    assert alone_loss == pytest.approx(expected.item(), rel=2e-6)
    # gradients of a sum over up to a hundred tokens
    assert_same(packed_grads, gradients(exact), 2e-4)
    assert_same(alone_grads, gradients(exact), 2e-4)


def test_records_too_unequal_for_rows_of_their_own(make_lm: Callable[..., Any]) -> None:
    model = make_lm()
    allow_rows_in_one(model.model)
    rows = [examples_of([100], 300), examples_of([4] * 25, 300)]
    batch = batch_of(model, rows, packed=True, pad_id=0, device=CPU)
    assert batch.ids.shape == (2, 100) and batch.position_ids is not None  # not (26, 100)


def test_packing_really_isolates(make_lm: Callable[..., Any]) -> None:
    """The test above could pass by accident if records hardly influenced each other: they do without positions."""
    model, (first, second) = make_lm(), examples_of([9, 9], 300)
    joined = Example(np.concatenate([first.ids, second.ids]), np.concatenate([first.trained, second.trained]), "s")
    together = token_nll(model, collate([[joined]], packed=False, pad_id=0, device=CPU)).sum().item()
    packed = token_nll(model, collate([[first, second]], packed=True, pad_id=0, device=CPU)).sum().item()
    assert abs(together - packed) > 0.1


def test_padding_does_not_matter(make_lm: Callable[..., Any]) -> None:
    model, examples = make_lm(), examples_of([3, 20], 300)
    short = token_nll(model, collate([[examples[0]]], packed=False, pad_id=0, device=CPU))
    for packed in (False, True):
        for pad in (0, 2, int(examples[0].ids[-1])):
            both = token_nll(model, collate([[e] for e in examples], packed=packed, pad_id=pad, device=CPU))
            torch.testing.assert_close(both[: len(short)], short, rtol=1e-5, atol=1e-5)


def test_first_update_is_the_mean_over_trained_tokens(
    tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any, dialogues: list[Dialogue]
) -> None:
    config = sft_config(tmp_path / "run", batch_size=100, epochs=1)
    model = make_lm()
    exact = copy.deepcopy(model).double()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for d in dialogues:  # by the documented template, not by our own masks
        ids = [tokenizer.bos_token_id]
        for m in d.messages:
            ids.append(tokenizer.convert_tokens_to_ids(f"<|{m['role']}|>"))
            words = tokenizer(m["content"], add_special_tokens=False)["input_ids"]
            if m["role"] == "assistant":
                for target in [*words, tokenizer.eos_token_id]:
                    logits = exact(torch.tensor([ids])).logits[0, -1]
                    total = total - torch.log_softmax(logits, -1)[target]
                    count += 1
                    ids.append(target)
            else:
                ids += words
    (total / count).backward()
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in exact.parameters() if p.grad is not None))
    train_sft(config, model=model, tokenizer=tokenizer, records=dialogues)
    line = metrics_of(tmp_path / "run")[0]
    assert line["tokens"] == count
    assert line["loss/train"] == pytest.approx(total.item() / count, rel=1e-6)
    assert line["grad_norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("packing", [True, False])
def test_micro_batches_do_not_change_training(
    tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any, dialogues: list[Dialogue], packing: bool
) -> None:
    finals, lines = [], []
    for budget in (1, 90, 100_000):
        folder = tmp_path / str(budget)
        config = sft_config(folder, micro_batch_tokens=budget, packing=packing, batch_size=4, epochs=3)
        finals.append(train_sft(config, model=make_lm(), tokenizer=tokenizer, records=dialogues).model.state_dict())
        lines.append(metrics_of(folder))
    for other, its_lines in zip(finals[1:], lines[1:], strict=True):
        assert_same(finals[0], other, 2e-5)
        for a, b in zip(lines[0], its_lines, strict=True):
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
            assert a["loss/train"] == pytest.approx(b["loss/train"], rel=1e-5)


# ----------------------------------------------------------------------------------------------- data


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(words=st.integers(1, 60), max_length=st.integers(8, 40))
def test_long_text_is_cut_and_nothing_lost(tmp_path: Path, tokenizer: Any, words: int, max_length: int) -> None:
    text = " ".join(f"word{i}" for i in range(words))
    chat = ChatFormat(tokenizer, "model")
    config = sft_config(tmp_path, max_length=max_length)
    examples, lines = encode_records([Text(text)], chat, config)
    whole = chat.encode_text(text)
    predicted = [int(t) for e in examples for t in e.ids[e.trained]]
    assert predicted == whole[1:]  # each once, in order; the first has nothing before it
    assert all(len(e.ids) <= max_length for e in examples)
    assert any("nothing lost" in line for line in lines) == (len(whole) > max_length)


def test_overlong_dialogues_are_counted(tmp_path: Path, tokenizer: Any, dialogues: list[Dialogue]) -> None:
    chat = ChatFormat(tokenizer, "model")
    long = Dialogue(({"role": "user", "content": "sky " * 50}, {"role": "assistant", "content": "sea"}))
    for overlong, kept, word in (
        ("truncate", 11, "1 dialogues over max_length 64 lost"),
        ("drop", 10, "1 dialogues dropped"),
    ):
        examples, lines = encode_records([*dialogues, long], chat, sft_config(tmp_path, overlong=overlong))
        assert len(examples) == kept
        assert any(word in line for line in lines), lines
        assert max(len(e.ids) for e in examples) <= 64
    tale = Dialogue(({"role": "user", "content": "sky"}, {"role": "assistant", "content": "sea " * 90}))
    [example], lines = encode_records([tale], chat, sft_config(tmp_path))
    assert any(
        "1 dialogues whose last answer alone is about max_length 64 or over lost that answer's end" in x for x in lines
    )
    whole = chat.encode_dialogue(tale.messages)[0]
    assert example.ids.tolist() == whole[:64] and 0 < example.count < 64, "prompt and beginning of the answer"
    ids = encode_records([long], chat, sft_config(tmp_path))[0][0].ids.tolist()
    assert ids[0] == chat.bos_id  # stays at the front
    assert ids == ids[:1] + chat.encode_dialogue(long.messages)[0][-63:]


def test_turns_that_are_context_alone_are_not_trained_on(tmp_path: Path, tokenizer: Any) -> None:
    chat, turns = ChatFormat(tokenizer), []
    for question, answer in (("Hello there", "Thank you!"), ("Where does the river go?", "To the sea.")):
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    [both], _ = encode_records([Dialogue(tuple(turns))], chat, sft_config(tmp_path))
    [last], _ = encode_records([Dialogue(tuple(turns), untrained=(1,))], chat, sft_config(tmp_path))
    assert last.ids.tolist() == both.ids.tolist() and 0 < last.count < both.count
    assert chat.decode(last.ids[last.trained]) == "To the sea."


def test_every_row_comes_once_an_epoch(
    tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any, dialogues: Any
) -> None:
    config = sft_config(tmp_path / "run", epochs=1.5, packing=False, batch_size=4)
    train_sft(config, model=make_lm(), tokenizer=tokenizer, records=dialogues)
    lines = metrics_of(tmp_path / "run")
    assert [line["epoch"] for line in lines] == pytest.approx([0.4, 0.8, 1.2, 1.5])
    chat = ChatFormat(tokenizer, "model")
    tokens = sum(e.count for e in encode_records(dialogues, chat, config)[0])
    first_epoch = sum(line["tokens"] for line in lines)
    assert tokens < first_epoch < 2 * tokens


def test_real_records_train_on_what_the_assistant_says(real_data: Path, tmp_path: Path, tokenizer: Any) -> None:
    from ppomax.config import DataSource
    from ppomax.data.sources import load_mixture

    sources = [DataSource(path=str(real_data / f"dialogues_{lang}.jsonl.gz"), limit=40) for lang in ("en", "zh")]
    records, _ = load_mixture(sources, "dialogue")
    chat = ChatFormat(tokenizer, "model")
    examples, _ = encode_records(records, chat, sft_config(tmp_path, max_length=100_000))
    assert len(examples) == 80
    for record, e in zip(records, examples, strict=True):
        assert isinstance(record, Dialogue)
        said = "".join(m["content"] + tokenizer.eos_token for m in record.messages if m["role"] == "assistant")
        assert tokenizer.decode(e.ids[e.trained]) == said


# --------------------------------------------------------------------------------------- runs and files


def metrics_of(folder: Path, timeless: bool = False) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    if timeless:
        lines = [
            {k: v for k, v in line.items() if not k.startswith(("time/", "throughput/", "memory/"))} for line in lines
        ]
    return lines


def test_learns_and_leaves_a_whole_run(
    tmp_path: Path, model_dir: Path, dialogues: list[Dialogue], capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "dialogues.jsonl"
    data.write_text("".join(json.dumps({"messages": list(d.messages)}, ensure_ascii=False) + "\n" for d in dialogues))
    run = tmp_path / "run"
    config = sft_config(run, model=str(model_dir), data=[str(data)], eval_data=[str(data)], epochs=60, eval_every=20)
    result = train_sft(config)
    lines = metrics_of(run)
    evaluations = {line["update"]: line["eval/loss"] for line in lines if "eval/loss" in line}
    total = lines[-1]["update"]
    assert sorted(evaluations) == [*range(0, total, 20), total]
    assert result.metrics["token_accuracy"] > 0.95 and evaluations[total] < 0.2 < 3 < evaluations[0]
    assert result.metrics["perplexity"] == pytest.approx(math.exp(result.metrics["loss"]))
    saved = json.loads((run / "evaluation.json").read_text())
    assert saved["start"]["loss"] == pytest.approx(evaluations[0]) and saved["trained"] == result.metrics
    assert lines[0]["lr"] < max(line.get("lr", 0) for line in lines) == pytest.approx(5e-3)
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["memory/peak"] > 10
    assert lines[-2]["lr"] == pytest.approx(5e-4)  # cosine ends at 10%
    printed = capsys.readouterr().out
    assert "start model" in printed and "8 held-out prompts also occur" in printed

    loaded = AutoModelForCausalLM.from_pretrained(run / "final")
    assert loaded.config.ppomax_stage == "sft"
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, result.model.state_dict()[name])
    assert AutoTokenizer.from_pretrained(run / "final").chat_template == result.tokenizer.chat_template
    card = (run / "final" / "README.md").read_text()
    assert "dialogues.jsonl: layout messages, 10 read" in card and "perplexity" in card and "max_length: 64" in card


def test_plain_text_makes_a_base_model(tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any) -> None:
    tokenizer.chat_template = None  # not needed for text
    records = [Text(f"The river goes to the sea, {i} times. 河流向大海。") for i in range(12)]
    result = train_sft(sft_config(tmp_path / "run", epochs=4), model=make_lm(), tokenizer=tokenizer, records=records)
    lines = metrics_of(tmp_path / "run")
    assert lines[-1]["loss/train"] < lines[0]["loss/train"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final").config.ppomax_stage == "base"
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "final").chat_template is None
    assert result.metrics == {}  # nothing was held out


def test_plain_template_is_saved(
    tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any, dialogues: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = sft_config(tmp_path / "run", chat_template="human_assistant_zh", epochs=0.5, tracker_project="unread")
    train_sft(config, model=make_lm(), tokenizer=tokenizer, records=dialogues)
    assert "warning: tracker_project does nothing: trackers holds neither" in capsys.readouterr().err
    saved = AutoTokenizer.from_pretrained(tmp_path / "run" / "final")
    assert "助手：" in saved.apply_chat_template(
        [{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize("stop", [2, 3])
def test_resumed_run_continues_bit_for_bit(
    tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any, dialogues: Any, monkeypatch: Any, stop: int
) -> None:
    options: dict[str, Any] = {"checkpoint": {"every": 2, "keep": 1}, "epochs": 3, "eval_every": 2, "packing": False}

    def go(folder: Path, resume: bool = False) -> Any:
        return train_sft(sft_config(folder, **options), model=make_lm(), tokenizer=tokenizer,
                         records=dialogues[:6], eval_records=dialogues[6:], resume=resume)  # fmt: skip

    whole = go(tmp_path / "whole")
    log = RunDirectory.log

    def killed(self: RunDirectory, record: Any, file: str = "metrics.jsonl") -> None:
        log(self, record, file)
        if record["update"] == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "log", killed)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "killed")
    monkeypatch.setattr(RunDirectory, "log", log)
    resumed = go(tmp_path / "killed", resume=True)
    assert metrics_of(tmp_path / "killed", True) == metrics_of(tmp_path / "whole", True)
    assert whole.metrics == resumed.metrics
    assert (tmp_path / "killed/evaluation.json").read_text() == (tmp_path / "whole/evaluation.json").read_text()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_finished_run_may_be_resumed(
    tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any, dialogues: Any
) -> None:
    config = sft_config(tmp_path / "run", epochs=1)
    first = train_sft(config, model=make_lm(), tokenizer=tokenizer, records=dialogues)
    lines = metrics_of(tmp_path / "run")
    again = train_sft(config, model=make_lm(), tokenizer=tokenizer, records=dialogues, resume=True)
    assert metrics_of(tmp_path / "run") == lines
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_lora(tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any, dialogues: Any) -> None:
    pytest.importorskip("peft")
    start = make_lm().state_dict()
    config = sft_config(tmp_path / "run", lora={"rank": 4, "alpha": 8}, epochs=4, checkpoint={"every": 2, "keep": 1})
    result = train_sft(config, model=make_lm(), tokenizer=tokenizer, records=dialogues)
    lines = metrics_of(tmp_path / "run")
    assert lines[-1]["loss/train"] < lines[0]["loss/train"] - 0.05
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")
    ids = torch.tensor([[1, 30, 40, 50]])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, result.model(ids).logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(merged.get_input_embeddings().weight, start["model.embed_tokens.weight"])
    assert not torch.equal(merged.model.layers[0].mlp.up_proj.weight, start["model.layers.0.mlp.up_proj.weight"])
    assert (tmp_path / "run/final/adapter/adapter_model.safetensors").is_file()
    # resuming a run with adapters
    again = train_sft(config, model=make_lm(), tokenizer=tokenizer, records=dialogues, resume=True)
    with torch.no_grad():
        assert torch.equal(again.model(ids).logits, result.model(ids).logits)


# ----------------------------------------------------------------------------------------- evaluation


def test_evaluation_against_reference(tmp_path: Path, make_lm: Callable[..., Any], monkeypatch: Any) -> None:
    model, examples = make_lm(), examples_of([5, 9, 14, 3, 30], 300)
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        loss = reference_nll(exact, examples).item() / sum(e.count for e in examples)
        right = sum(
            int(exact(torch.tensor(e.ids[None], dtype=torch.long)).logits[0, t - 1].argmax()) == e.ids[t]
            for e in examples for t in range(len(e.ids)) if e.trained[t]
        )  # fmt: skip
        by_source = {
            name: reference_nll(exact, some).item() / sum(e.count for e in some)
            for name in ("s0", "s1") if (some := [e for e in examples if e.source == name])
        }  # fmt: skip
    for packing, chunk in ((True, 2**25), (False, 2**25), (True, 300 * 4)):
        monkeypatch.setattr("ppomax.train.sft.CHUNK_ELEMENTS", chunk)
        got = evaluate_lm(model, examples, sft_config(tmp_path, packing=packing), Ranks(), pad_id=0)
        assert got["loss"] == pytest.approx(loss, rel=1e-5)
        assert got["perplexity"] == pytest.approx(math.exp(got["loss"]))
        assert got["tokens"] == sum(e.count for e in examples)
        assert got["token_accuracy"] == pytest.approx(right / got["tokens"], abs=1e-9)
        assert {k: v["loss"] for k, v in got["sources"].items()} == pytest.approx(by_source, rel=1e-5)


# -------------------------------------------------------------------------------------------- bad input


def test_packing_is_refused_where_records_would_mix() -> None:
    torch.manual_seed(0)
    bloom = BloomForCausalLM(
        BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2, initializer_range=0.5)
    ).eval()
    with pytest.raises(UserError, match="set packing to false"):
        require_packing(bloom, CPU)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32)).eval()
    require_packing(gpt2, CPU)  # learned positions restart too


def test_pad_equal_to_eos_works(tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any, dialogues: Any) -> None:
    plain = copy.deepcopy(tokenizer)
    plain.pad_token = plain.eos_token
    for name, tok in (("a", tokenizer), ("b", plain)):
        config = sft_config(tmp_path / name, packing=False, batch_size=5, epochs=1)
        train_sft(config, model=make_lm(), tokenizer=tok, records=dialogues)
    assert metrics_of(tmp_path / "a", True) == metrics_of(tmp_path / "b", True)


def test_mistakes_are_told_in_one_line(
    tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any, dialogues: list[Dialogue], model_dir: Path
) -> None:
    run = tmp_path / "run"

    def complaint(records: Any = dialogues, model: Any = None, tok: Any = tokenizer, **changes: Any) -> str:
        with pytest.raises(UserError) as caught:
            train_sft(sft_config(run, **changes), model=model or make_lm(), tokenizer=tok, records=records)
        assert not run.exists()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "context of 256" in complaint(max_length=512)
    assert "expected Dialogue or Text, found str" in complaint(records=["hello"])
    assert "no record is left" in complaint(records=[])
    assert "no training example is left" in complaint(max_length=8, overlong="drop")
    assert "do not belong together" in complaint(model=make_lm(vocab_size=300))
    no_eos = copy.deepcopy(tokenizer)
    no_eos.eos_token = None
    assert "no eos" in complaint(tok=no_eos)
    no_template = copy.deepcopy(tokenizer)
    no_template.chat_template = None
    assert "no chat template" in complaint(tok=no_template)
    with pytest.raises(UserError, match="no such model directory"):
        train_sft(sft_config(run, model=str(tmp_path / "absent")), records=dialogues)
    with pytest.raises(UserError, match="not a model directory"):
        train_sft(sft_config(run, model=str(tmp_path)), records=dialogues)
    with pytest.raises(UserError, match="does not exist"):
        train_sft(sft_config(run, model=str(model_dir), data=[str(tmp_path / "none.jsonl")]))
    assert not run.exists()

    train_sft(sft_config(run, epochs=0.5), model=make_lm(), tokenizer=tokenizer, records=dialogues)
    before = sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*"))
    with pytest.raises(UserError, match="already holds a run"):
        train_sft(sft_config(run), model=make_lm(), tokenizer=tokenizer, records=dialogues)
    with pytest.raises(UserError, match=r"other settings: epochs \(0\.5, now 2\.0\);"):
        train_sft(sft_config(run), model=make_lm(), tokenizer=tokenizer, records=dialogues, resume=True)
    assert sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*")) == before


def test_divergence_stops_the_run(tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any, dialogues: Any) -> None:
    model = make_lm()
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    with pytest.raises(UserError, match="update 0: loss nan"):
        train_sft(sft_config(tmp_path / "run", packing=False), model=model, tokenizer=tokenizer, records=dialogues)


def test_rows_are_full_and_whole(tmp_path: Path) -> None:
    examples = examples_of([40, 30, 20, 10, 5, 60, 33], 300)
    rows = make_rows(examples, sft_config(tmp_path))
    assert sorted(id(e) for row in rows for e in row) == sorted(map(id, examples))
    assert all(sum(len(e.ids) for e in row) <= 64 for row in rows)
    assert len(make_rows(examples, sft_config(tmp_path, packing=False))) == len(examples)


def test_bf16_keeps_float32_weights(
    tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any, dialogues: Any
) -> None:
    first = []
    for name in ("float32", "bf16"):
        config = sft_config(tmp_path / name, precision=name, epochs=3)
        result = train_sft(config, model=make_lm(), tokenizer=tokenizer, records=dialogues)
        assert all(p.dtype == torch.float32 for p in result.model.parameters())
        lines = metrics_of(tmp_path / name)
        assert lines[-1]["loss/train"] < lines[0]["loss/train"]
        first.append(lines[0]["loss/train"])
    assert first[0] != first[1] and first[1] == pytest.approx(first[0], rel=0.01)


def test_a_half_precision_model_is_trained_in_float32(
    tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any, dialogues: Any
) -> None:
    result = train_sft(sft_config(tmp_path / "run"), model=make_lm().bfloat16(), tokenizer=tokenizer, records=dialogues)
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run/final").dtype == torch.float32
