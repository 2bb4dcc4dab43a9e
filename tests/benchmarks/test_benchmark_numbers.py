"""The arithmetic behind roofline.py, scaling.py and small_updates.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import fixtures
import gpu
import roofline
import scaling
import small_updates

TINY = fixtures.SHAPES["tiny"]

# ------------------------------------------------------------------------------------------------------ roofline


def flops(products: list[tuple[roofline.Product, int]], batched: bool) -> int:
    return sum(n * p.flops for p, n in products if (p.batch > 1) == batched)


def test_arithmetic_of_a_phase_is_what_pytorch_counts() -> None:
    """Linear maps against the counter's mm; attention apart, since the counter takes a causal square for a whole one."""
    batch, minibatch, prompt, response = 4, 2, 6, 5
    found = roofline.needed(TINY, batch=batch, minibatch=minibatch, prompt=prompt, response=response)
    model = fixtures.fresh_llama(TINY)
    ids = torch.randint(4, TINY.vocabulary, (batch, prompt + response))

    def counted(rows: int, train: bool, head: bool) -> int:
        with FlopCounterMode(display=False) as counter:
            hidden = model.model(input_ids=ids[:rows]).last_hidden_state
            out = model.lm_head(hidden[:, -response:]) if head else hidden
            if train:
                out.sum().backward()
        counts = counter.get_flop_counts()["Global"]
        return sum(n for op, n in counts.items() if "attention" not in str(op) and "bmm" not in str(op))

    score = 2 * counted(batch, False, True) + 2 * counted(batch, False, False)
    assert flops(found["score"], batched=False) == score
    steps = batch // minibatch
    update = steps * (counted(minibatch, True, True) + counted(minibatch, True, False))
    ours = flops(found["update"], batched=False)
    assert ours == pytest.approx(update, rel=1e-6)
    square = roofline.attention(TINY, batch, 11, 11)
    assert flops(square, batched=True) == TINY.layers * 2 * 2 * batch * TINY.heads * 11 * 5 * 32


def test_each_product_has_two_behind_it() -> None:
    (a, n), (b, m) = roofline.backward([(roofline.Product(1, 3, 5, 7), 2)])
    assert (n, m) == (2, 2)
    assert a == roofline.Product(1, 3, 7, 5)
    assert b == roofline.Product(1, 5, 3, 7)
    assert a.flops == b.flops == 2 * 3 * 5 * 7


def test_a_rate_is_measured_once() -> None:
    machine = roofline.Machine(0.003)
    product = roofline.Product(2, 16, 8, 4)
    assert machine.rate(product, "float32") == machine.rate(product, "float32") > 0
    assert machine.rate(product, "bf16") > 0
    assert len(machine.known) == 2


def test_groups() -> None:
    assert roofline.group_of("aten::addmm", []) == "matrix products"
    assert roofline.group_of("aten::mul", ["Optimizer.step#AdamW.step"]) == "optimiser"
    assert roofline.group_of("aten::_scaled_dot_product_flash_attention_for_cpu", []) == "attention"
    assert roofline.group_of("aten::logsumexp", []) == "softmax and draws"
    assert roofline.group_of("aten::something_new", []) == "everything else"


# ------------------------------------------------------------------------------------------------------- scaling


def point(contender: str, series: str, value: float, seconds: float = 0.0, **more: Any) -> dict[str, Any]:
    case = next(c for c in scaling.cases() if c.series == series and c.value == value)
    line: dict[str, Any] = {"case": scaling.dataclasses.asdict(case), "contender": contender, **more}
    if seconds:
        line |= {"seconds": dict.fromkeys([*scaling.PHASES, "total"], seconds), "peak_mib": 1000 * seconds}
    return line


def test_what_is_done_and_what_was_too_much_is_left_out() -> None:
    records = [point("a", "batch", 16, 1.0), point("a", "batch", 64, 9.0, too_much="more than 8 s")]
    by_value = {c.value: c for c in scaling.cases() if c.series == "batch"}
    assert scaling.left_out(records, by_value[16], "a") == "done"
    assert scaling.left_out(records, by_value[32], "a") is None
    assert scaling.left_out(records, by_value[128], "a") == "more than 8 s at 64"
    assert scaling.left_out(records, by_value[128], "b") is None
    other = next(c for c in scaling.cases() if c.series == "response" and c.value == 256)
    assert scaling.left_out(records, other, "a") is None


