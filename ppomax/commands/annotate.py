"""``ppomax annotate DUEL [--annotators anna,bo]``, ``ppomax annotate export DUEL --out pairs.jsonl``, and in the embedded
world, without people, ``ppomax annotate simulate DUEL --world WORLD --output_dir DIR``."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ppomax.annotate.items import answer_files, attention_items, duel_items
from ppomax.annotate.store import Store
from ppomax.commands.stage import sort_words
from ppomax.commands.terminal import visible
from ppomax.config import Section
from ppomax.errors import UserError
from ppomax.options import help_text, resolve
from ppomax.regular_file import expand_path

USAGE = """\
usage: ppomax annotate DUEL | A.jsonl B.jsonl [--field value ...]
       ppomax annotate export DUEL --out FILE.jsonl [--field value ...]
       ppomax annotate simulate DUEL | A.jsonl B.jsonl --world WORLD --output_dir DIR [--field value ...]"""
EXAMPLES = """\
examples:
  ppomax annotate runs/duel --annotators anna,bo --overlap 0.2
  ppomax annotate answers_a.jsonl answers_b.jsonl --output_dir runs/people --tests known.jsonl --language zh
  ppomax annotate export runs/duel --out pairs.jsonl
  ppomax reward --model runs/sft/final --data pairs.jsonl --output-dir runs/reward"""


def _names(value: Any) -> Any:
    """``anna,bo`` as well as a list."""
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        return value
    return [name.strip() for word in words for name in word.replace("，", ",").split(",") if name.strip()]


Names = Annotated[list[str], BeforeValidator(_names)]


class AnnotateConfig(Section):
    """A local web page on which people compare the answers of a duel blind. Started again, it goes on."""

    answers: Annotated[list[str], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = Field(min_length=1)
    """the folder of a duel, or two files of answers (JSON lines: prompt, response)"""
    annotators: Names = Field(["annotator"], min_length=1)
    """names of the people, with commas between; each gets an address, and names may be added at a later start"""
    overlap: float = Field(0.2, ge=0, le=1)
    """share of the prompts that two people judge, to see how well they agree; acts with two annotators or more"""
    tests: str | None = None
    """preference pairs (chosen is known to be better), hidden among the others to see who attends; null: none, or
    those that the annotation was begun with"""
    output_dir: str | None = None
    """folder of the database; null: `people` in the duel's folder"""
    language: Literal["en", "zh"] = "en"
    """of the page; each person may change it there"""
    host: str = "127.0.0.1"
    """where to listen; anything but this machine itself sends answers and judgements over the network unencrypted"""
    port: int = Field(0, ge=0, le=65535)
    """0: any free one"""


class ExportConfig(Section):
    """What people judged, as preference pairs for a reward model and as judgements of a duel."""

    folder: str
    """the folder of a duel, or the output_dir of the annotation"""
    out: str
    """file of preference pairs to be written"""
    overwrite: bool = False
    """write over an earlier file of that name"""
    without: Names = Field([])
    """annotators that are left out, such as one who fails the test items"""
    resamples: int = Field(1000, ge=100)
    """bootstrap resamples over prompts, for the intervals of the win rate"""


def folder_of(config: AnnotateConfig) -> Path:
    """Where the database lies."""
    if config.output_dir is not None:
        return Path(expand_path(config.output_dir))
    if len(config.answers) > 1:
        raise UserError("--output_dir is needed with two files of answers: the folder for the judgements")
    return Path(expand_path(config.answers[0])) / "people"


def annotate(config: AnnotateConfig) -> None:
    """Serve until Ctrl-C."""
    from ppomax.annotate.server import AnnotationServer
    from ppomax.local_server import is_loopback

    if len(set(config.annotators)) < len(config.annotators):
        raise UserError(f"annotators: a name occurs twice in {', '.join(config.annotators)}")
    folder = folder_of(config)
    items, lines = duel_items(*answer_files(config.answers))
    tests = None
    if config.tests is not None:
        tests, more = attention_items(config.tests)
        lines += more
    folder.mkdir(parents=True, exist_ok=True)
    store = Store.begin(folder / "annotation.sqlite", items, tests, overlap=config.overlap, seed=secrets.randbits(32))
    try:
        annotators = store.add_annotators(config.annotators)
        server = AnnotationServer(store, annotators, host=config.host, port=config.port, language=config.language)
        for line in lines:
            print(line)
        two = sum(n > 1 for n in store.needed().values()) if len(store.annotators()) > 1 else 0
        print(
            f"{len(items)} prompts, {two} of them for two people; {len(store.items('same'))} where both answers are the "
            f"same count as ties and are not shown; {len(store.items('test'))} test items"
        )
        if not is_loopback(config.host):
            print(
                f"warning: listening on {config.host}: others on the network can reach this server, and everything "
                "travels unencrypted; an ssh tunnel to 127.0.0.1 is safer",
                file=sys.stderr,
            )
        for annotator in annotators:
            print(f"{visible(annotator.name)}: {server.url(annotator)}")
        print(f"every judgement is kept in {store.path} at once; Ctrl-C stops, the same command goes on", flush=True)
        with server:
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print("stopped")
    finally:
        store.close()


