"""The first line of the report: on how many rows MaxSup and label smoothing differ for a model, and what follows.

Label smoothing adds α(z_label − mean z) to the cross-entropy, MaxSup α(max z − mean z). Where a row is predicted right, the
label's logit is the greatest, and the two are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from maxsup_hf.analysis.intervals import binomial_interval
from maxsup_hf.analysis.measure import Measured

SAME, DIFFERENT = 0.01, 0.05  # shares of wrong rows: below the first there is little to gain, above the second there may be


class WrongRows(NamedTuple):
    """The rows that a model gets wrong.

    Attributes:
        wrong: their number.
        rows: of the data.
        share: of the rows.
        low, high: 95 % interval of the share.
        gap: mean over the wrong rows of the top logit minus the label's; NaN if there are none.
    """

    wrong: int
    rows: int
    share: float
    low: float
    high: float
    gap: float


def wrong_rows(measured: Measured) -> WrongRows:
    wrong, rows = int((~measured.right).sum()), len(measured.right)
    gap = float(measured.gap[~measured.right].mean()) if wrong else float("nan")
    return WrongRows(wrong, rows, wrong / rows, *binomial_interval(wrong, rows), gap)


def verdict(found: Sequence[WrongRows], names: Sequence[str], split: str | None = None) -> list[str]:
    """Whether MaxSup may change anything for these models, in plain sentences.

    Args:
        found: of each model, on the same rows.
        names: of the models.
        split: of the data that the rows are, if it is known.
    """
    kind = "rows" if split is None else f"rows of the {split} split"
    shares = [f"{100 * each.share:.1f} % ({100 * each.low:.1f} to {100 * each.high:.1f} %)" for each in found]
    if len(found) > 1:
        shares = [f"{name} {share}" for name, share in zip(names, shares, strict=True)]
    line = (
        "Will MaxSup help? It differs from label smoothing only on the rows that a model gets wrong: "
        f"{', '.join(shares)} of the {found[0].rows:,} {kind}. {_conclusion(found)}"
    )
    gaps = [f"{each.gap:.3g}" + (f" ({name})" if len(found) > 1 else "") for each, name in zip(found, names, strict=True)
            if each.wrong]  # fmt: skip
    more = "The intervals are 95 % intervals (Wilson)."
    if gaps:
        more += (
            f" On the wrong rows MaxSup's penalty is greater than that of label smoothing by α times {', '.join(gaps)}: the "
            "mean distance from the label's logit to the top one."
        )
    if split not in (None, "train"):
        more += " Only training rows count in the end, and a model usually gets fewer of them wrong: see --split train."
    return [line, more]


def _conclusion(found: Sequence[WrongRows]) -> str:
    if all(each.high < SAME for each in found):
        return "On so few rows the choice between the two hardly matters: for you they are practically the same loss."
    if all(each.low > DIFFERENT for each in found):
        return "The two are different losses for you; maxsup-hf compare measures which is better."
    return "Whether that makes a difference is undecided; maxsup-hf compare measures it."
