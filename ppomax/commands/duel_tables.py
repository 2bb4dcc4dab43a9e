"""What ``ppomax duel`` and ``ppomax duel report`` show in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ppomax.evaluate.duel_tally import UNIT


def table(result: dict[str, Any]) -> str:
    """The result for a terminal: a line for each source of prompts, for each category where there are several, for all."""
    kinds = result.get("by_category", {})
    rows = [*result["by_source"].items(), *(kinds.items() if len(kinds) > 1 else ()), ("all", result["overall"])]
    names = [name for name, _ in rows]
    width = max(map(len, names))
    head = f"{'':{width}}  prompts   win   tie  lose  win rate (95%)         length-controlled      sign test"
    lines = [f"A = {result['a']}", f"B = {result['b']}", f"judge = {', '.join(map(str, result['judge']))}", "", head]
    for name, part in rows:
        plain, controlled = part["win_rate"], part["length_controlled"]
        rates = "  ".join(f"{r['value']:6.1%} [{r['low']:.1%}, {r['high']:.1%}]".ljust(21) for r in (plain, controlled))
        lines.append(
            f"{name:{width}}  {part['prompts']:7}  {part['win']:4}  {part['tie']:4}  {part['lose']:4}  {rates}  "
            f"p = {part['sign_test_p']:.2g}"
        )
    overall = result["overall"]
    lengths = f"mean length: A {overall['mean_length_a']:.0f}, B {overall['mean_length_b']:.0f} {UNIT}"
    if result["tie_band"] is not None:
        lengths += (
            f"; mean score: A {result['mean_score_a']:.3f}, B {result['mean_score_b']:.3f}; "
            f"a difference up to {result['tie_band']:.3g} is a tie"
        )
    lines += ["", lengths, f"length control: {overall['length_controlled']['model']}"]
    if result.get("llm"):
        lines += llm_lines(result["llm"])
    lines += _left_out_lines(result)
    lines += [_best_of_line(name, about, result) for name, about in result.get("best_of", {}).items()]
    lines += [_endpoint_line(name, about) for name, about in result.get("endpoint", {}).items()]
    return "\n".join(lines)


def _left_out_lines(result: Mapping[str, Any]) -> list[str]:
    """What was not judged: prompts by reason, and the records of each file that belong to no prompt."""
    reasons = [f"{n} {reason}" for reason, n in result["left_out"].items() if n]
    lines = [f"prompts left out: {', '.join(reasons)}"] if reasons else []
    for name, file in result.get("files", {}).items():
        if file["matched"] < file["records"]:
            lines.append(
                f"file {name.upper()}: {file['matched']} of {file['records']} records matched, "
                f"{file['without_prompt']} belong to no prompt, {file['repeated']} repeat one"
            )
    return lines


def _best_of_line(name: str, about: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    return (
        f"{name.upper()} is the best of {about['n']} by {', '.join(result['best_of_reward'])}: KL at most "
        f"{about['kl_bound']:.3f} nats a response (log n - (n - 1) / n, an upper bound); mean score chosen "
        f"{about['mean_score_chosen']:.3f}, drawn {about['mean_score_drawn']:.3f}"
    )


def _endpoint_line(name: str, about: Mapping[str, Any]) -> str:
    faults = ", ".join(f"{n} {kind}" for kind, n in about["faults"].items())
    tokens = about["tokens"]
    return (
        f"{name.upper()}: {about['requests']} requests (faults: {faults or 'none'}), "
        f"{tokens['prompt']} + {tokens['completion']} tokens"
    )


def ratings_table(result: Mapping[str, Any]) -> str:
    """Several systems for a terminal: ratings, the best first, and a line for each pair."""
    rated = result["ratings"]
    order = sorted(rated["ratings"], key=lambda letter: -rated["ratings"][letter]["value"])
    rows: list[tuple[str, ...]] = [("", "rating (95%)", "wins, mean", "best in", "system")]
    for letter in order:
        r = rated["ratings"][letter]
        rows.append((
            letter.upper(), f"{r['value']:+.2f} [{r['low']:+.2f}, {r['high']:+.2f}]", f"{r['win_rate']:.1%}", f"{r['best']:.0%}",
            result["systems"][letter],
        ))  # fmt: skip
    lines = [f"judge = {', '.join(map(str, result['judge']))}; {rated['prompts']} prompts", "", *_columns(rows), ""]
    rows = [("", "win", "tie", "lose", "win rate (95%)", "length-controlled", "by the ratings", "sign test")]
    for pair, fitted in zip(result["pairs"], rated["pairs"], strict=True):
        part = pair["overall"]
        rows.append((
            f"{pair['one'].upper()} {pair['other'].upper()}", *(str(part[k]) for k in ("win", "tie", "lose")),
            _interval(part["win_rate"]), _interval(part["length_controlled"]), f"{fitted['predicted']:.1%}",
            f"p = {part['sign_test_p']:.2g}",
        ))  # fmt: skip
    strongest = result["against_strongest"]
    losses = ", ".join(f"{letter.upper()} {_interval(parts['all'])}" for letter, parts in strongest["loses"].items())
    lines += [*_columns(rows), "", f"loses to the strongest by rating, {strongest['opponent'].upper()}: {losses}"]
    lines += [
        f"{gap['one'].upper()} loses {more_often(gap)} than {gap['other'].upper()} ({gap['one'].upper()} alone "
        f"{gap['one_only']}, {gap['other'].upper()} alone {gap['other_only']}, sign test p = {gap['sign_test_p']:.2g})"
        for gap in strongest.get("differences", [])
    ]
    lines += [f"{rated['model']}; intervals: bootstrap over prompts"]
    if not rated["finite"]:
        lines.append(
            "a system (or a group of them) won every comparison with the others: only the prior keeps its rating finite"
        )
    return "\n".join(lines)


def llm_lines(about: Mapping[str, Any]) -> list[str]:
    """What is to be known of an LLM judge's work."""
    position, missing, tokens = about["position"], about["questions_without_verdict"], about["tokens"]
    why = ", ".join(f"{n} {word}" for word, n in missing.items() if n)
    faults = ", ".join(f"{n} {kind}" for kind, n in about["faults"].items())
    identical = f", {about['identical']} pairs of equal answers not asked" if about["identical"] else ""
    return [
        f"both orders asked, disagreement is a tie: {about['questions']} questions{identical}; "
        f"without a verdict: {sum(missing.values())}{f' ({why})' if why else ''}, which makes "
        f"{about['prompts_without_verdict']} of the ties",
        f"position: {position['flipped_pairs']} of {position['both_decided']} decided pairs changed with the order"
        + (f", to the first shown in {_interval(position['first_when_flipped'])}" if position["flipped_pairs"] else "")
        + f"; first shown preferred in {_interval(position['preferred_first'])} of all verdicts",
        f"{about['requests']} requests ({about['malformed_replies']} malformed replies; faults: {faults or 'none'}), "
        f"{tokens['prompt']} + {tokens['completion']} tokens"
        + (f", estimated for {tokens['estimated_replies']} replies" if tokens["estimated_replies"] else ""),
    ]


