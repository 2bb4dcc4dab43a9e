"""Files of every kind, mixtures, splits, and what bad files get. The real data sets are read where they lie."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppomax.config import DataSource
from ppomax.data.records import Dialogue, PreferencePair, Prompt, Record, Text, groups_of, unit_hash
from ppomax.data.sources import LoadReport, holdout, load_mixture
from ppomax.errors import UserError
from ppomax.regular_file import expand_path

PAIR = {"prompt": "天？", "chosen": "蓝", "rejected": "红"}


def load(path: Path | str, kind: Any = "text", seed: int = 0, **fields: Any) -> tuple[list[Record], LoadReport]:
    return load_mixture([DataSource(path=str(path), **fields)], kind, split_seed=seed)


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


def texts(n: int) -> list[dict[str, str]]:
    return [{"text": f"line {i}"} for i in range(n)]


def words(records: list[Record]) -> list[str]:
    assert all(isinstance(r, Text) for r in records)
    return [r.text for r in records if isinstance(r, Text)]


# ---------------------------------------------------------------------------------------- kinds of file


def test_jsonl_with_everything_that_trips_readers(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    # BOM, CRLF, blank lines, a raw U+2028 and U+0085 inside a string, no line break at the end
    path.write_bytes(
        b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b\xe2\x80\xa8c\xc2\x85d"}\r\n{"text": "e", "source": "s"}'
    )
    records, report = load(path)
    assert records == [
        Text("a", "odd", f"{path}:1"),
        Text("b\u2028c\u0085d", "odd", f"{path}:4"),
        Text("e", "s", f"{path}:5"),
    ]
    assert report.lines() == [f"{path}: layout text, 3 read, 3 kept"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl", "a.JSONL.GZ"])
def test_gzip_is_known_by_its_bytes(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b'{"text": "a"}\n', mtime=0))
    assert load(path)[0] == [Text("a", "a", f"{path}:1")]


def test_plain_file_called_gz(tmp_path: Path) -> None:
    assert words(load(write(tmp_path / "a.jsonl.gz", texts(2)))[0]) == ["line 0", "line 1"]


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"data": rows, "version": 1}])
def test_json(tmp_path: Path, wrap: Any) -> None:
    path = tmp_path / "a.json"
    path.write_text("\ufeff" + json.dumps(wrap(texts(2)), indent=1), encoding="utf-8")
    assert load(path)[0] == [Text(f"line {i}", "a", f"{path}:record {i + 1}") for i in range(2)]


def test_json_that_holds_json_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", texts(3))
    assert [r.origin for r in load(path)[0]] == [f"{path}:{i}" for i in (1, 2, 3)]


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    message = [{"role": "user", "content": "天？"}, {"role": "assistant", "content": "蓝"}]
    pq.write_table(pa.table({"messages": [message, message]}), path)
    records, _ = load(path, "dialogue")
    assert records == [Dialogue(tuple(message), "a", f"{path}:record {i}") for i in (1, 2)]  # type: ignore[arg-type]


def test_csv_with_fields_of_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.writer(stream)
        writer.writerows(
            [["prompt", "chosen", "rejected", "margin"], ['one\ntwo, "q"', "x", "y", "0.5"], ["问", "好", "坏", ""]]
        )
    first, second = load(path, "pair")[0]
    assert isinstance(first, PreferencePair) and isinstance(second, PreferencePair)
    assert (first.prompt[0]["content"], first.margin, first.origin) == ('one\ntwo, "q"', 0.5, f"{path}:2")
    assert (second.chosen[0]["content"], second.margin, second.origin) == ("好", None, f"{path}:4")


def test_csv_cells_with_messages_and_with_json_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["prompt", "completion"])
        writer.writerow([json.dumps([{"role": "user", "content": "q"}]), '{"answer": 1}'])
        writer.writerow([str([{"content": "it's q", "role": "user"}]), "[1, 2]"])  # as pandas writes a list
    first, second = load(path, "dialogue")[0]
    assert isinstance(first, Dialogue) and isinstance(second, Dialogue)
    assert [m["content"] for m in first.messages] == ["q", '{"answer": 1}']
    assert [m["content"] for m in second.messages] == ["it's q", "[1, 2]"]


def test_csv_cells_with_a_history(tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    path.write_text(
        'instruction,history,output\nand 3?,"[[""2?"", ""two""]]",three\n4?,[],four\n5?,"[(\'a\', \'b\')]",five\n'
    )
    records, _ = load_mixture([DataSource(path=str(path))], "dialogue")
    said = [[m["content"] for m in r.messages] for r in records]  # type: ignore[union-attr]
    assert said == [["2?", "two", "and 3?", "three"], ["4?", "four"], ["a", "b", "5?", "five"]]


@pytest.mark.parametrize("name", ["k.jsonl", "k.csv"])
def test_bad_answers_of_kto_data_are_not_taught_and_their_prompts_serve(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("csv"):
        path.write_text("prompt,completion,label\np,good,True\nq,bad,False\n")
    else:
        write(
            path,
            [
                {"prompt": "p", "completion": "good", "label": True},
                {"prompt": "q", "completion": "bad", "label": False},
            ],
        )
    records, report = load_mixture([DataSource(path=str(path))], "dialogue")
    assert [r.messages[-1]["content"] for r in records] == ["good"]  # type: ignore[union-attr]
    assert report.dropped == {"labelled as a bad answer": 1}
    assert len(load_mixture([DataSource(path=str(path))], "prompt")[0]) == 2


def test_files_about_a_folder_are_no_data(tmp_path: Path) -> None:
    write(tmp_path / "d" / "train.jsonl", texts(2))
    for name in ("dataset_info.json", "dataset_infos.json"):
        (tmp_path / "d" / name).write_text('{"citation": "", "splits": {}}')
    assert words(load(tmp_path / "d")[0]) == [t["text"] for t in texts(2)]


def test_empty_csv_cells_are_dropped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected\nq,Yes I do,\nr,a,b\n,I think so,I think not\n")
    records, report = load(tmp_path / "pairs.csv", "pair")
    assert [r.origin for r in records] == [f"{tmp_path}/pairs.csv:3"]
    assert report.sources[0].dropped == {"empty response": 1, "empty prompt": 1}
    (tmp_path / "answers.csv").write_text("prompt,response\na,\nb,c\n")
    records, report = load(tmp_path / "answers.csv", "dialogue")
    assert len(records) == 1 and report.sources[0].dropped == {"empty response": 1}


def test_files_named_by_a_split_are_told_apart_by_their_folder(tmp_path: Path) -> None:
    for name in ("harmless-base", "helpful-base"):
        write(tmp_path / name / "test.jsonl", [PAIR | {"prompt": f"{name}?"}])
    records, _ = load(tmp_path, "pair")
    assert [r.source for r in records] == ["harmless-base/test", "helpful-base/test"]
    assert groups_of(records) == [("harmless-base/test",), ("helpful-base/test",)]


def test_folder_is_read_in_order_and_recursively(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", [{"text": "2"}])
    write(tmp_path / "a" / "z.jsonl", [{"text": "1"}])
    write(tmp_path / ".hidden.jsonl", [{"text": "no"}])
    (tmp_path / "notes.md").write_text("not data")
    pq.write_table(pa.table({"prompt": ["3"], "completion": ["4"]}), tmp_path / "c.parquet")
    records, report = load(tmp_path, "dialogue")
    assert [r.source for r in records] == ["z", "b", "c"]
    assert report.sources[0].layout == "text and prompt_completion"


def test_variables_and_default_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "d" / "a.jsonl", texts(1))
    monkeypatch.setenv("PPOMAX_DATA", str(tmp_path / "d"))
    assert load("$PPOMAX_DATA/a.jsonl")[0] == load("${PPOMAX_DATA}/a.jsonl")[0] == load(tmp_path / "d/a.jsonl")[0]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load("~/d/a.jsonl")[0]) == len(load("$HOME/d")[0]) == 1
    monkeypatch.delenv("PPOMAX_DATA")
    write(tmp_path / "shared" / "data" / "b.jsonl", texts(2))
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    assert len(load("$PPOMAX_DATA/b.jsonl")[0]) == 2
    with pytest.raises(UserError, match="environment variable NO_SUCH_VARIABLE is not set"):
        load("$NO_SUCH_VARIABLE/a.jsonl")
    write(tmp_path / "cash$in" / "a.jsonl", texts(1))
    assert len(load(tmp_path / "cash$in" / "a.jsonl")[0]) == 1, "a name may hold a $"
    for fine in ("cash$in/new/place", "cash$in"):
        assert expand_path(str(tmp_path / fine)) == str(tmp_path / fine)
    for unset in ("$NO_SUCH", "new/$NO_SUCH/place", "cash$in2/new"):
        with pytest.raises(UserError, match="is not set"):
            expand_path(str(tmp_path / unset))


class _Hub:
    def __init__(self, answer: Any) -> None:
        self.answer, self.asked = answer, ()

    def load_dataset(self, *asked: Any) -> Any:
        self.asked = asked
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_hub_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    hub = _Hub({"train": [PAIR], "test": [PAIR, {**PAIR, "rejected": "绿"}]})
    monkeypatch.setattr(datasets, "load_dataset", hub.load_dataset)
    assert [r.origin for r in load("owner/name", "pair")[0]] == ["owner/name/train:1"]
    assert len(load("owner/name:config", "pair", split="test")[0]) == 2
    assert hub.asked == ("owner/name", "config")
    with pytest.raises(UserError, match="no split 'dev' on the hub; it has train, test"):
        load("owner/name", "pair", split="dev")
    hub.answer = ConnectionError("offline\nand long")
    with pytest.raises(
        UserError, match="owner/name is no file or folder here, and the hub did not give it: offline and"
    ):
        load("owner/name", "pair")
    (tmp_path / "owner").mkdir()  # then the name is a path that was mistyped, and no hub is asked
    with pytest.raises(UserError, match="owner/name does not exist"):
        load("owner/name", "pair")


# ------------------------------------------------------------------------------------------------ kinds


def rows_of_all_kinds(folder: Path) -> dict[str, Path]:
    turns = [{"role": r, "content": c} for r, c in zip(["user", "assistant"] * 2, "abcd", strict=True)]
    return {
        "pair": write(folder / "pair.jsonl", [PAIR, {**PAIR, "rejected": "绿"}]),
        "dialogue": write(folder / "dialogue.jsonl", [{"messages": turns}, {"messages": turns[:1]}]),
        "prompt": write(folder / "prompt.jsonl", [{"prompt": "天？"}, {"prompt": "q"}]),
        "text": write(folder / "text.jsonl", texts(1)),
    }


def test_each_kind_takes_what_it_can(tmp_path: Path) -> None:
    paths = rows_of_all_kinds(tmp_path)
    mixed = [DataSource(path=str(paths[k])) for k in ("pair", "dialogue", "text")]
    records, report = load_mixture(mixed, "dialogue")
    assert [type(r) for r in records] == [Dialogue, Dialogue, Dialogue, Text]
    assert [m["content"] for m in records[0].messages] == ["天？", "蓝"]  # type: ignore[union-attr]
    assert report.dropped == {"no assistant turn": 1}

    prompts, report = load_mixture([DataSource(path=str(paths[k])) for k in ("pair", "dialogue", "prompt")], "prompt")
    assert all(isinstance(p, Prompt) for p in prompts)
    assert [[m["content"] for m in p.messages] for p in prompts] == [["天？"], ["a", "b", "c"], ["a"], ["q"]]  # type: ignore[union-attr]
    assert [s.dropped for s in report.sources] == [{"repeated prompt": 1}, {}, {"repeated prompt": 1}]
    assert report.sources[2].examples == {"repeated prompt": f"{paths['prompt']}:1"}


def test_columns_of_every_layout_reach_the_prompt(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "2+2?"}]
    answered = [*turns, {"role": "assistant", "content": "5"}]
    more = {"answer": "4", "category": "sums", "nothing": None, "source": "s"}
    rows = {
        "prompt": {"prompt": "2+2?"}, "messages": {"messages": turns}, "dialogue": {"messages": answered},
        "sharegpt": {"conversations": [{"from": "human", "value": "2+2?"}]}, "completion": {"prompt": "2+2?", "completion": "4"},
        "pair": {"prompt": "2+2?", "chosen": "4", "rejected": "5"}, "instruction": {"instruction": "2+2?", "output": "4"},
    }  # fmt: skip
    for name, row in rows.items():
        path = write(tmp_path / f"{name}.jsonl", [{**row, **more}])
        [prompt], _ = load_mixture([DataSource(path=str(path))], "prompt")
        assert isinstance(prompt, Prompt)
        given = {k: v for k, v in prompt.metadata if v is not None}
        own = {k: row[k] for k in ("completion", "output") if k in row}  # what was answered may be what is asked for
        assert (prompt.messages[0]["content"], given) == ("2+2?", {"answer": "4", "category": "sums", **own}), name


@pytest.mark.parametrize(
    ("found", "kind"),
    [("prompt", "dialogue"), ("prompt", "pair"), ("dialogue", "pair"), ("text", "pair"), ("text", "prompt"),
     ("pair", "text"), ("dialogue", "text")],
)  # fmt: skip
def test_wrong_kind_names_file_layout_and_need(tmp_path: Path, found: str, kind: str) -> None:
    path = rows_of_all_kinds(tmp_path)[found]
    layout = {"pair": "preference", "dialogue": "messages"}.get(found, found)
    with pytest.raises(UserError, match=rf"{found}\.jsonl: layout `{layout}` found, but .* needed here"):
        load(path, kind)


def test_report_counts_reasons_and_first_places(tmp_path: Path) -> None:
    same, empty = {**PAIR, "rejected": "蓝"}, {**PAIR, "chosen": ""}
    path = write(tmp_path / "a.jsonl", [PAIR, same, empty, same])
    records, report = load(path, "pair")
    assert len(records) == 1
    entry = report.sources[0]
    assert (entry.read, entry.kept, entry.dropped) == (4, 1, {"chosen equals rejected": 2, "empty response": 1})
    assert entry.examples == {"chosen equals rejected": f"{path}:2", "empty response": f"{path}:3"}
    assert report.lines() == [
        f"{path}: layout preference, 4 read, 1 kept; dropped: 2 chosen equals rejected (first: {path}:2), "
        f"1 empty response (first: {path}:3)"
    ]


def test_repairs_are_counted_once_a_record(tmp_path: Path) -> None:
    long = "\n\nHuman: a\n\nHuman: b\n\nAssistant: "
    path = write(tmp_path / "a.jsonl", [{"chosen": long + "x", "rejected": long + "y"}] * 2)
    _, report = load(path, "pair")
    assert report.sources[0].notes == {"consecutive turns of one role merged": 2}
    assert "noted: 2 consecutive turns of one role merged" in report.lines()[0]


# ---------------------------------------------------------------------------------------- weights, splits


def test_weight_repeats_and_takes_a_fixed_part(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(400))
    half = words(load(path, weight=0.5)[0])
    assert len(half) == len(set(half))
    assert 160 < len(half) < 240
    both, report = load(path, weight=2.5)
    assert words(both) == words(load(path)[0]) * 2 + half
    assert (report.sources[0].kept, report.sources[0].used) == (400, 800 + len(half))
    assert words(load(path, weight=0.5, seed=1)[0]) != half


def test_what_is_evaluated_is_there_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(40))
    for weight in (1, 2.5, 3):
        assert words(load_mixture([DataSource(path=str(path), weight=weight)], "text", once=True)[0]) == words(
            load(path)[0]
        )
    half, _ = load_mixture([DataSource(path=str(path), weight=0.5)], "text", once=True)
    assert words(half) == words(load(path, weight=0.5)[0])


def test_limit_takes_the_first(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": " "}, *texts(5)])
    records, report = load(path, limit=2)
    assert words(records) == ["line 0", "line 1"]
    assert (report.sources[0].read, report.sources[0].dropped) == (3, {"empty text": 1})


def test_named_split_by_field_by_file_and_by_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "all.jsonl", [{"text": "a", "split": "train"}, {"text": "b", "split": "test"}])
    records, report = load(path, split="test")
    assert words(records) == ["b"]
    assert report.sources[0].outside == 1
    for name in ("f/train.jsonl", "f/test-00000-of-00001.jsonl", "g/train/x.jsonl", "g/test/x.jsonl"):
        write(tmp_path / name, [{"text": name}])
    assert words(load(tmp_path / "f", split="test")[0]) == ["f/test-00000-of-00001.jsonl"]
    assert words(load(tmp_path / "g", split="train")[0]) == ["g/train/x.jsonl"]
    assert words(load(tmp_path / "f" / "train.jsonl", split="train")[0]) == ["f/train.jsonl"]
    with pytest.raises(UserError, match=r"has no split 'dev'; `split` in its records is test, train"):
        load(path, split="dev")
    with pytest.raises(UserError, match="has no split 'dev'; its records have no field `split`"):
        load(write(tmp_path / "plain.jsonl", [{"text": "a"}]), split="dev")
    with pytest.raises(UserError, match="has no split 'dev'"):
        load(tmp_path / "f", split="dev")


@pytest.mark.parametrize("split", ["50%", "50%:20%", "0:50", "0%:120%", "a:b", " "])
def test_malformed_split(tmp_path: Path, split: str) -> None:
    with pytest.raises(UserError, match="give a name such as train, or a share such as 0%:50%"):
        load(write(tmp_path / "a.jsonl", texts(1)), split=split)


def test_shares_partition_the_prompts_and_agree_across_kinds(tmp_path: Path) -> None:
    rows = [{"prompt": f"问题 {i // 2}", "chosen": f"x{i}", "rejected": f"y{i}"} for i in range(400)]
    path = write(tmp_path / "a.jsonl", rows)
    low, high = (load(path, "pair", split=s, seed=3)[0] for s in ("0%:50%", "50%:100%"))
    assert sorted([r.origin for r in low + high]) == sorted(r.origin for r in load(path, "pair")[0])
    assert not {r.key for r in low} & {r.key for r in high}
    assert 150 < len(low) < 250
    assert {r.key for r in load(path, "prompt", split="0%:50%", seed=3)[0]} == {r.key for r in low}
    assert {r.key for r in load(path, "pair", split="0%:50%", seed=4)[0]} != {r.key for r in low}


@given(st.lists(st.text(max_size=4), max_size=40), st.floats(0, 1), st.integers(0, 5))
def test_holdout_never_puts_one_key_on_both_sides(keys: list[str], fraction: float, seed: int) -> None:
    records = [Text(k, origin=str(i)) for i, k in enumerate(keys)]
    train, held_out = holdout(records, fraction, seed)
    assert not {r.key for r in train} & {r.key for r in held_out}
    assert sorted(int(r.origin) for r in train + held_out) == list(range(len(keys)))
    assert (train, held_out) == holdout(records, fraction, seed)


def test_holdout_has_the_right_size_and_is_independent_of_shares() -> None:
    records = [Text(f"text {i}") for i in range(4000)]
    _, held_out = holdout(records, 0.1, 0)
    assert abs(len(held_out) - 400) < 4 * (4000 * 0.1 * 0.9) ** 0.5
    low = sum(unit_hash(r.key, 0) < 0.5 for r in held_out)
    assert abs(low - len(held_out) / 2) < 4 * (len(held_out) / 4) ** 0.5
    assert holdout(records, 0.0, 0) == (records, [])


# ------------------------------------------------------------------------------------------- bad files


def bad(tmp_path: Path, name: str, content: bytes, pattern: str, kind: str = "text") -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=pattern) as error:
        load(path, kind)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "pattern"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl:2: malformed JSON: Expecting value \(column \d\d?\)"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"\r\n', r"a\.jsonl:2: malformed JSON: .* \(column 13\)"),
        ("a.jsonl", b'{"text": "a"}\n["a"]\n', r"a\.jsonl:2: a record must be an object"),
        ("a.jsonl", b'{"text": "a"}\n\xff\xfe\n', r"a\.jsonl:2: not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"texts": "b"}\n', r"a\.jsonl:2: .*needs `text`, this one has texts"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 1}\n', r"a\.jsonl:2: text must be a string, not a number"),
        ("a.jsonl", b'{"text": "a"}\n' + b"[" * 200_000 + b"\n", r"a\.jsonl:2: malformed JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ' + b"1" * 5000 + b"}\n", r"a\.jsonl:2: malformed JSON"),
        ("a.jsonl", b"", "holds no records"),
        ("a.jsonl", b"\n \n", "holds no records"),
        ("a.jsonl", b'{"text": ""}\n', "no records left from .*1 read, 0 kept; dropped: 1 empty text"),
        ("a.jsonl", b'{"words": ""}\n', "layout not recognised; records hold words"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9], "cannot be read"),
        ("a.json", b'[{"text": "a"},\n{"text": ]', r"a\.json:2: malformed JSON"),
        ("a.json", b'"a"', "expected a list of records"),
        ("a.json", b"[1]", "record 1: a record must be an object"),
        ("a.json", b"", "holds no records"),
        ("a.json", b"\xff", "not UTF-8"),
        ("a.csv", b"text,source\na,b,c\n", r"a\.csv:2: the number of fields"),
        ("a.csv", b"text,source\na\n", r"a\.csv:2: the number of fields"),
        ("a.csv", b'text\n"a\n', r"a\.csv:\d+: malformed CSV"),
        ("a.csv", b"text\n" + b"abc\n" * 9000 + b"\xff\n", r"a\.csv:9002: not UTF-8"),
        (
            "a.csv",
            b"prompt\n\"[{'role': 'user', 'content': 'x'}\n {'role': 'assistant', 'content': 'y'}]\"\n",
            r"a\.csv:2: prompt begins like messages, and is not JSON",
        ),
        ("a.json", b"[" * 200_000, r"a\.json: malformed JSON"),
        ("a.csv", b"text\n", "holds no records"),
        ("a.parquet", b"PAR1 not really", "not a readable parquet file"),
        ("a.txt", b"hello", "cannot read this kind of file"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, pattern: str) -> None:
    bad(tmp_path, name, content, pattern)


def test_missing_unreadable_and_empty_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        load(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="holds no files to read"):
        load(tmp_path)
    with pytest.raises(UserError, match="list of sources for pair records is empty"):
        load_mixture([], "pair")
    path = write(tmp_path / "a.jsonl", texts(1))

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"a\.jsonl cannot be read: .*Permission denied"):
        load(path)


def test_layout_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "a"}])
    assert isinstance(load(path, "prompt", layout="prompt")[0][0], Prompt)
    with pytest.raises(UserError, match=r"a\.jsonl:1: .*layout `text` needs `text`, this one has completion, prompt"):
        load(path, layout="text")


# ------------------------------------------------------------------------------------------ the real data

REAL: dict[str, tuple[str, Any, int, dict[str, int]]] = {
    "hh_harmless_pairs": ("hh", "pair", 1912, {"empty response": 4}),
    "helpful_pairs_en": ("preference", "pair", 2547, {"empty response": 1, "chosen equals rejected": 1}),
    "helpful_pairs_zh": ("preference", "pair", 1803, {}),
    "dialogues_en": ("messages", "dialogue", 1387, {}),
    "dialogues_zh": ("messages", "dialogue", 1666, {}),
    "harmless_prompts_en": ("prompt", "prompt", 4666, {}),
    "harmless_prompts_zh": ("prompt", "prompt", 664, {}),
    "helpful_prompts_en": ("prompt", "prompt", 252, {}),
    "text_en": ("text", "text", 3372, {}),
    "text_zh": ("text", "text", 1104, {}),
    "sentiment_en": ("text", "text", 9613, {}),
    "format_sharegpt_pairs_en": ("sharegpt", "pair", 300, {}),
    "format_sharegpt_pairs_zh": ("sharegpt", "pair", 300, {}),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(real_data: Path, name: str) -> None:
    layout, kind, count, dropped = REAL[name]
    path = real_data / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} not found")
    records, report = load(path, kind)
    entry = report.sources[0]
    assert (entry.layout, entry.read, entry.dropped) == (layout, count, dropped)
    assert len(records) == count - sum(dropped.values())


def test_real_margins_and_sources(real_data: Path) -> None:
    path = real_data / "helpful_pairs_en.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} not found")
    records, _ = load(path, "pair")
    assert {r.margin for r in records if isinstance(r, PreferencePair)} == {None, 1 / 3, 1.0}
    assert {r.source for r in records} == {"oasst", "autoj", "tulu"}