def test_exponents_by_hand() -> None:
    assert scaling.exponent([(1, 1.0), (2, 2.0), (4, 8.0)]) == pytest.approx([1.0, 2.0])


def test_bends_in_words() -> None:
    assert scaling.bend([(1, 1.0)]) == "one point only"
    assert scaling.bend([(1, 1.0), (4, 2.0)]) == "no bend, exponent 0.50"
    assert scaling.bend([(1, 1.0), (2, 2.0), (4, 4.0 * 2**0.2)]) == "no bend, exponent 1.00 to 1.20"
    points = [(1, 1.0), (2, 2.0), (4, 8.0), (8, 16.0)]  # exponents 1, 2, 1
    assert scaling.bend(points) == "bends at 2 upwards, from 1.00 to 2.00 and at 4 downwards, from 2.00 to 1.00"


def test_marks_of_an_axis() -> None:
    assert [scaling.short(v) for v in (1315968, 27402752, 131072, 0.5)] == ["1.3M", "27M", "131072", "0.5"]
    assert scaling.round_values(3.3, 44.0) == [2, 5, 10, 20, 50]
    assert scaling.round_values(200.0, 1000.0) == [200, 500, 1000]


def test_ours_before_theirs() -> None:
    names = ["trl_float32", "another", "ours_float32"]
    assert scaling.contenders_of([{"contender": n} for n in names]) == ["ours_float32", "trl_float32", "another"]


def test_the_middle_comes_first_and_the_ends_last() -> None:
    order = scaling.middle_first(scaling.cases())
    assert sorted(map(repr, order)) == sorted(map(repr, scaling.cases()))
    assert len({repr(scaling.work(c)) for c in order[:4]}) == 1  # one point, in four series
    assert [(c.series, c.value) for c in order[4:6]] == [
        ("parameters", fixtures.parameters(fixtures.SHAPES["1m"])), ("batch", 16),
    ]  # fmt: skip
    assert {(c.series, c.value) for c in order[-2:]} == {("response", 1024), ("vocabulary", 131072)}


def test_expected_seconds_by_hand() -> None:
    by_value = {c.value: c for c in scaling.cases() if c.series == "batch"}
    records = [point("a", "batch", 32, 2.0)]
    assert scaling.expected([], by_value[64], "a") is None
    assert scaling.expected(records, by_value[64], "b") is None
    assert scaling.expected(records, by_value[128], "a") == pytest.approx(8.0)
    assert scaling.expected(records, by_value[16], "a") == 2.0
    records.append(point("a", "batch", 64, 8.0))  # exponent 2
    assert scaling.expected(records, by_value[128], "a") == pytest.approx(8.0 * 2**2.25)


def run_scaling(monkeypatch: pytest.MonkeyPatch, out: Path, *words: str) -> list[tuple[str, float, list[str]]]:
    """Points that a run would have measured; each takes 1000 s of a clock of its own, and 1 s an iteration."""
    done: list[tuple[str, float, list[str]]] = []
    now = [0.0]

    def measured(case: scaling.Case, names: list[str], options: Any) -> None:
        done.append((case.series, case.value, list(names)))
        now[0] += 1000
        for name in names:
            scaling.append_line(out, point(name, case.series, case.value, 1.0))

    monkeypatch.setattr(scaling, "measure", measured)
    monkeypatch.setattr(scaling.time, "monotonic", lambda: now[0])
    scaling.main(["run", "--contenders", "ours_bf16", "--out", str(out), *words])
    return done


def test_the_common_middle_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_scaling(monkeypatch, tmp_path / "out.jsonl")
    assert len(done) == len(scaling.cases()) - 3
    assert done[0][0] == "parameters" and not {("response", 64), ("batch", 32)} & {d[:2] for d in done}
    found = scaling.read(tmp_path / "out.jsonl")
    assert {(r["case"]["series"], r["case"]["value"]) for r in found} == {(c.series, c.value) for c in scaling.cases()}


def test_what_a_budget_leaves_out_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.jsonl"
    done = run_scaling(monkeypatch, out, "--series", "batch", "--budget", "2025")
    assert [d[1] for d in done] == [32, 16]  # 25 s are left for what needs 28
    text = scaling.bends(scaling.read(out))
    assert "- ours_bf16 at 64: not measured, about 28 s needed, 25 s left of 2025" in text
    again = run_scaling(monkeypatch, out, "--series", "batch")
    assert [d[1] for d in again] == [64, 128, 256]
    assert "not measured" not in scaling.bends(scaling.read(out))


