"""The first line of a comparison: whether MaxSup differs from label smoothing on this data, and what it changed.

Where training predicts a row right, the two penalties are equal. So MaxSup can differ from label smoothing of the same alpha
only on the rows that training gets wrong, and the line begins with their share.

The rule, in this order: MaxSup *lowers* (or *raises*) its confidence where wrong if the 95 % interval of the difference
over seeds leaves out 0. The two are *the same loss* if they differed on at most `FEW` of all rows that were trained, or, as
far as this metric goes, if the interval lies within ±`SMALL`. Otherwise it is *undecided*. One metric of one pair is judged,
so nothing is corrected for several tests. Tasks without that metric are judged by the one that settings are chosen by,
without the ±`SMALL`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from maxsup_hf.comparison.statistics import Difference, differences
from maxsup_hf.losses import get_spec
from maxsup_hf.losses._labels import loss_label
from maxsup_hf.metrics import get_metric
from maxsup_hf.output.tables import minus

PAIR = ("maxsup", "label_smoothing")
JUDGED = "confidence_when_wrong"
ASKED = "Will MaxSup help?"
FEW = 0.01  # of the rows
SMALL = 0.01  # of confidence
FEWEST = 3  # seeds
SPLITS = {"test": "test data", "eval": "validation data"}
UNITS = {
    "language-modeling": "tokens", "sft": "tokens", "sequence-to-sequence": "tokens", "token-classification": "tokens",
    "semantic-segmentation": "pixels", "question-answering": "start and end positions",
}  # fmt: skip


class Shares(NamedTuple):
    """Share of the training rows that were predicted wrong when they were trained.

    Attributes:
        early, end: in the first and in the last tenth of the steps.
        overall: in all of them.
    """

    early: float
    end: float
    overall: float


def verdict(found: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict of a comparison.

    Args:
        found: the content of `comparison.json`.

    Returns:
        `line`; in `pairs`, for each pair that it speaks of, `first`, `second`, `metric`, the `Difference` first − second,
        and `says`: `"lowers"`, `"raises"`, `"same"` or `"undecided"`; in `wrong_rows`, the `Shares` of these losses, `None`
        if they were not recorded.
    """
    metrics = found.get("tables", {}).get("shared", {})
    metric = JUDGED if JUDGED in metrics else found.get("selected_by", "")
    values = metrics[metric]["values"] if metric in metrics else {}
    pairs = _pairs([loss for loss in found["losses"] if loss in values])
    judged = [_judge(found, metric, values, pair) for pair in pairs]
    losses = dict.fromkeys(loss for pair in pairs for loss in pair)
    shares = _shares(found, list(losses))
    if pairs == [PAIR]:
        line = _line_of_pair(found, judged[0], shares)
    elif pairs:
        line = _line_of_others(found, judged, shares)
    elif len(found["losses"]) > 1:
        line = "Nothing can be said yet: no two losses have finished runs."
    else:
        line = "Only one loss was trained, so nothing can be compared."
    return {"line": line, "pairs": judged, "wrong_rows": shares and shares._asdict()}


def _pairs(losses: Sequence[str]) -> list[tuple[str, str]]:
    """MaxSup − label smoothing; if one of them is missing, the other one (or else the first loss) − each of the rest."""
    if set(PAIR) <= set(losses):
        return [PAIR]
    centre = next((loss for loss in (*PAIR, *losses) if loss in losses), None)
    return [(centre, loss) for loss in losses if centre and loss != centre]


def _judge(
    found: Mapping[str, Any], metric: str, values: Mapping[str, Mapping[int, Any]], pair: tuple[str, str]
) -> dict[str, Any]:
    by_loss = {loss: {seed: math.nan if x is None else float(x) for seed, x in values[loss].items()} for loss in pair}
    measured = differences(by_loss, found["test"])[pair]
    says = "undecided"
    varies = measured.high - measured.low > 1e-9 * abs(measured.mean)  # otherwise there is no spread to judge by
    if measured.n >= FEWEST and varies and not measured.low <= 0 <= measured.high:
        says = "lowers" if measured.mean < 0 else "raises"
    elif pair == PAIR and _same(found, metric, measured):
        says = "same"
    return {"first": pair[0], "second": pair[1], "metric": metric, "difference": measured._asdict(), "says": says}


def _same(found: Mapping[str, Any], metric: str, measured: Difference) -> bool:
    if _hardly_differ(found, _shares(found, PAIR)):
        return True
    return metric == JUDGED and measured.n >= FEWEST and -SMALL <= measured.low <= measured.high <= SMALL


def _hardly_differ(found: Mapping[str, Any], shares: Shares | None) -> bool:
    return shares is not None and shares.overall <= FEW and _differ_only_where_wrong(found)


