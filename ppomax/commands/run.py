"""``ppomax run PIPELINE.yaml [--stage.field value ...] [--stage PLACE ...]``."""

from __future__ import annotations

from ppomax.commands.stage import sort_words
from ppomax.errors import UserError
from ppomax.options import dump_yaml
from ppomax.pipeline import KINDS, read_pipeline, run_pipeline

HELP = f"""usage: ppomax run PIPELINE.yaml [--stage.field value ...] [--stage PLACE ...] [--output-dir DIR] [--print-config]

Stages in sequence: finished ones are skipped, an interrupted one goes on where it stopped.

  output_dir: runs/hh
  defaults: {{seed: 1}}                         for every stage that has the field
  stages:
    - {{name: base, kind: new-model, size: 6m, tokenizer_from: [dialogues.jsonl]}}
    - {{name: sft, kind: sft, model: "${{base}}", data: dialogues.jsonl}}
    - {{name: rm, kind: reward, model: "${{sft}}", data: pairs.jsonl}}
    - {{name: ppo, kind: ppo, model: "${{sft}}", reward: "${{rm}}", prompts: prompts.jsonl}}

Kinds: {", ".join(KINDS)}. ${{sft}} is the model that stage leaves, ${{sft.dir}} its directory.
Each stage runs in output_dir/NAME with the fields of its own verb (ppomax sft --help).
--sft PLACE gives what stage sft would leave: it is not run, nor are stages that only it needs.
--print-config shows every stage's resolved settings and stops.

examples:
  ppomax run recipes/hh_cpu.yaml
  ppomax run recipes/hh_cpu.yaml --ppo.iterations 20 --ppo.kl.coef 0.1
  ppomax run recipes/hh_cpu.yaml --sft my/model --output-dir runs/mine"""


def main(verb: str, words: list[str]) -> int:
    """Run the verb."""
    given = sort_words(words, ["--print-config"])
    if "--help" in given.switches:
        print(HELP)
        return 0
    if len(given.leading) != 1:
        raise UserError(f"one pipeline file is expected, found {len(given.leading)} (see ppomax run --help)")
    if "--print-config" in given.switches:
        for stage in read_pipeline(given.leading[0], given.options)[1]:
            print(f"# stage {stage.name}\n{dump_yaml(stage.config)}")
        return 0
    run_pipeline(given.leading[0], given.options)
    return 0
