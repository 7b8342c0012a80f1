"""Accuracy and AUC from counts of records by label and score: what an evaluation sends instead of scores or rows.

One record falls in one cell, so adding or removing a record moves one count by one (L2 sensitivity 1). Where data
subjects are protected, a private count gives each subject a weight of 1 over all its records, and what is read off it
are averages over subjects. Exact counts are of records, and sent only where a policy says so; otherwise noisy ones, and
both are read by the same functions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

EXACT_BINS = 200
PRIVATE_BINS = 20
THOUSANDTHS = 1000

Rows = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class ScoreMetrics:
    """How well scores tell label 1 from label 0.

    Attributes:
        accuracy: Share of records whose score falls on their label's side of 0.5, in [0, 1]; None where nothing counts.
        auc: Area under the ROC curve, in [0, 1]; None where one label is missing. Records in one cell count half.
        records: Total of the counts. Secret where exact; an estimate where noisy.
    """

    accuracy: float | None
    auc: float | None
    records: float


def metrics_of(rows: Rows) -> ScoreMetrics:
    """Read metrics off a histogram.

    Args:
        rows: Counts in thousandths for label 0 and for label 1, by score in cells of equal width over [0, 1]; an even
            number of cells. Noise may have made counts negative; they are read as zero.

    Returns:
        The metrics. AUC is the Mann-Whitney statistic with ties at one half (Hanley and McNeil 1982), exact up to the
        width of a cell.

    Raises:
        ValueError: The rows differ in length, or their length is odd or zero.
    """
    negatives, positives = ([max(0, count) / THOUSANDTHS for count in row] for row in rows)
    if len(negatives) != len(positives) or len(negatives) % 2 or not negatives:
        raise ValueError("a histogram has two rows of the same even length")
    middle = len(negatives) // 2
    total_negative, total_positive = sum(negatives), sum(positives)
    total = total_negative + total_positive
    right = sum(negatives[:middle]) + sum(positives[middle:])
    below = ranked = 0.0
    for negative, positive in zip(negatives, positives, strict=True):
        ranked += positive * (below + negative / 2)
        below += negative
    pairs = total_negative * total_positive
    return ScoreMetrics(
        accuracy=min(1.0, right / total) if total > 0 else None,
        auc=min(1.0, ranked / pairs) if pairs > 0 else None,
        records=total,
    )


def pooled(histograms: Iterable[Rows]) -> Rows:
    """Add histograms up, as if all records lay in one place. Coarser ones are not refined: bring all to the coarsest.

    Raises:
        ValueError: A histogram's cells do not fold into the coarsest one's.
    """
    gathered = list(histograms)
    width = min((len(rows[0]) for rows in gathered), default=2)
    total: tuple[list[int], list[int]] = ([0] * width, [0] * width)
    for rows in gathered:
        for label, row in enumerate(rows):
            if len(row) % width:
                raise ValueError(f"{len(row)} cells do not fold into {width}")
            size = len(row) // width
            for cell in range(width):
                total[label][cell] += sum(row[cell * size : (cell + 1) * size])
    return total