def table(result: dict[str, Any]) -> str:
    """An export for a terminal."""
    overall, items, pairs = result["overall"], result["items"], result["pairs"]
    rate = overall["win_rate"]
    lines = [
        f"{items['judged']} of {items['all']} prompts judged, {items['same']} with the same answer twice, "
        f"{items['open']} open",
        f"A wins {overall['win']}, ties {overall['tie']} ({items['undecided']} undecided), loses {overall['lose']}: "
        f"win rate {rate['value']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]",
        f"{pairs['pairs']} pairs; left out: {pairs['ties']} ties, {pairs['undecided']} undecided, "
        f"{pairs['empty answers']} with an empty answer",
    ]
    for name, found in result["agreement"].items():
        lines.append(
            f"agreement, {name}: {found['same']} of {found['items']} the same ({found['rate']:.1%}); without ties "
            f"{found['decided_same']} of {found['decided']}"
        )
    chance = result["beyond_chance"]
    if chance is not None:
        measures = [("kappa", f"{p['one']} - {p['other']}", p["kappa"]) for p in chance["pairs"] if p["items"]]
        measures.append(("Krippendorff's alpha (ordinal)", "all", chance["all_judges"]["alpha_ordinal"]))
        lines += [
            f"{what}, {who}: {found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
            for what, who, found in measures
            if None not in found.values()  # without a difference between prompts there is nothing to measure
        ]
    for name, found in result["annotators"].items():
        tests = found["tests"]
        asked = sum(tests.values())
        told = f"; test items: {tests['right']} of {asked} right, {tests['tie']} ties" if asked else ""
        left = " (left out)" if name in result["without"] else ""
        lines.append(
            f"{name}{left}: {found['judged']} judged, {found['withdrawn']} withdrawn, first answer preferred "
            f"{found['left']} times, second {found['right']}{told}"
        )
    return visible("\n".join(lines))


def main(verb: str, words: list[str]) -> int:
    """Run the verb."""
    action = words[0] if words[:1] in (["export"], ["simulate"]) else ""
    given = sort_words(words[bool(action) :], ["--resume"] if action == "simulate" else [])
    if "--help" in given.switches:
        page = help_text({"export": ExportConfig, "simulate": _simulated()}.get(action, AnnotateConfig), verb)
        print(f"{USAGE}\n{page.partition(chr(10))[2]}\n\n{EXAMPLES}")
        return 0
    if action == "export":
        _export(given.leading, given.options)
        return 0
    options = [*(["--answers", *given.leading] if given.leading else []), *given.options]
    if action == "simulate":
        from ppomax.annotate.simulated import simulate

        config = resolve(_simulated(), options, words_alone=True)
        print(table(simulate(config, resume="--resume" in given.switches)))
        print(f"written: {config.output_dir}/pairs.jsonl, and {config.output_dir}/people")
    else:
        annotate(resolve(AnnotateConfig, options, words_alone=True))
    return 0


def _simulated() -> Any:
    from ppomax.annotate.simulated import SimulateConfig  # imports the world: slow

    return SimulateConfig


def _export(leading: list[str], options: list[str]) -> None:
    from ppomax.annotate.export import export

    if len(leading) > 1:
        raise UserError(f"unexpected word {leading[1]!r}: one folder is exported")
    config = resolve(ExportConfig, [*(f"--folder={word}" for word in leading), *options], words_alone=True)
    folder = Path(expand_path(config.folder))
    if (folder / "people").is_dir() or (folder / "answers_a.jsonl").is_file():  # of a duel
        folder /= "people"
    out = Path(expand_path(config.out))
    if out.exists() and not (config.overwrite and out.is_file()):
        raise UserError(
            f"{out} already exists: choose another --out" + ("" if out.is_dir() else ", or add --overwrite")
        )
    print(table(export(folder, out, without=config.without, resamples=config.resamples)))
    print(f"written: {out}, and judgements.jsonl, votes.jsonl and result.json in {folder}")