def test_processor_time_can_be_drawn() -> None:
    line = point("a", "batch", 16, 1.0, iterations=5)
    line["cpu_seconds"] = dict.fromkeys(line["seconds"], 7.0)
    text = scaling.bends([line], "cpu_seconds")
    assert "processor seconds, medians of 5 rounds" in text
    assert "| a | 16 | 7.00 | 7.00 | 7.00 | 7.00 | 1000 |" in text
    assert "| a | 16 | 1.00 |" in scaling.bends([line])


def test_series_cover_what_they_should() -> None:
    cases = scaling.cases()
    values = {s: [c.value for c in cases if c.series == s] for s in scaling.AXES}
    assert all(v == sorted(v) for v in values.values())
    assert values["parameters"][0] < 2e6 and values["parameters"][-1] > 1e8
    assert (values["response"][0], values["response"][-1]) == (64, 1024)
    assert (values["batch"][0], values["batch"][-1]) == (16, 256)
    assert (values["vocabulary"][0], values["vocabulary"][-1]) == (4096, 131072)
    assert all(fixtures.parameters(c.shape) == c.value for c in cases if c.series == "parameters")


def test_the_page_is_drawn_and_its_text_kept(tmp_path: Path) -> None:
    out, page = tmp_path / "scaling.jsonl", tmp_path / "scaling.md"
    for name, factor in (("ours_bf16", 1.0), ("trl_float32", 3.0)):
        for value in (16, 32, 64):
            scaling.append_line(out, point(name, "batch", value, factor * value / 16))
    scaling.append_line(out, point("trl_float32", "batch", 128, too_much="it ended early"))
    page.write_text(f"# Title\n\nBefore.\n\n{scaling.BEGIN}\nold\n{scaling.END}\n\nAfter.\n")
    scaling.main(["draw", "--out", str(out), "--page", str(page)])
    text = page.read_text()
    assert text.startswith("# Title\n\nBefore.\n") and text.endswith("\n\nAfter.\n")
    assert "old" not in text
    assert "ours_bf16: time no bend, exponent 1.00 to 1.00; memory no bend, exponent 1.00 to 1.00" in text
    assert "trl_float32 at 128: too much, it ended early" in text
    assert page.with_suffix(".png").stat().st_size > 5000


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nothing measured yet"):
        scaling.main(["draw", "--out", str(tmp_path / "none.jsonl")])


# ------------------------------------------------------------------------------------------------- small updates


def test_bf16_weights_lose_small_updates_and_autocast_does_not() -> None:
    torch.manual_seed(0)
    start = fixtures.fresh_llama(TINY).to(torch.bfloat16).float()
    batches = [torch.randint(4, TINY.vocabulary, (2, 16)) for _ in range(2)] * 2
    rows = {row["way"]: row for row in small_updates.compare(start, batches, 1e-6)}
    assert rows["float32"]["distance"] == pytest.approx(1.0)
    assert rows["autocast"]["changed"] > 0.9
    assert rows["autocast"]["cosine"] > 0.9
    assert rows["bf16"]["changed"] < 0.1
    assert rows["bf16"]["gain"] < 0.3 < 0.9 < rows["autocast"]["gain"]


# ----------------------------------------------------------------------------------------------------------- gpu


def test_gpu_figures_by_hand() -> None:
    options = gpu.argparse.Namespace(
        size="tiny", device="cpu", batch=4, prompt=6, response=5, micro_batch_tokens=64, warmup=1, matrix=64, set=[]
    )
    rows = [{"sample": (1.0, 2.0), "score": (2.0, 3.0), "update": (seconds, 4.0)} for seconds in (3.0, 4.0, 9.0)]
    text, found = gpu.page(rows, 1e9, options)
    work = roofline.needed(TINY, batch=4, minibatch=1, prompt=6, response=5)["update"]
    assert found["seconds"]["update"] == 4.0
    assert found["share"]["update"] == pytest.approx(sum(n * p.flops for p, n in work) / 4.0 / 1e9)
    assert found["memory_gib"] == {"sample": 2.0, "score": 3.0, "update": 4.0}
    assert "| update | 4.000 | 5 |" in text
    assert found["device"] in text
