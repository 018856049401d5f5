"""Records of the metrics: what tables, reports and model cards say of each. The files that compute metrics register them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A metric as it is presented.

    Attributes:
        name: its key in results, without `eval_` or `test_`.
        label: short name, for the heading of a column.
        title: name in full, for the heading of a row. Default: the label.
        higher_is_better: `None` for a metric that describes a model and has no better end.
        formula: how it is computed, in one line.
        meaning: what it tells, for readers of a model card who do not know it. Default: the formula.
        paper: where it comes from; empty for what needs no source.
        rank: its place among the columns of a comparison, from left to right. Without one it is only in the table of all
            metrics. The first one that a task reports chooses between settings, if it has a better end.
        aliases: other keys under which results hold it.
    """

    name: str
    label: str
    title: str = ""
    higher_is_better: bool | None = None
    formula: str = ""
    paper: str = ""
    rank: int | None = None
    aliases: tuple[str, ...] = ()
    meaning: str = ""

    @property
    def full_name(self) -> str:
        return self.title or self.label

    @property
    def heading(self) -> str:
        """The label, with an arrow to the better end."""
        return self._with_arrow(self.label)

    @property
    def full_heading(self) -> str:
        """The name in full, with an arrow to the better end."""
        return self._with_arrow(self.full_name)

    def _with_arrow(self, name: str) -> str:
        if self.higher_is_better is None:
            return name
        return f"{name} {'↑' if self.higher_is_better else '↓'}"


METRICS: dict[str, Metric] = {}  # by name
_BY_KEY: dict[str, Metric] = {}  # by name and by alias


def register_metrics(*metrics: Metric) -> None:
    """Make metrics known to tables, reports and cards.

    Raises:
        ValueError: a name or alias that another metric has.
    """
    for metric in metrics:
        for key in (metric.name, *metric.aliases):
            if _BY_KEY.get(key, metric) != metric:
                raise ValueError(f"metric {metric.name!r}: the key {key!r} belongs to {_BY_KEY[key]}; choose another name")
            _BY_KEY[key] = metric
        METRICS[metric.name] = metric


def get_metric(key: str) -> Metric:
    """The record of a metric, by its name or an alias. The label of a metric without a record is its key in words."""
    return _BY_KEY.get(key) or Metric(key, in_words(key))


def in_words(key: str) -> str:
    """A key of results as it is read: `top5_ece` is "top5 ECE". Words are spelled as in the labels of the metrics."""
    spelled = {word.lower(): word for metric in METRICS.values() for word in metric.label.split()}
    return " ".join(spelled.get(word, word) for word in key.split("_"))


def ranked(keys: Iterable[str]) -> list[str]:
    """Those of some keys that are columns of a comparison, in order."""
    ranks = {key: rank for key in keys if (rank := get_metric(key).rank) is not None}
    return sorted(ranks, key=lambda key: (ranks[key], key))
