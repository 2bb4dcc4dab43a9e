"""Files, folders and hub names to records: mixtures, splits by hash, and a report of everything that was left out."""

from __future__ import annotations

import ast
import contextlib
import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

from ppomax.config import DataSource
from ppomax.data.layouts import READERS, Dropped, Place, Row, columns, recognise
from ppomax.data.records import Dialogue, Message, PreferencePair, Prompt, Record, Text, telling_name, unit_hash
from ppomax.errors import UserError
from ppomax.regular_file import expand_path

Kind = Literal["dialogue", "pair", "prompt", "text"]
R = TypeVar("R", bound=Record)
EXTENSIONS = (".jsonl", ".json", ".parquet", ".csv")
_LOOKED_AT = 16  # rows of a file from which its layout is recognised
_HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?")  # owner/name, and a configuration where it has several
ABOUT = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
"""files that the package datasets writes beside the data"""
_SHARE = re.compile(r"\s*(\d+(?:\.\d+)?)%\s*:\s*(\d+(?:\.\d+)?)%\s*")


_MESSAGES = re.compile(r"\s*\[\s*\{\s*['\"](?:role|content|from|value)['\"]\s*:")


@dataclass
class SourceReport:
    """What became of one source: rows in and records out, and why the others stayed behind."""

    path: str
    layout: str = ""
    read: int = 0
    """rows read (reading ends once `limit` is reached)"""
    outside: int = 0
    """rows outside `split`"""
    kept: int = 0
    """records that are used, each counted once"""
    used: int = 0
    """records after `weight`"""
    dropped: dict[str, int] = field(default_factory=dict)
    """reason -> rows"""
    notes: dict[str, int] = field(default_factory=dict)
    """repairs in records that were kept -> times"""
    examples: dict[str, str] = field(default_factory=dict)
    """reason or repair -> first place (file:line)"""

    def drop(self, reason: str, origin: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        self.examples.setdefault(reason, origin)

    def note(self, what: str, origin: str) -> None:
        self.notes[what] = self.notes.get(what, 0) + 1
        self.examples.setdefault(what, origin)

    def line(self) -> str:
        text = f"{self.path}: layout {self.layout}, {self.read} read, {self.kept} kept"
        if self.used != self.kept:
            text += f", {self.used} by weight"
        if self.outside:
            text += f", {self.outside} outside the split"
        for label, counts in (("dropped", self.dropped), ("noted", self.notes)):
            if counts:
                each = (f"{n} {reason} (first: {self.examples[reason]})" for reason, n in counts.items())
                text += f"; {label}: " + ", ".join(each)
        return text


@dataclass
class LoadReport:
    """One ``SourceReport`` a source of the mixture, in order."""

    sources: list[SourceReport] = field(default_factory=list)

    @property
    def dropped(self) -> dict[str, int]:
        """Reason -> rows, over all sources."""
        total: dict[str, int] = {}
        for source in self.sources:
            for reason, n in source.dropped.items():
                total[reason] = total.get(reason, 0) + n
        return total

    def lines(self) -> list[str]:
        """For people: one line a source."""
        return [source.line() for source in self.sources]


def load_mixture(
    sources: Sequence[DataSource], kind: Kind, *, split_seed: int = 0, once: bool = False
) -> tuple[list[Record], LoadReport]:
    """Records of ``kind`` from a mixture of sources, and the report of what was left out.

    "dialogue" gives Dialogue and Text (pairs give prompt + chosen), "pair" PreferencePair, "prompt" Prompt without
    repetition (pairs and dialogues give theirs), "text" Text. ``weight`` repeats a source's records as often as its
    whole part says, and its fraction adds a fixed subset chosen by hash of the key. ``once``: for evaluation, where a copy
    is no further evidence: no record is repeated. Raises UserError for whatever cannot be read, has the wrong kind, or
    leaves nothing.
    """
    report = LoadReport()
    records: list[Record] = []
    seen: set[tuple[tuple[str, str], ...]] = set()
    for source in sources:
        entry = SourceReport(source.path)
        report.sources.append(entry)
        kept = _load_source(source, kind, split_seed, entry, seen)
        entry.kept = len(kept)
        whole, part = divmod(min(source.weight, 1.0) if once else source.weight, 1)
        mixed = kept * int(whole)
        if part:
            mixed += [r for r in kept if unit_hash(f"weight\x00{r.key}", split_seed) < part]
        entry.used = len(mixed)
        if not mixed:
            raise UserError(f"no records left from {entry.line()}")
        records += mixed
    if not records:
        raise UserError(f"no data: the list of sources for {kind} records is empty")
    return records, report


def holdout(records: Sequence[R], fraction: float, seed: int) -> tuple[list[R], list[R]]:
    """(train, held out): a ``fraction`` of the keys is held out, by hash, and no key is on both sides.

    The hash is salted apart from the one of ``lo%:hi%`` splits, so that the two choices are independent.
    """
    sides: tuple[list[R], list[R]] = ([], [])
    for record in records:
        sides[unit_hash(f"holdout\x00{record.key}", seed) < fraction].append(record)
    return sides


# -------------------------------------------------------------------------------------------- one source


def _load_source(
    source: DataSource, kind: Kind, split_seed: int, report: SourceReport, seen: set[tuple[tuple[str, str], ...]]
) -> list[Record]:
    share, named = parse_split(source.split)
    kept: list[Record] = []
    layouts: list[str] = []
    splits: set[str] = set()
    for name, stem, by_name, rows in open_source(source.path, named):
        first = list(islice(rows, _LOOKED_AT))
        if not first:
            continue
        layout = source.layout if source.layout != "auto" else recognise([row for _, row in first], name)
        if layout not in layouts:
            layouts.append(layout)
            report.layout = " and ".join(layouts)
        for origin, row in _chain(first, rows):
            if len(kept) == source.limit:
                return kept
            report.read += 1
            if named is not None and not by_name:
                splits.add(str(row.get("split")))
                if row.get("split") != named:
                    report.outside += 1
                    continue
            place = Place(origin, _source_name(row, stem), layout)
            try:
                record = _convert(READERS[layout](row, place), kind, layout, name)
                if kind == "dialogue" and layout == "prompt_completion" and str(row.get("label")).casefold() == "false":
                    raise Dropped("labelled as a bad answer")  # as in KTO's data
            except Dropped as reason:
                report.drop(str(reason), origin)
                continue
            if share is not None and not share[0] <= unit_hash(record.key, split_seed) < share[1]:
                report.outside += 1
                continue
            if isinstance(record, Prompt):
                if layout != "prompt":
                    record = replace(record, metadata=columns(row))
                identity = tuple((m["role"], m["content"]) for m in record.messages)
                if identity in seen:
                    report.drop("repeated prompt", origin)
                    continue
                seen.add(identity)
            for note in sorted(set(place.notes)):
                report.note(note, origin)
            kept.append(record)
    if not report.read:
        raise UserError(f"{source.path} holds no records")
    if not kept and splits:
        found = ", ".join(sorted(splits))
        told = f"`split` in its records is {found}" if splits != {"None"} else "its records have no field `split`"
        raise UserError(f"{source.path} has no split {named!r}; {told}")
    return kept


def _convert(record: Record, kind: Kind, layout: str, name: str) -> Record:
    """What a record gives to a stage that needs ``kind``."""
    if kind == "prompt":
        if isinstance(record, PreferencePair):
            return Prompt(record.prompt, record.source, record.origin)
        if isinstance(record, Dialogue):
            return Prompt(_before_last_answer(record.messages), record.source, record.origin)
        if isinstance(record, Prompt):
            return record
    elif kind == "dialogue":
        if isinstance(record, PreferencePair):
            return Dialogue((*record.prompt, *record.chosen), record.source, record.origin)
        if isinstance(record, Dialogue | Text):
            return record
        if layout in ("messages", "sharegpt"):
            raise Dropped("no assistant turn")
    elif isinstance(record, PreferencePair if kind == "pair" else Text):
        return record
    needed = {
        "prompt": "prompts, pairs or dialogues",
        "dialogue": "dialogues, pairs or plain text",
        "pair": "preference pairs (chosen and rejected)",
        "text": "plain text (a `text` field)",
    }[kind]
    raise UserError(f"{name}: layout `{layout}` found, but {needed} are needed here")


def _before_last_answer(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    last = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
    return messages[:last]


def parse_split(split: str | None) -> tuple[tuple[float, float] | None, str | None]:
    """(share of the hash range, name): at most one of them."""
    if split is None:
        return None, None
    match = _SHARE.fullmatch(split)
    if match:
        low, high = float(match[1]) / 100, float(match[2]) / 100
        if low < high <= 1:
            return (low, high), None
    if match or "%" in split or ":" in split or not split.strip():
        raise UserError(f"split {split!r}: give a name such as train, or a share such as 0%:50%")
    return None, split.strip()


def _source_name(row: Row, stem: str) -> str:
    own = row.get("source")
    return own if isinstance(own, str) and own else stem


def _chain(first: list[tuple[str, Row]], rest: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    yield from first
    yield from rest


# ------------------------------------------------------------------------------- files, folders, the hub


def source_is_hub(path: str) -> bool:
    """True for a name like owner/name where neither the path nor a folder `owner` exists here."""
    name = expand_path(path)
    local = Path(name).exists() or Path(name.split("/")[0]).exists()
    return not local and _HUB_NAME.fullmatch(name) is not None and _extension(name) is None


def open_source(path: str, named: str | None) -> Iterator[tuple[str, str, bool, Iterator[tuple[str, Row]]]]:
    """(name, stem, whether it is the named split as a whole, rows) of every file of a source."""
    if source_is_hub(path):
        name = expand_path(path)
        yield name, name.split("/")[-1], True, _read_hub(name, named)
        return
    root = Path(expand_path(path))
    if root.is_dir():
        files = sorted(
            p
            for p in root.rglob("*")
            if p.is_file() and _extension(p.name) and not p.name.startswith(".") and p.name not in ABOUT
        )
        if not files:
            raise UserError(f"{root} holds no files to read ({', '.join(EXTENSIONS)}, gzip or not)")
        by_name = [p for p in files if named is not None and _names_split(p.relative_to(root), named)]
        files = by_name or files
    elif root.is_file():
        files = [root]
        by_name = files if named is not None and _names_split(Path(root.name), named) else []
    else:
        unset = "PPOMAX_DATA" in path and "PPOMAX_DATA" not in os.environ
        hint = (
            "set PPOMAX_DATA to the folder of the data" if unset else "give a file, a folder or a hub name (owner/name)"
        )
        raise UserError(f"{root} does not exist: {hint}")
    for file in files:
        yield str(file), telling_name(file, _stem(file.name)), bool(by_name), _read_file(file)


def _names_split(path: Path, split: str) -> bool:
    """train.jsonl, train-00000-of-00002.parquet and train/part.csv are all of the split `train`."""
    numbered = re.compile(rf"{re.escape(split)}(?:[-_.]\d.*)?")
    return split in path.parts[:-1] or numbered.fullmatch(_stem(path.name)) is not None


def _extension(name: str) -> str | None:
    lower = name.lower().removesuffix(".gz")
    return next((e for e in EXTENSIONS if lower.endswith(e)), None)


def _stem(name: str) -> str:
    cut = name[:-3] if name.lower().endswith(".gz") else name
    return cut[: -len(_extension(cut) or "")] or cut


def _read_hub(name: str, named: str | None) -> Iterator[tuple[str, Row]]:
    import datasets  # slow to import, and needed here alone

    match = _HUB_NAME.fullmatch(name)
    assert match is not None
    try:
        data = datasets.load_dataset(match[1], match[2])
    except Exception as error:  # the hub client raises dozens of kinds
        raise UserError(f"{name} is no file or folder here, and the hub did not give it: {error}") from error
    split = named or "train"
    if split not in data:
        raise UserError(f"{name} has no split {split!r} on the hub; it has {', '.join(data)}")
    for i, row in enumerate(data[split], 1):
        yield f"{name}/{split}:{i}", row


def _read_file(path: Path) -> Iterator[tuple[str, Row]]:
    extension = _extension(path.name)
    if extension is None:
        raise UserError(f"{path}: cannot read this kind of file; known are {', '.join(EXTENSIONS)}, gzip or not")
    reader = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet, ".csv": _read_csv}[extension]
    try:
        with _open(path) as stream:
            yield from reader(stream, path)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _open(path: Path) -> BinaryIO:
    """Binary stream, decompressed where the file begins like gzip, whatever its name."""
    with path.open("rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
    return gzip.open(path) if zipped else path.open("rb")  # type: ignore[return-value]


def _row(value: Any, origin: str) -> tuple[str, Row]:
    if not isinstance(value, dict):
        raise UserError(f"{origin}: a record must be an object with named fields, not {type(value).__name__}")
    return origin, value


def _read_jsonl(stream: BinaryIO, path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(stream, 1):  # bytes: lines end at \n alone, never at U+2028 or a lone \r
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if text.strip():
                value = json.loads(text.rstrip("\r\n"))  # the end of the line is not the text's: it would be column 1
            else:
                continue
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: malformed JSON: {error.msg} (column {error.colno})") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{number}: not UTF-8 text: {error.reason}") from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
            raise UserError(f"{path}:{number}: malformed JSON: {error}") from error
        yield _row(value, f"{path}:{number}")


def _read_json(stream: BinaryIO, path: Path) -> Iterator[tuple[str, Row]]:
    raw = stream.read()
    text = raw.decode("utf-8-sig")
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):  # many .json files hold JSON lines
            yield from _read_jsonl(io.BytesIO(raw), path)
            return
        raise UserError(f"{path}:{error.lineno}: malformed JSON: {error.msg} (column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: malformed JSON: {error}") from error
    if isinstance(value, dict):
        value = value["data"] if isinstance(value.get("data"), list) else [value]
    if not isinstance(value, list):
        raise UserError(f"{path}: expected a list of records, or an object with one under `data`")
    for i, item in enumerate(value, 1):
        yield _row(item, f"{path}:record {i}")


def _read_parquet(stream: BinaryIO, path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        table = pq.ParquetFile(pa.BufferReader(stream.read()))
        number = 0
        for batch in table.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:record {number}", row
    except pa.ArrowException as error:
        raise UserError(f"{path} is not a readable parquet file: {error}") from error


def _read_csv(stream: BinaryIO, path: Path) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(2**31 - 1)  # the default refuses long documents
    reader = csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), strict=True)
    number = 1
    try:
        for cells in reader:
            start, number = number + 1, reader.line_num
            if None in cells or None in cells.values():
                raise UserError(f"{path}:{start}: the number of fields differs from the header's")
            origin = f"{path}:{start}"
            yield origin, {name: _cell(value, name, origin) for name, value in cells.items()}
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: malformed CSV: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{_undecodable(path)}: not UTF-8 text: {error.reason}") from error


def _undecodable(path: Path) -> int:
    """The first line that is not UTF-8: the reader of CSV decodes ahead of the row that it is at."""
    with _open(path) as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _cell(text: str, name: str, origin: str) -> Any:
    """A cell that holds messages becomes messages, an empty one null.

    JSON is read, and the text that Python gives to a list, which pandas and datasets write. Raises UserError for what
    begins like messages and is neither: as plain text it would be taken for an answer.
    """
    if not text.lstrip().startswith(("[", "{")):
        return text or None
    value: Any = None
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value = read(text)
            break
    if name == "history" and isinstance(value, list):
        return value
    items = value if isinstance(value, list) else [value]
    if items and all(isinstance(m, dict) and ("role" in m or "from" in m) for m in items):
        return value
    if value is None and _MESSAGES.match(text):
        raise UserError(f"{origin}: {name} begins like messages, and is not JSON: write them with json.dumps")
    return text