def _differ_only_where_wrong(found: Mapping[str, Any]) -> bool:
    """Whether MaxSup and label smoothing were trained so that only wrong rows tell them apart."""
    if any(flag.partition("=")[0] == "--class_weights" for flag in found["flags"]):
        return False  # the weighted smoothing of label smoothing is another one than the penalty of MaxSup
    first, second = (get_spec(loss).resolve(found["losses"][loss]) for loss in PAIR)
    return second.pop("over") == "K" and first == second


def _shares(found: Mapping[str, Any], losses: Sequence[str]) -> Shares | None:
    counts = [found.get("training_rows", {}).get(loss) for loss in losses]
    if not counts or None in counts:
        return None
    wrong, rows = (
        [sum(column) for column in zip(*(count[key] for count in counts), strict=True)] for key in ("wrong", "rows")
    )
    shares = [part / whole for part, whole in zip(wrong, rows, strict=True) if whole]
    return Shares(shares[0], shares[-1], sum(wrong) / sum(rows)) if shares else None


# ---- sentences ----


def _line_of_pair(found: Mapping[str, Any], judged: Mapping[str, Any], shares: Shares | None) -> str:
    units = UNITS.get(found["task"], "rows")
    if not _differ_only_where_wrong(found):
        where = f"With the parameters given here, the two losses differ on all training {units}."
    elif shares is None:
        where = f"The two losses differ on the training {units} that training gets wrong; how many was not recorded."
    else:
        where = f"The two losses differ on the training {units} that training gets wrong: {_early_and_end(shares)}."
    label, data = get_metric(judged["metric"]).full_name, _data(found, [judged])
    mean, low, high = (judged["difference"][key] for key in ("mean", "low", "high"))
    if judged["says"] in ("lowers", "raises"):
        low, high = sorted((abs(low), abs(high)))
        by = f"{abs(mean):.4f} [{low:.4f}, {high:.4f}]"
        return f"{ASKED} It {judged['says']} {label} by {by}, compared with label smoothing ({data}). {where}"
    line = f"{ASKED} {_conclusion(found, judged, shares)} {where}"
    if not judged["difference"]["n"]:
        return line
    return f"{line} {_capitalized(label)}, MaxSup − label smoothing: {_with_interval(judged)} ({data})."


def _conclusion(found: Mapping[str, Any], judged: Mapping[str, Any], shares: Shares | None) -> str:
    label, seeds = get_metric(judged["metric"]).full_name, judged["difference"]["n"]
    if judged["says"] == "same" and _hardly_differ(found, shares):
        return "MaxSup and label smoothing are the same loss for you."
    if judged["says"] == "same":
        return f"For {label}, MaxSup and label smoothing are the same loss for you: they differ by less than {SMALL:g}."
    trained = len(found["seeds"])
    if not seeds:
        of_both = "wrong predictions" if judged["metric"] == JUDGED else "results"
        return f"Undecided: no seed has {of_both} of both losses, so {label} cannot be compared."
    if seeds < FEWEST:
        few = "1 seed is" if seeds == 1 else f"{seeds} seeds are"
        if seeds < trained:
            few = f"only {seeds} of {trained} seeds can be compared, which {'is' if seeds == 1 else 'are'}"
        return f"Undecided: {few} too few to tell whether MaxSup changes {label}."
    return f"Undecided: these runs do not tell whether MaxSup changes {label}."


def _line_of_others(found: Mapping[str, Any], judged: Sequence[Mapping[str, Any]], shares: Shares | None) -> str:
    line = "This comparison has no pair of MaxSup and label smoothing. "
    if shares is not None:
        line += f"Training {UNITS.get(found['task'], 'rows')} that training gets wrong: {_early_and_end(shares)}. "
    pairs = [f"{loss_label(of['first'])} − {loss_label(of['second'])} {_with_interval(of)}" for of in judged]
    label = _capitalized(get_metric(judged[0]["metric"]).full_name)
    return f"{line}{label} ({_data(found, judged)}): {'; '.join(pairs)}."


def _early_and_end(shares: Shares) -> str:
    early, end = ("less than 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %" for share in shares[:2])
    return f"{early} early (first tenth of the steps), {end} at the end (last tenth)"


def _data(found: Mapping[str, Any], judged: Sequence[Mapping[str, Any]]) -> str:
    seeds = max(of["difference"]["n"] for of in judged)
    over = "1 seed" if seeds == 1 else f"mean and 95 % interval over {seeds} seeds"
    return f"{SPLITS[found['split']]}, {over}"


def _capitalized(label: str) -> str:
    return label[0].upper() + label[1:] if label.islower() else label


def _with_interval(judged: Mapping[str, Any]) -> str:
    n, mean, low, high = (judged["difference"][key] for key in ("n", "mean", "low", "high"))
    if not n:
        return "not measured"
    return signed(mean) if n == 1 else f"{signed(mean)} [{signed(low)}, {signed(high)}]"


def signed(value: float, decimals: int = 4) -> str:
    return minus(f"{value:+.{decimals}f}")
