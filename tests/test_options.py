"""Options: precedence, types, one-line errors, presets, round trips, warnings."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from ppomax.config import PPOConfig, RewardConfig, SFTConfig
from ppomax.errors import UserError
from ppomax.evaluate.duel import DuelConfig
from ppomax.layers import field_names, preset_names
from ppomax.options import differences, dump_yaml, from_mapping, help_text, load_yaml, resolve, warnings_for
from ppomax.yaml_tree import parse

SFT = ["--model", "m", "--data", "d", "--output-dir", "o"]
PPO = ["--model", "m", "--reward", "r", "--prompts", "p", "--output-dir", "o"]


def ppo(*words: str) -> PPOConfig:
    return resolve(PPOConfig, [*PPO, *words])


def sft(*words: str) -> SFTConfig:
    return resolve(SFTConfig, [*SFT, *words])


def error_of(cls: type, words: list[str], yaml_path: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        resolve(cls, words, yaml_path=yaml_path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------ precedence


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "ppo.yaml"
    file.write_text("model: m\noutput_dir: o\nprompts: p\npreset: vanilla\nkl: {coef: 0.3}\ngae: {lam: 0.7}\n")
    config = resolve(PPOConfig, ["--gae.lam", "0.5"], yaml_path=str(file))
    assert config.gae.lam == 0.5  # command line over YAML
    assert config.kl.coef == 0.3  # YAML over preset
    assert config.reward_shaping.normalise is False  # preset over defaults
    assert config.grad_clip.norm == 1.0  # default
    again = resolve(PPOConfig, ["--preset", "vanilla_noclip"], yaml_path=str(file))
    assert again.preset == "vanilla_noclip" and again.grad_clip.norm == 0.0 and again.kl.coef == 0.3


def test_nested_defaults_of_the_stage_survive_a_partial_section() -> None:
    config = sft("--optim.lr", "3e-4")
    assert config.optim.lr == 3e-4
    assert config.optim.schedule == "cosine"  # SFT's own default, not OptimConfig's


def test_sections_merge_and_switch() -> None:
    assert sft().lora is None
    assert sft("--lora").lora is not None
    config = sft("--lora", "{rank: 4}", "--lora.alpha", "8")
    assert config.lora is not None and (config.lora.rank, config.lora.alpha) == (4, 8)
    assert sft("--lora.rank", "4", "--lora", "null").lora is None


def test_empty_section_in_yaml_means_no_differences(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("model: m\noutput_dir: o\ndata: d\noptim:\n  # lr: 1\ncheckpoint:\n")
    assert load_yaml(SFTConfig, file) == sft()


def test_empty_file_is_no_settings(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("# nothing\n")
    assert resolve(SFTConfig, SFT, yaml_path=str(file)) == sft()


# ----------------------------------------------------------------------------------------- value types


def test_spellings_are_alike() -> None:
    plain = sft("--batch_size", "3", "--packing", "false", "--optim.lr", "1e-5")
    assert plain == sft("--batch-size=3", "--packing=no", "--optim.lr=0.00001")
    assert sft("--packing").packing is True
    assert sft("--trust-remote-code", "--batch-size", "3").trust_remote_code is True


@pytest.mark.parametrize(
    ("text", "value"), [("1e-5", 1e-5), ("5e-7", 5e-7), ("1.65e-6", 1.65e-6), (".5", 0.5), ("1E3", 1e3), ("2", 2.0)]
)
def test_numbers(text: str, value: float, tmp_path: Path) -> None:
    assert sft("--optim.lr", text).optim.lr == value
    file = tmp_path / "a.yaml"
    file.write_text(f"optim:\n  lr: {text}\n")
    assert resolve(SFTConfig, SFT, yaml_path=str(file)).optim.lr == value


@pytest.mark.parametrize(
    "text", ["no", "off", "2024", "007", "1e5", "true", "2024-01-01", "12:30", "0x1F", "a: b", "[x", "*a", "#1"]
)
def test_text_stays_text(text: str) -> None:
    assert sft("--output-dir", text).output_dir == text


@pytest.mark.parametrize("text", ["no", "off", "2024", "007", "1e5", "true", "2024-01-01", "12:30"])
def test_text_stays_text_in_yaml(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"model: {text}\ndata: {{path: {text}}}\noutput_dir: o\n")
    config = load_yaml(SFTConfig, file)
    assert config.model == text and config.data[0].path == text


def test_null_and_negative() -> None:
    assert ppo("--reward-shaping.clip", "null").reward_shaping.clip is None
    assert ppo("--reward.0.weight", "-1").reward[0].weight == -1


def test_lists() -> None:
    paths = ["a.jsonl", "b.jsonl"]
    for words in (
        ["--data", "a.jsonl", "b.jsonl"],
        ["--data", "[a.jsonl, b.jsonl]"],
        ["--data", "[{path: a.jsonl}, b.jsonl]"],
    ):
        config = resolve(SFTConfig, ["--model", "m", *words, "--output-dir", "o"])
        assert [source.path for source in config.data] == paths
    config = resolve(
        SFTConfig, ["--model", "m", "--data", "{path: a, weight: 2}", "b", "--data.1.weight", "3", "--output-dir=o"]
    )
    assert [(source.path, source.weight) for source in config.data] == [("a", 2.0), ("b", 3.0)]
    assert ppo("--sampling.stop", "Human:", "\\n").sampling.stop == ["Human:", "\\n"]
    assert ppo("--sampling.stop", "1", "no").sampling.stop == ["1", "no"]
    assert ppo("--sampling.stop", r'"\n\nHuman:"', "'it''s'", '"').sampling.stop == ["\n\nHuman:", "it's", '"']
    assert ppo("--sampling.stop", r'"\d"').sampling.stop == [r'"\d"'], "no YAML, and so as it stands"
    assert ppo("--model", '"m x"').model == "m x" and ppo("--model", '"a" b').model == '"a" b'
    assert "sampling.stop.0" in error_of(PPOConfig, [*PPO, "--sampling.stop", '[""]'])
    assert ppo("--policy-optim.betas", "[0.8, 0.9]").policy_optim.betas == (0.8, 0.9)


def test_elements_of_a_list_from_yaml_can_be_changed(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("model: m\noutput_dir: o\ndata: [a, {path: b, limit: 5}]\n")
    config = resolve(SFTConfig, ["--data.1.weight", "3"], yaml_path=str(file))
    assert [(s.path, s.weight, s.limit) for s in config.data] == [("a", 1.0, None), ("b", 3.0, 5)]
    assert "no element 2" in error_of(SFTConfig, ["--data.2.weight", "3"], str(file))


def test_reward_shorthands() -> None:
    config = resolve(
        PPOConfig, ["--model=m", "--prompts=p", "--output-dir=o", "--reward", "dir/final", "mod.sub:fn", "http://x/y"]
    )
    assert [(r.model, r.function, r.url) for r in config.reward] == [
        ("dir/final", None, None), (None, "mod.sub:fn", None), (None, None, "http://x/y"),
    ]  # fmt: skip


# --------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--kl.coeff", "1"], "unknown option --kl.coeff; did you mean --kl.coef"),
        (["--coef", "1"], "--kl.coef"),
        (["--kl-coef", "1"], "did you mean --kl.coef"),
        (["--rewards", "x"], "did you mean --reward"),
        (["--kl.coef", "abc"], "command line: kl.coef = 'abc': a number is expected"),
        (["--kl.coef", "true"], "kl.coef = true"),
        (["--kl.coef", "-1"], "kl.coef = -1: must be >= 0"),
        (["--iterations", "2.5"], "iterations = 2.5: an integer is expected"),
        (["--grad-clip.joint", "maybe"], "grad_clip.joint = 'maybe': true or false is expected"),
        (["--surrogate.kind", "clp"], "expected one of 'clip', 'penalty' or 'none'"),
        (["--kl", "3"], "kl = 3: a mapping of fields is expected"),
        (["--kl", "{coeff: 1}"], "unknown field 'kl.coeff'; did you mean kl.coef"),
        (["--prompts.0.wieght", "2"], "did you mean --prompts.0.weight"),
        (["--preset", "vanila"], "command line: unknown preset 'vanila'; did you mean vanilla"),
        (["--kl.coef"], "--kl.coef needs a value"),
        (["--seed", "1", "stray"], "unexpected word 'stray'"),
        (["--kl", "{coef: [}"], "--kl:1: not valid YAML"),
        (["--ptx.data", "[{path: a, weight: 0}]"], "ptx.data.0.weight = 0: must be > 0"),
        (["--ptx.data", "[{weight: 1}]"], "ptx.data.0.path"),
        (["--prompts", "a", "--prompts", "b"], "--prompts is given twice"),
        (["--reward_shaping.scale"], "reward_shaping.scale and reward_shaping.normalise are both on"),
        (["--ptx.coef", "1"], "ptx.coef is 1 but there is no ptx.data"),
        (["--preset", "ppo_max_ptx"], "there is no ptx.data"),
        (["--rollout-batch", "6", "--sampling.samples-per-prompt", "4"], "rollout_batch 6 is no multiple"),
        (["--reward", "{model: a, url: http://x}"], "exactly one of model, function, url is needed, found model and url"),
        (["--reward", "mod:fn"], "critic.init is `reward`, but no reward source is a model"),
        (["--kl.controller", "adaptive", "--kl.coef", "0"], "0 stays 0"),
        (["--kl.controller", "adaptive", "--kl.horizon", "25"], "kl.horizon 25: 128 samples"),
        (["--seed", "-1"], "seed"),
        (["--logprobs", "scaled", "--sampling.temperature", "0"], "which is 0"),
    ],
)  # fmt: skip
def test_command_line_mistakes(words: list[str], expected: str) -> None:
    base = ["--model", "m", "--output-dir", "o", *([] if "--reward" in words else ["--reward", "r"])]
    assert expected in error_of(PPOConfig, [*base, *([] if "--prompts" in words else ["--prompts", "p"]), *words])


def test_missing_fields_in_one_line() -> None:
    message = error_of(PPOConfig, [])
    assert message.startswith("missing output_dir, model, prompts")


def test_a_wrong_value_is_told_before_missing_ones() -> None:
    assert "kl.coef = 'x'" in error_of(PPOConfig, ["--kl.coef", "x"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: m\nkl:\n  coeff: 1\n", ":3: unknown field 'kl.coeff'; did you mean kl.coef"),
        ("model: m\n\nprompts:\n- path: a\n- pth: b\n", ":5: unknown field 'prompts.1.pth'; did you mean"),
        ("prompts: {path: a,\n  limt: 2}\n", ":2: unknown field 'prompts.limt'"),
        ("kl:\n  coef: abc\n", ":2: kl.coef = 'abc': a number is expected"),
        ("sampling:\n  stop: [a,\n   [b]]\n", ":3: sampling.stop.1"),
        ("kl:\n  coef: 1\n  coef: 2\n", ":3: key 'coef' occurs twice"),
        ("kl: {coef: 1\n", "not valid YAML"),
        ("- a\n", "a mapping of fields to values is expected, not a list"),
        ("just text\n", "a mapping of fields to values is expected, not a text"),
        ("? [a]\n: 1\n", ":1: a key must be a plain word"),
        ("kl: &x\n  coef: *x\n", "not"),
        ("a\tb: [\n", "not valid YAML"),
    ],
)
def test_yaml_mistakes_name_file_and_line(text: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    message = error_of(PPOConfig, ["--model", "m", "--output-dir", "o"], str(file))
    assert message.startswith(str(file)) and expected in message


def test_unreadable_files(tmp_path: Path) -> None:
    assert "no such file" in error_of(PPOConfig, [], str(tmp_path / "absent.yaml"))
    assert "is a directory" in error_of(PPOConfig, [], str(tmp_path))
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in error_of(PPOConfig, [], str(tmp_path / "b.yaml"))


def test_min_pairs_above_max_pairs() -> None:
    assert "min_pairs 9 is above max_pairs 8" in error_of(RewardConfig, [*SFT, "--min-pairs=9", "--max-pairs=8"])


def test_later_command_line_words_win() -> None:
    assert sft("--seed", "1", "--seed", "2").seed == 2


# ------------------------------------------------------------------------------- presets and round trips


@pytest.mark.parametrize("name", ["ppo_max", "ppo_max_ptx", "vanilla", "vanilla_noclip", "moss_rlhf"])
def test_presets_round_trip(name: str, tmp_path: Path) -> None:
    config = ppo("--preset", name, "--ptx.data", "t")
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(config), encoding="utf-8")
    assert load_yaml(PPOConfig, file) == config
    assert config.preset == name


def test_all_presets_are_tested() -> None:
    assert preset_names() == ["ppo_max", "ppo_max_ptx", "vanilla", "vanilla_noclip", "moss_rlhf"]


def test_preset_values() -> None:
    default = ppo()
    assert (default.kl.coef, default.reward_shaping.normalise, default.reward_shaping.clip) == (0.05, True, 0.8)
    assert (
        default.critic.init == "reward" and default.critic.value_clip == 0.2 and default.critic.pretrain_iterations > 0
    )
    assert (default.gae.lam, default.gae.gamma, default.surrogate.clip_range, default.grad_clip.norm) == (
        0.9,
        1,
        0.2,
        1.0,
    )
    assert ppo("--preset", "ppo_max") == default
    vanilla = ppo("--preset", "vanilla")
    assert (vanilla.kl.coef, vanilla.reward_shaping.normalise, vanilla.reward_shaping.clip) == (0, False, None)
    assert vanilla.critic.value_clip is None and vanilla.critic.pretrain_iterations == 0
    assert (vanilla.surrogate.kind, vanilla.gae.lam, vanilla.grad_clip.norm) == ("clip", 0.9, 1.0)
    noclip = ppo("--preset", "vanilla_noclip")
    assert set(differences(vanilla, noclip)) == {"preset", "grad_clip.norm"} and noclip.grad_clip.norm == 0
    ptx = ppo("--preset", "ppo_max_ptx", "--ptx.data", "t")
    assert set(differences(default, ptx)) == {"preset", "ptx.coef", "ptx.data"} and ptx.ptx.coef > 0
    moss = ppo("--preset", "moss_rlhf")
    assert moss.reward_shaping.scale and not moss.reward_shaping.normalise and moss.reward_shaping.clip is None
    assert (moss.gae.lam, moss.kl.coef, moss.advantage.std, moss.grad_clip.joint) == (0.95, 0.01, "biased", True)
    assert (moss.policy_optim.eps, moss.critic_optim.eps, moss.policy_optim.betas) == (1e-6, 1e-8, (0.9, 0.95))
    assert (moss.sampling.temperature, moss.sampling.top_p, moss.sampling.repetition_penalty) == (0.8, 0.9, 1.1)


def test_presets_leave_recipes_alone() -> None:
    for name in preset_names():
        config = ppo("--preset", name, "--ptx.data", "t")
        changed = differences(ppo("--ptx.data", "t"), config)
        recipe = {"iterations", "rollout_batch", "minibatch", "ppo_epochs", "policy_optim.lr", "critic_optim.lr",
                  "sampling.max_new_tokens", "max_prompt_length"}  # fmt: skip
        assert not recipe & set(changed)


def test_other_stages_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for config in (sft("--lora.rank", "2", "--optim.lr", "1e-7"), resolve(RewardConfig, [*SFT, "--lm-coef", "0"])):
        file.write_text(dump_yaml(config), encoding="utf-8")
        assert load_yaml(type(config), file) == config


def test_from_mapping_fills_preset_and_stage_defaults() -> None:
    config = from_mapping(
        PPOConfig, {"model": "m", "prompts": "p", "output_dir": "o", "preset": "vanilla", "kl": {"coef": 0.1}}
    )
    assert config.kl.coef == 0.1 and config.kl.estimator == "k1" and config.reward_shaping.clip is None
    with pytest.raises(UserError, match=r"unknown field 'kl\.cef'"):
        from_mapping(PPOConfig, {"kl": {"cef": 1}})


def test_differences() -> None:
    assert differences(ppo(), ppo()) == []
    assert differences(ppo(), ppo("--kl.coef", "1", "--seed", "3", "--lora")) == ["seed", "kl.coef", "lora"]


# --------------------------------------------------------------------------------------------- warnings


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--kl.target", "3"], "kl.target does nothing: kl.controller is fixed"),
        (["--kl.horizon", "3"], "kl.horizon does nothing"),
        (["--kl.coef", "0", "--kl.estimator", "k3"], "kl.estimator does nothing"),
        (["--surrogate.kind", "none", "--surrogate.clip-range", "0.1"], "surrogate.clip_range does nothing"),
        (["--surrogate.kind", "penalty", "--surrogate.dual-clip", "3"], "surrogate.dual_clip does nothing"),
        (["--surrogate.kind", "penalty", "--surrogate.clip-range-high", "3"], "surrogate.clip_range_high does nothing"),
        (["--surrogate.penalty-coef", "2"], "surrogate.penalty_coef does nothing"),
        (["--ptx.data", "t"], "ptx.data does nothing: ptx.coef is 0"),
        (["--ptx.batch-ratio", "2"], "ptx.batch_ratio does nothing"),
        (["--entropy.target", "2"], "entropy.target does nothing"),
        (["--reward.0.spread-coef", "1"], "reward.0.spread_coef does nothing"),
        (["--reward.0.timeout", "1"], "reward.0.timeout does nothing"),
        (
            ["--critic.pretrain-iterations", "0", "--critic.pretrain-plateau", "0.1"],
            "critic.pretrain_plateau does nothing",
        ),
        (
            ["--critic.pretrain-plateau", "0.1"],
            "critic.pretrain_plateau does nothing: a plateau shows in 10 iterations",
        ),
        (["--gae.lam", "1", "--gae.target", "reward_to_go"], "gae.target does nothing"),
        (["--watch.prompts", "p", "--watch.eval-prompts", "0"], "watch.prompts does nothing: watch.eval_prompts is 0"),
        (
            ["--watch.prompts", "p", "--watch.eval-prompts", "0", "--watch.judge", "world", "--watch.every", "3"],
            "watch.every does nothing: watch.eval_prompts is 0",
        ),
        (["--grad-clip.norm", "0", "--grad-clip.joint"], "grad_clip.joint does nothing"),
        (["--critic.init", "policy", "--critic.calibrate", "false"], "critic.calibrate does nothing"),
        (["--advantage.std", "biased"], "advantage.std does nothing"),
        (["--sampling.repetition-scope", "all"], "sampling.repetition_scope does nothing"),
        (["--logprobs", "scaled"], "logprobs does nothing"),
        (["--sampling.temperature", "0", "--sampling.top-p", "0.5"], "sampling.top_p does nothing"),
        (["--policy-optim.min-lr-ratio", "0.5"], "policy_optim.min_lr_ratio does nothing"),
        (["--gae.gamma", "0", "--gae.lam", "0.5"], "gae.lam does nothing"),
        (["--minibatch", "128"], "one update an iteration"),
        (["--minibatch", "100"], "the last update of each pass has 28"),
        (["--preset", "vanilla", "--kl.coef", "0.1"], "kl.coef is 0.1, not 0.0 as in preset vanilla"),
    ],
)
def test_options_that_cannot_act_are_named(words: list[str], expected: str) -> None:
    warnings = warnings_for(ppo(*words))
    assert len(warnings) == 1 and expected in warnings[0]


@pytest.mark.parametrize("name", ["ppo_max", "vanilla", "vanilla_noclip", "moss_rlhf"])
def test_presets_give_no_warnings(name: str) -> None:
    assert warnings_for(ppo("--preset", name)) == []


def test_one_update_leaves_the_reference_ratio_alone() -> None:
    [note] = warnings_for(ppo("--minibatch", "128", "--surrogate.denominator", "reference"))
    assert "value_clip" in note and "surrogate" not in note
    assert warnings_for(ppo("--minibatch", "128", "--ppo-epochs", "2")) == []
    assert warnings_for(ppo("--minibatch", "128", "--buffer-iterations", "2")) == []
    old = ("--minibatch", "256", "--buffer-iterations", "2")  # one update, half of whose samples are an iteration old
    assert warnings_for(ppo(*old)) == []


def test_warnings_of_other_stages() -> None:
    assert warnings_for(sft()) == warnings_for(sft("--lora.rank", "4")) == []
    [warning] = warnings_for(sft("--eval-data", "e", "--eval-fraction", "0.5"))
    assert "eval_fraction does nothing: eval_data is given" in warning
    words = ["--a=A", "--b=B", "--judge=world", "--prompts=p", "--output-dir=o"]
    assert warnings_for(resolve(DuelConfig, words)) == []
    told = warnings_for(
        resolve(DuelConfig, [*words, "--parallel.shard=zero2", "--checkpoint.keep=9", "--tracker-project=x"])
    )
    inert = ("checkpoint.keep", "parallel.shard", "tracker_project")
    assert [line.partition(" does nothing")[0] for line in told] == list(inert)


# ------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("cls", [SFTConfig, RewardConfig, PPOConfig])
def test_help_shows_every_field_with_its_docstring(cls: type[BaseModel]) -> None:
    text = help_text(cls, "ppo", width=400)  # type: ignore[arg-type]
    sections = {"optim", "checkpoint", "sampling", "kl", "reward_shaping", "advantage", "gae", "surrogate", "entropy", "critic",
                "grad_clip", "ptx", "policy_optim", "critic_optim", "watch", "watch.llm", "parallel", "rollout"}  # fmt: skip
    shown = {line.split()[0] for line in text.splitlines() if line.startswith("  --")}
    for name in field_names(cls):  # type: ignore[arg-type]
        first_user = name.replace("eval_data.0", "data.0").replace("calibration_data.0", "data.0")
        first_user = first_user.replace("ptx.data.0", "prompts.0").replace("watch.prompts.0", "prompts.0")
        assert name in sections or f"--{first_user}" in shown, name
    for name, field in cls.model_fields.items():
        assert field.description, name
        assert field.description in text or name in sections, name


def test_help_fits_its_width() -> None:
    assert max(map(len, help_text(PPOConfig, "ppo", width=100).split("\nexamples:")[0].splitlines())) <= 100


# ------------------------------------------------------------------------------------------------- yaml


def test_yaml_types_are_those_of_1_2() -> None:
    tree = parse(
        "[no, yes, on, off, y, true, False, ~, null, 010, 1_000, 1:30, 2024-01-01, 1e3, -2, +2, .5, 1., .inf, 0o7]", "x"
    )
    assert tree.value == ["no", "yes", "on", "off", "y", True, False, None, None, 10, 1000, "1:30", "2024-01-01", 1000.0,
                          -2, 2, 0.5, 1.0, float("inf"), "0o7"]  # fmt: skip


def test_yaml_merge_keys_and_anchors() -> None:
    tree = parse("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n", "x")
    assert tree.value["b"] == {"x": 1, "y": 3}


def test_a_yaml_file_is_named_only_where_one_is_taken() -> None:
    with pytest.raises(UserError, match=r"^missing output_dir, model, data: .* or set it in the YAML file$"):
        resolve(SFTConfig)
    with pytest.raises(UserError, match=r"^missing output_dir, model, data: give .*--data \.\.\.$"):
        resolve(SFTConfig, words_alone=True)
