"""What thalweg-predict shows: a table for people, CSV for programs."""

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from serving.client.messages import Answer, Model, joined

Piece = tuple[list[str], Answer]  # a name for each row of the answer
Show = Callable[[Iterable[Piece]], None]


def table(model: Model, top: int, console: Console) -> Show:
    """Prints one table of all rows."""

    def show(pieces: Iterable[Piece]) -> None:
        gathered = list(pieces)
        names = [name for names, _ in gathered for name in names]
        console.print(_table(names, joined(answer for _, answer in gathered), model, top))

    return show


def csv_file(file: IO[str], model: Model, top: int) -> Show:
    """Writes a line a row, at once: its name, entropy, mutual information, then the likeliest classes."""
    writer = csv.writer(file, lineterminator="\n")
    top = min(top, len(model.class_labels))
    ranks = [name for i in range(1, top + 1) for name in (f"class_{i}", f"prob_{i}")]
    writer.writerow(["row", "policy", "members_run", "entropy", "mutual_information", *ranks])
    file.flush()

    def show(pieces: Iterable[Piece]) -> None:
        for names, answer in pieces:
            for name, row in zip(names, _rows(answer, model, top), strict=True):
                numbers = [f"{nats:.6g}" for nats in row.uncertainty] or ["", ""]
                classes = [
                    cell for label, prob in row.classes for cell in (label, "" if prob is None else f"{prob:.6g}")
                ]
                writer.writerow([name, answer.policy, answer.members_run, *numbers, *classes])
            file.flush()

    return show


def name_rows(path: Path, rows: int) -> list[str]:
    """A picture is its name; the rows of an array are numbered."""
    return [f"{path.name}[{i}]" for i in range(rows)] if path.suffix == ".npy" else [path.name]


@dataclass(frozen=True)
class _Row:
    classes: list[tuple[str, float | None]]  # the likeliest first, with their probabilities
    uncertainty: list[float]  # entropy and mutual information


def _rows(answer: Answer, model: Model, top: int) -> Iterator[_Row]:
    if "probs" not in answer.outputs:  # a server with --labels-only
        yield from (_Row([(label, None)], []) for label in answer.labels)
        return
    for probs, *uncertainty in zip(answer.probs, answer.entropy, answer.mutual_information, strict=True):
        best = np.argsort(-probs, kind="stable")[:top].tolist()
        yield _Row([(model.class_labels[index], float(probs[index])) for index in best], uncertainty)


def _table(names: list[str], answer: Answer, model: Model, top: int) -> Table:
    # Names and labels come from elsewhere: what looks like markup in them is text.
    table = Table(
        title=f"{escape(model.name)}: policy {answer.policy}, members run {answer.members_run}", title_justify="left"
    )
    table.add_column("row")
    table.add_column("classes")
    table.add_column("entropy", justify="right")
    table.add_column("mutual information", justify="right")
    for name, row in zip(names, _rows(answer, model, top), strict=True):
        classes = "  ".join(label if prob is None else f"{label} {prob:.3f}" for label, prob in row.classes)
        table.add_row(escape(name), escape(classes), *(f"{nats:.3f}" for nats in row.uncertainty))
    return table
