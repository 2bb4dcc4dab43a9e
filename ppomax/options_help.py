"""``ppomax sft|reward|ppo --help``: every field with type, default and docstring, by section."""

from __future__ import annotations

import io
import re
import shutil
import sys
import types
import typing
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ppomax.config import RunConfig, Section
from ppomax.layers import element_of, preset_names, section_of

USAGE = {
    "world": "OUT [--field value ...]",
    "new-model": "OUT --tokenizer-from DATA ... [--field value ...]",
    "generate": "MODEL PROMPTS ... --out FILE.jsonl [--field value ...] [--resume]",
    "duel": "A B [C ...] --prompts FILE ... --judge JUDGE --output_dir DIR [--field value ...] | CONFIG.yaml [--resume] | "
    "report DIR ...",
    "duel report": "DIR DIR ... | VOTES ... [--field value ...] | CONFIG.yaml [--print-config]",
    "exam": "MODEL ... --data FILE ... [--field value ...] | CONFIG.yaml [--resume]",
    "evaluate": "MODEL ... --data PAIRS ... [--field value ...] | CONFIG.yaml [--resume]",
    "chat": "MODEL [--against OTHER] [--field value ...]",
    "plan": "[CONFIG.yaml] --model SHAPE --devices 8x80GB [--json] [any option of `ppomax ppo`]",
}
"""what follows the verb; the stages' own line is the default"""
EXAMPLES = {
    "world": (
        "ppomax world world",
        "ppomax world world_zh --language zh --seed 7 --annotators.biased 0",
        "ppomax world world_with_samples --answers answers_t8.jsonl answers_t3.jsonl",
    ),
    "new-model": (
        "ppomax new-model base --size 6m --tokenizer-from dialogues.jsonl texts.jsonl.gz",
        "ppomax new-model base --tokenizer-from '{path: books, layout: text, limit: 5000}' --vocab-size 8192",
    ),
    "generate": (
        "ppomax generate runs/ppo/final prompts.jsonl --out answers.jsonl",
        "ppomax generate runs/ppo/final prompts.jsonl --out answers.jsonl --resume",
        "ppomax generate runs/sft/final a.jsonl b.parquet --out answers.jsonl --sampling.temperature 0",
    ),
    "plan": (
        "ppomax plan --model llama-7b --devices 8x80GB --precision bf16 --sampling.max_new_tokens 512",
        "ppomax plan recipes/llama_7b.yaml --model llama-7b --reward llama-7b --devices 8xh100",
        "ppomax plan --model runs/sft/final --devices 1x24GB --lora.rank 16 --precision bf16",
    ),
    "chat": (
        "ppomax chat runs/ppo/final",
        "ppomax chat runs/ppo/final --against runs/sft/final --sampling.temperature 0.5",
        "echo 'Hello' | ppomax chat runs/ppo/final",
    ),
    "duel": (
        "ppomax duel runs/ppo/final runs/sft/final --prompts test.jsonl --judge runs/judge/final --output_dir runs/duel",
        "ppomax duel answers_a.jsonl answers_b.jsonl --judge runs/judge/final --output_dir runs/duel",
        "ppomax duel runs/ppo/final runs/sft/final --prompts world/prompts_heldout.jsonl "
        "--judge world --output_dir runs/duel",
        "ppomax duel answers_a.jsonl answers_b.jsonl --judge llm:MODEL --llm.base_url URL --output_dir runs/duel_llm",
        "ppomax duel ours.jsonl outputs.json --judge world --output_dir runs/duel      AlpacaEval's outputs as a side",
        "ppomax duel runs/ppo/final runs/sft/final endpoint:MODEL --endpoint.base_url URL --prompts test.jsonl "
        "--judge llm:MODEL --llm.base_url URL --output_dir runs/three      all pairs, and ratings",
        "ppomax duel runs/ppo/final best_of:16:runs/sft/final --best_of_reward runs/reward/final --prompts test.jsonl "
        "--judge runs/judge/final --output_dir runs/worth_it      is PPO worth it?",
        "ppomax duel report runs/duel runs/duel_llm      how far judges agree",
    ),
    "duel report": (
        "ppomax duel report runs/duel runs/duel_llm      the same pairs by several judges",
        "ppomax duel report mt_bench_human_judgments.jsonl --output_dir runs/votes      published votes",
    ),
    "exam": (
        "ppomax exam runs/sft/final --data world/exam.jsonl",
        "ppomax exam runs/sft/final runs/ppo/final --data world/exam.jsonl --output_dir runs/exam",
        "ppomax exam runs/ppo/final --data ceval-exam --shots 5 --score letter --output_dir runs/ceval",
    ),
    "evaluate": (
        "ppomax evaluate runs/reward/final --data pairs_heldout.jsonl",
        "ppomax evaluate runs/reward/final other/reward_model --data pairs_heldout.jsonl --output_dir runs/evaluation",
        "ppomax evaluate runs/reward/final --data rewardbench.jsonl --subset subset --output_dir runs/rewardbench",
    ),
    "sft": (
        "ppomax sft --model base --data dialogues.jsonl --output-dir runs/sft",
        "ppomax sft sft.yaml --optim.lr 3e-4 --epochs 3",
        "ppomax sft --model base --data '[{path: a.jsonl, weight: 2}, b.parquet]' --output-dir runs/sft --lora.rank 8",
    ),
    "reward": (
        "ppomax reward --model runs/sft/final --data pairs.jsonl --output-dir runs/reward",
        "ppomax reward reward.yaml --lm-coef 0 --max-pairs 64",
    ),
    "ppo": (
        "ppomax ppo --model runs/sft/final --reward runs/reward/final --prompts prompts.jsonl --output-dir runs/ppo",
        "ppomax ppo ppo.yaml --preset vanilla --kl.coef 0.05",
        "ppomax ppo runs/ppo/config.yaml --resume",
    ),
}


