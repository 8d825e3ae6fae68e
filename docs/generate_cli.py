"""Write docs/cli.md: the `--help` of every command, and what its `--json` prints.

Run it with `make docs`. tests/test_docs.py checks that the file is current, and tests/test_cli.py
that commands print the keys that are described here.
"""

from pathlib import Path

import click

from morlaif_hub.cli import cli

PATH = Path(__file__).with_name("cli.md")
WIDTH = 96

INTRODUCTION = """\
# The command line

*Written by `make docs`; change the commands' help texts instead.*

Every command takes `--workspace FOLDER` (or `MORLAIF_WORKSPACE`; by default `./morlaif`) and
`--json`. Results go to stdout; progress and hints go to stderr: bars on a terminal, elsewhere a
line for each stage. The exit code is 0 when the work is done, 1 after an error that the one line
on stderr explains, 2 for wrong usage, and 130 after Ctrl-C. Work that was finished is kept.

The order is that of a project:
```
{chain}
```
"""

CHAIN = (
    "morlaif-hub sample-pairs",
    "morlaif-hub validate-judge likelihood: conciseness detail",
    "morlaif-hub collect-feedback conciseness detail --judge likelihood:",
    "morlaif-hub train-pm conciseness detail",
    "morlaif-hub fit-weights --labels Anthropic/hh-rlhf/helpful-base --limit 2000",
    "morlaif-hub steer --prompt 'How do I boil an egg?' --weights conciseness=1,detail=0",
    "morlaif-hub train-policy --weights conciseness=0.5,detail=0.5 --max-kl 0.2",
    "morlaif-hub push-base",
    "morlaif-hub push-feedback conciseness",
    "morlaif-hub push-pm conciseness",
    "morlaif-hub push-bank",
    "morlaif-hub verify USER/morlaif-pm-conciseness-smollm2",
    "morlaif-hub demo",
)

_OBJECTIVES = "what a high score of each objective means, in words"
_VALIDATION = "`fit`, `unproven`, `wrong way` or null (not validated), by objective"

_ESTIMATE = "as `value`, 95 % `interval` and `n`, the pairs that are no ties"

_PUSHED = {
    "repo_id": "the repository",
    "commit": "what was committed, or was there already",
    "tag": "its version, as `v1`; null for a pull request",
    "url": "where to look at it",
    "public": "whether everybody may read it",
    "new": "whether there was anything to commit",
    "checks": "what was measured on the copy that was downloaded again, as `verify` prints it",
    "collection": "the address of a bank's Collection, or null",
    "needs": "what others would like to have on the Hub too: `what`, `command` and `required`",
}
_PLANNED = {
    "dry_run": "true",
    "kind": "of artifact",
    "repo_id": "the repository",
    "exists": "whether it is on the Hub; null without a token",
    "public": "whether everybody could read it",
    "files": "each with `path`, `size` in bytes and `change` (`new`, `changed`, `same`, `removed`)",
    "needs": "what is not on the Hub yet: `what`, `command` and `required`",
    "card": "the rendered card",
    "refused": "why the push would be refused as things are, or null",
}