def _interval(estimate: Mapping[str, Any] | None, percent: bool = True) -> str:
    if estimate is None or estimate["value"] is None:
        return "-"
    shown = [
        "-" if estimate[k] is None else f"{estimate[k]:.1%}" if percent else f"{estimate[k]:.2f}"
        for k in ("value", "low", "high")
    ]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def more_often(gap: Mapping[str, Any]) -> str:
    """A difference of two shares in words: a negative one is "less often", with its interval turned as well."""
    if gap["value"] is None or gap["value"] >= 0:
        return f"{_interval(gap)} more often"
    turned = {"value": gap["value"], "low": gap["high"], "high": gap["low"]}
    return f"{_interval({k: None if v is None else -v for k, v in turned.items()})} less often"


def agreement_table(report: Mapping[str, Any]) -> str:
    """Agreement for a terminal: a line a judge, a line a pair of judges, and all together."""
    judges = report["judges"]
    letters = {name: f"J{i}" for i, name in enumerate(judges, 1)}
    lines = [
        f"A = {report['a']}",
        f"B = {report['b']}",
        *(f"{letters[n]} = {n} ({j['place']})" for n, j in judges.items()),
    ]
    lines += ["", f"{report['items']} pairs of answers judged by all"]
    head = (
        "",
        "judged",
        "win",
        "tie",
        "lose",
        "A wins (95%)",
        "longer wins (95%)",
        "length slope (95%)",
        "first shown preferred",
    )
    rows: list[tuple[str, ...]] = [head]
    for name, j in judges.items():
        position = j["position"]["preferred_first"] if j["position"] else None
        rows.append((
            letters[name], *(str(j[k]) for k in ("judged", "win", "tie", "lose")), _interval(j["win_rate"]),
            _interval(j["length"]["longer_wins"]), _interval(j["length"]["slope"], False), _interval(position),
        ))  # fmt: skip
    lines += [*_columns(rows), ""]
    rows = [("", "pairs", "agreement (95%)", "where both decide", "kappa", "kappa, linear", "alpha, ordinal")]
    for p in report["pairs"]:
        rows.append((
            f"{letters[p['one']]} {letters[p['other']]}", str(p["items"]), _interval(p["agreement"]),
            _interval(p["agreement_decided"]), _interval(p["kappa"], False), _interval(p["kappa_linear"], False),
            _interval(p["alpha_ordinal"], False),
        ))  # fmt: skip
    lines += [*_columns(rows), ""]
    everyone = report["all_judges"]
    lines.append(
        f"all judges, Krippendorff's alpha: nominal {_interval(everyone['alpha_nominal'], False)}, "
        f"ordinal {_interval(everyone['alpha_ordinal'], False)}"
    )
    for name, j in judges.items():
        if j["swapped"]:
            lines.append(
                f"{letters[name]}: {j['swapped']} pairs with the sides exchanged, its wins of B are wins of A here"
            )
        if j["left_out"] or j["without_verdict"]:
            lines.append(
                f"{letters[name]}: {j['left_out']} pairs left out that not all judged, {j['without_verdict']} without a verdict"
            )
    return "\n".join(lines)