def type_name(annotation: Any) -> str:
    """A field's type in the words of a YAML author."""
    if annotation is type(None):
        return "null"
    if annotation is Any:
        return "any"
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(parts[0])
    if origin is typing.Literal:
        return " | ".join(str(part) for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_name(part) for part in parts)
    if origin is dict:
        return "mapping"
    if origin in (list, tuple):
        inner = [type_name(part) for part in parts]
        if origin is tuple:
            return f"[{', '.join(inner)}]"
        return f"list of {inner[0]}{'s' if inner[0] in ('integer', 'number', 'section') else ''}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    return {str: "text", int: "integer", float: "number", bool: "true | false"}.get(annotation, str(annotation))


def _default(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return "[" + ", ".join(_default(v) for v in value) + "]"
    return str(value)


def _rows(cls: type[Section], default: Section | None, prefix: str) -> list[tuple[str, str, str, str]]:
    rows = []
    for name, field in cls.model_fields.items():
        if section_of(field.annotation) is not None and not _optional(field.annotation):
            continue
        if default is not None:
            shown = _default(getattr(default, name))
        elif field.is_required():
            shown = "required"
        else:
            shown = _default(field.get_default(call_default_factory=True))
        about = field.description or ""
        if _optional(field.annotation) and section_of(field.annotation) is not None:
            about += f" (see --{prefix}{name}.*)"
        rows.append((f"--{prefix}{name}", type_name(field.annotation), shown, about))
    return rows


def _optional(annotation: Any) -> bool:
    return type(None) in typing.get_args(annotation)


def _heading(cls: type[Section], name: str, about: str | None) -> str:
    doc = (cls.__doc__ or "").strip().split("\n")[0]
    repeats = about is None or doc.casefold().startswith(about.casefold())
    return f"{name}: {doc}" if repeats else f"{name}: {about}. {doc}"


def sections(cls: type[Section]) -> list[tuple[str, list[tuple[str, str, str, str]]]]:
    """(heading, rows of (option, type, default, docstring)): a stage's own fields, its sections, its list elements."""
    out = [("options", _rows(cls, None, ""))]
    elements: dict[type[Section], list[str]] = {}
    for name, field in cls.model_fields.items():
        below = section_of(field.annotation)
        if below is not None:
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            out.append((_heading(below, name, field.description), _rows(below, default, f"{name}.")))
            for inner, inner_field in below.model_fields.items():
                element = element_of(inner_field.annotation)
                if element is not None:
                    elements.setdefault(element, []).append(f"{name}.{inner}")
                deeper = section_of(inner_field.annotation)
                if deeper is not None and not _optional(inner_field.annotation):
                    within = f"{name}.{inner}"
                    rows = _rows(deeper, inner_field.get_default(call_default_factory=True), f"{within}.")
                    out.append((_heading(deeper, within, inner_field.description), rows))
        element = element_of(field.annotation)
        if element is not None:
            elements.setdefault(element, []).append(name)
    for element, users in elements.items():
        doc = (element.__doc__ or "").strip().split("\n")[0]
        heading = f"elements of {', '.join(users)}: {doc}"
        out.append((heading, _rows(element, None, f"{users[0]}.0.")))
    return out


def help_text(cls: type[Section], verb: str = "", *, width: int | None = None) -> str:
    """The whole help page as text; ``width`` defaults to the terminal's."""
    width = width or max(80, shutil.get_terminal_size((110, 24)).columns)
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, force_terminal=sys.stdout.isatty(), highlight=False)
    is_stage = issubclass(cls, RunConfig)
    usage = USAGE.get(verb, "[CONFIG.yaml] [--field value ...] [--resume] [--print-config]")
    console.print(Text(f"usage: ppomax {verb} {usage}"))
    console.print(Text((cls.__doc__ or "").strip()))
    values = "Values are YAML: numbers, true, null, '[a, b]', '{path: a}'; a list may also be several words."
    console.print(Text(f"\n{values}"))
    if is_stage:
        console.print(Text("Defaults < preset < YAML file < command line."))
        console.print(Text("--resume goes on with a stopped run; --print-config shows the resolved YAML and stops."))
    if "preset" in cls.model_fields:
        console.print(Text(f"Presets: {', '.join(preset_names())} (`ppomax details` compares them)."))
    for heading, rows in sections(cls):
        console.print()
        console.print(Text(heading, style="bold"))
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, overflow="fold")
        table.add_column(max_width=24)
        table.add_column(max_width=18, overflow="fold")
        table.add_column(ratio=1)
        for option, kind, default, about in rows:
            table.add_row(Text("  " + option), Text(kind, style="cyan"), Text(default, style="green"), Text(about))
        console.print(table)
    if verb in EXAMPLES:
        console.print(Text("\nexamples:", style="bold"))
        for line in EXAMPLES[verb]:
            console.print(Text("  " + line), soft_wrap=True)
    return re.sub(r"[ \t]+\n", "\n", buffer.getvalue()).rstrip("\n")