JSON = {
    "quickstart": {
        "seconds": "duration of each stage and in `total`, without the one-off conversion",
        "principles": "by name: `pairs`, `judge_position_bias` (P(shown first preferred) - 0.5), "
        "`judge_flip_rate`, `pm_accuracy` on held-out pairs with `pm_accuracy_interval`, "
        "`length_baseline` (accuracy of a rule that sees length alone) and `validation`",
        "letter_judge": "`position_bias` and `flip_rate` of the same model asked for a letter",
        "steering": "by principle: `random` and `chosen`, the share of a prompt's other responses "
        "that the judge finds worse, for any response and for the one that the preference model "
        "chose, with `difference_interval`; `words_random` and `words_chosen`",
        "policy": "as `train-policy` prints it",
        "details": "what the report in reports/quickstart.html shows beside; `findings` says in "
        "sentences what is there and what is not",
    },
    "principles": {
        "constitution": "the set's name",
        "principles": "each with `name`, `criterion`, `opposite`, `high_score` (what a high score "
        "means), `length`, the number of `probes` and `sha256`",
    },
    "principles NAME": {
        "name": "NAME",
        "criterion": "what is good, in a sentence",
        "opposite": "what is bad, in a sentence",
        "high_score": "what a high score means, in words",
        "length": "whether length is the subject: `none`, `shorter` or `longer` is better",
        "probes": "each with `prompt`, `better` and `worse`",
        "sha256": "hash of name, criterion and opposite",
    },
    "sample-pairs": {
        "prompts": "how many were answered",
        "prompts_without_a_pair": "how many got fewer than two different responses",
        "responses": "how many were sampled",
        "pairs": "how many were made",
        "finished": "share of the responses that ended by themselves",
        "path": "the file of pairs",
    },
    "validate-judge": {
        "judge": "its spec in full",
        "principles": "by name: `verdict`, `accuracy`, `interval`, `n`, `parts` (by which side is "
        "longer), `first_share` (null for a judge without order) and `length_correlation`",
        "choices": "by name, on pairs of --pairs between which people chose: `verdict`, "
        "`accuracy`, `interval` and `n`; empty without",
    },
    "inspect-feedback": {
        "principles": "by name: `judge`, `pairs` and `shown`, which has for `random`, `flipped` "
        "and `uncertain` how many there are, `found`, and some `verdicts`: the columns of a "
        "feedback data set without those for trainers, `split`, and `drawn`, the principle that "
        "the judge `single-objective:` drew for the pair, or null",
        "agreement": "for every two `principles`: the share of the pairs in both sets on which "
        "they prefer the same response, as `value`, 95 % `interval` and `n`; null where `n` is 0",
    },
    "collect-feedback": {
        "duplicates": "how many rows repeat a pair that was there before",
        "bad_rows": "how many rows cannot be read and are left out",
        "principles": "by name: `pairs`, `train_pairs`, `test_pairs`, `validated`, `validation`, "
        "`bias`, `calls`, `cost_usd`, `unanswered` (by reason, how many pairs got no verdict) and "
        "`path`",
    },
    "collect-feedback --dry-run": {
        "questions": "pairs times principles",
        "cached": "how many of them have an answer already",
        "to_ask": "how many would be asked",
        "calls": "the calls that this takes; two for each question where both orders are asked",
        "duplicates": "how many rows repeat a pair that was there before",
        "bad_rows": "how many rows cannot be read and are left out",
    },
    "train-pm": {
        "principles": "by name: `pairs` that it learnt from, `kept` (`trained`, or `start` if "
        "training made it worse), `evaluations`, `length_correlation`, `validation` and `path`",
    },
    "fit-weights": {
        "objectives": _OBJECTIVES,
        "validation": _VALIDATION,
        "labels": "`human` or, with --verdicts, `feedback`",
        "sources": "where the labelled pairs are from, each with `name`, `revision` and `sha256`",
        "pairs": "how many were fitted on, ties included",
        "prompts": "of how many prompts they are; intervals resample these",
        "left_out": "how many labelled pairs are of prompts that a preference model learnt from",
        "weights": "by objective: `weight` (absolute values sum to 1), its 95 % `interval`, and "
        "`vif`, the variance inflation factor",
        "scale": "times the weighted sum of score differences, A minus B, it is the log-odds of A",
        "l2": "the penalty that cross-validation chose",
        "accuracy": "share of the pairs that the fitted weights get right, on prompts that were "
        f"left out, {_ESTIMATE}",
        "equal_accuracy": "the same of equal weights",
        "gain": "the first minus the second, pair by pair, in the same form",
        "log_loss": "mean cross-entropy of the fitted weights on prompts that were left out, in "
        "nats; a coin has 0.693",
        "equal_log_loss": "the same of equal weights",
        "scalarizers": "each with its name in `scalarizer`; `accuracy` with fitted weights, "
        "`above_linear`, its difference to that of `linear`, and `equal_accuracy` in the form from "
        "above; or null, and the reason in `problem`",
        "scalarizer": "the one that the bank was to be written with",
        "warnings": "sentences about signs, collinear objectives, and weights that are of no use",
        "problem": "why that scalarizer does not take the weights, so that the bank was left as it "
        "was and the exit code is 1; null if it does",
        "path": "the bank; null if it was left as it was",
    },
    "score": {
        "objectives": _OBJECTIVES,
        "validation": _VALIDATION,
        "responses": "each with its `response` and its `scores` by objective",
    },
    "score --pairs": {
        "objectives": _OBJECTIVES,
        "validation": _VALIDATION,
        "output": "the folder of the parquet files and of `scores.json`",
        "count": "how many pairs were scored, now or before",
        "texts_cut": "how many texts of those scored now are longer than a preference model reads, "
        "and were cut on the left",
        "summary": "by objective: `mean_a` and `mean_b`, the mean scores of the responses A and B; "
        "`n`, the number of pairs with a known human choice; `agreement`, the share of them in "
        "which the higher score is that of the chosen response (a tie counts one half), with its "
        "95 % `interval` over prompts; both null where `n` is 0",
        "pairs": "each with `id`, `human_choice` (`a`, `b` or null) and the scores of "
        "`response_a` and `response_b` by objective. With more than 1,000 pairs this key is not "
        "there, and `pairs_only_in` has the files that they are in instead, as "
        "`FOLDER/scores-*.parquet`",
    },
    "steer": {
        "objectives": _OBJECTIVES,
        "validation": _VALIDATION,
        "method": "as given",
        "scalarizer": "what made one reward of the scores",
        "weights": "by objective, as they were used",
        "best": "the answer that was chosen",
        "candidates": "the best first, each with `text`, `finished`, `scores` and `reward`",
    },
    "train-sft": {
        "dialogues": "how many were learnt from",
        "held_out": "on how many others the loss was measured",
        "left_out": "how many could not be learnt from, by the reason",
        "tokens": "how many of the assistant's tokens, ends of turns among them, an epoch has",
        "template": "`own` or `plain`",
        "steps": "of training",
        "loss_before": "mean cross-entropy per token of the assistant's on the held-out dialogues "
        "before training, in nats",
        "loss_before_interval": "its 95 % interval, over dialogues",
        "loss_after": "the same after it",
        "loss_after_interval": "its 95 % interval",
        "change_interval": "95 % interval of the second minus the first",
        "path": "the policy",
    },
    "evaluate winrate": {
        "a": "the first policy, as given",
        "b": "the second",
        "judge": "its spec in full",
        "taught": "the objectives whose preference models learnt from this judge's verdicts",
        "prompts": "how many both answered",
        "principles": "by name: `win`, `tie` and `loss`, shares of the pairs of answers that A "
        "wins, that are ties (the orders disagree, or neither is better) and that B wins, and "
        "`score`, wins and half of the ties, each with `value` and 95 % `interval` over prompts; "
        "`n`, the pairs; `flipped`, the share in which the orders disagree",
        "overall": "the same over all principles; null where nothing was judged",
        "objectives": "by name, the mean calibrated scores `a` and `b`, and their `difference` "
        "(`value`, `interval`)",
        "words": "mean lengths of the answers, in the same form",
        "finished": "shares of the answers that ended by themselves, in the same form",
        "kl": "of `a` and `b` to the base that each was trained on, mean per token, in nats; null "
        "for a model that is no policy",
        "unanswered": "how many questions the judge gave no answer to, by the reason",
        "examples": "a few, each with `prompt` and the answers `a` and `b`",
        "path": "the report",
    },
    "train-policy": {
        "reward_before": "mean on held-out prompts before training",
        "reward_after": "the same of the weights that were kept",
        "delta_interval": "95 % interval of their difference, over prompts",
        "others": "change of every objective without weight; of all, where all have weight",
        "kl": "mean per token to the policy before training, in nats",
        "words_before": "mean length of the answers before training, in words",
        "words_after": "the same after it",
        "steps": "of which the weights were kept",
        "stopped_by": "`max_steps` or `max_kl`",
        "finished_before": "share of the answers that ended by themselves, before training",
        "finished_after": "the same after it",
        "distinct_before": "share of different answers before training",
        "distinct_after": "the same after it",
        "change_intervals": "95 % interval of the change of every objective, over prompts",
        "judge": "what --judge said, with `spec`, `principle`, `preferred` (the share of answers "
        "that it prefers to those before training) and its `interval`; null without one",
        "warnings": "what fell while the reward rose, in sentences",
    },
    "push-base": _PUSHED,
    "push-feedback": _PUSHED,
    "push-pm": _PUSHED,
    "push-pm --dry-run": _PLANNED,
    "push-bank": _PUSHED,
    "push-policy": _PUSHED,
    "verify": {
        "source": "the repository at its commit, or the folder",
        "kind": "of artifact",
        "holds": "whether no claim fails",
        "checks": "each with `claim`, `stated`, `measured` and `verdict` (`holds`, `fails`, "
        "`not checked`)",
    },
    "search": {
        "kind": "as given",
        "found": "the best measured first, each with `repo_id`, `commit`, `kind`, `private`, "
        "`downloads`, `last_modified`, `claims` and `problem` (why there are no claims that can be "
        "used, or null); the claims are null or have `principles`, `high_scores` and `verdicts` by "
        "principle, `accuracy` (`value`, `interval`, `n`, `length_baseline` and more), "
        "`validation`, `base`, `judge` (its spec, or `people`), `pairs`, `license` and "
        "`published_as`",
        "more": "whether there are repositories beyond the limit that were not looked at",
    },
    "demo": {"bank": "what was served", "model": "what answered; null for the embedded model"},
    "plugins": {
        "plugins": "each with `kind`, `name`, `package` and `aliases`; with `--check`, `source` "
        "and `error` as well",
    },
}
"""What `--json` prints: the meaning of each key, by command."""


def render() -> str:
    """Return the text of docs/cli.md."""
    root = click.Context(
        cli, info_name="morlaif-hub", terminal_width=WIDTH, help_option_names=["-h", "--help"]
    )
    parts = [INTRODUCTION.format(chain="\n".join(CHAIN)), _help(root)]
    for name in cli.list_commands(root):
        command = cli.get_command(root, name) or cli
        context = click.Context(command, info_name=name, parent=root, terminal_width=WIDTH)
        parts += [f"## {name}\n", _help(context)]
        for sub in command.list_commands(context) if isinstance(command, click.Group) else []:
            inner = command.get_command(context, sub) or command
            parts.append(
                _help(click.Context(inner, info_name=sub, parent=context, terminal_width=WIDTH))
            )
        parts += _keys(name)
    return "\n".join(parts)


def _help(context: click.Context) -> str:
    return f"```\n{context.get_help()}\n```\n"


def _keys(name: str) -> list[str]:
    described = [command for command in JSON if command.split()[0] == name]
    return [
        f"`{command} --json` prints an object with\n\n"
        + "\n".join(f"* `{key}`: {meaning};" for key, meaning in JSON[command].items())[:-1]
        + ".\n"
        for command in described
    ]


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