def votes_table(report: Mapping[str, Any]) -> str:
    """Agreement in published files of votes for a terminal: a line for each two kinds of judges in each part."""
    lines = []
    for place, file in report["files"].items():
        why = "".join(f", {n} rows left out: {reason}" for reason, n in file["without"].items())
        lines.append(f"{place}: {file['votes']} votes{why}")
    for kind, k in report["kinds"].items():
        lines.append(
            f"{kind}: {k['votes']} votes on {k['pairs']} pairs of answers, judges: {k['judges']}, ties {k['ties']:.1%}"
        )
    head = ("", "", "votes", "agreement, ties count", "votes", "where both decide", "a tie is half", "kappa")
    rows: list[tuple[str, ...]] = [head]
    for name, part in report["parts"].items():
        for p in part["pairs"]:
            rows.append((
                name, f"{p['one']} - {p['other']}", str(p["votes"]), _interval(p["agreement"]), str(p["votes_decided"]),
                _interval(p["agreement_decided"]), _interval(p["agreement_half"]), _interval(p["kappa"], False),
            ))  # fmt: skip
    lines += ["", *_columns(rows), ""]
    lines += [
        f"{name}: Krippendorff's alpha of all votes: nominal {_interval(part['alpha_nominal'], False)}, "
        f"ordinal {_interval(part['alpha_ordinal'], False)}"
        for name, part in report["parts"].items()
    ]
    everywhere = report["parts"].get("all") or next(iter(report["parts"].values()))
    if same := sum(p["same_judge"] for p in everywhere["pairs"]):
        lines.append(f"left out: {same} pairs of votes in which one judge meets itself")
    lines.append(
        "votes: pairs of votes on the same pair of answers; ties count: MT-Bench's setup S1; both decide: its S2"
    )
    return "\n".join(lines)


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
