"""What thalweg-predict shows: a table for people, CSV for programs."""

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from serving.messages import Answer, Model, joined

Piece = tuple[list[str], Answer]  # a label for each row of the answer
Show = Callable[[Iterable[Piece]], None]


def table(model: Model, top: int, console: Console) -> Show:
    """Prints one table of all rows."""

    def show(pieces: Iterable[Piece]) -> None:
        gathered = list(pieces)
        labels = [label for labels, _ in gathered for label in labels]
        console.print(_table(labels, joined(answer for _, answer in gathered), model, top))

    return show


def csv_file(file: IO[str], model: Model, top: int) -> Show:
    """Writes a line a row, at once: label, entropy, mutual information, then the likeliest classes."""
    writer = csv.writer(file, lineterminator="\n")
    top = min(top, len(model.class_labels))
    ranks = [name for i in range(1, top + 1) for name in (f"class_{i}", f"prob_{i}")]
    writer.writerow(["row", "policy", "members_run", "entropy", "mutual_information", *ranks])
    file.flush()

    def show(pieces: Iterable[Piece]) -> None:
        for labels, answer in pieces:
            for label, probs, *uncertainty in zip(
                labels, answer.probs, answer.entropy, answer.mutual_information, strict=True
            ):
                best = np.argsort(-probs, kind="stable")[:top]
                classes = [cell for i in best for cell in (model.class_labels[i], f"{probs[i]:.6g}")]
                writer.writerow(
                    [label, answer.policy, answer.members_run, *(f"{nats:.6g}" for nats in uncertainty), *classes]
                )
            file.flush()

    return show


def label_rows(path: Path, rows: int) -> list[str]:
    """A picture is its name; the rows of an array are numbered."""
    return [f"{path.name}[{i}]" for i in range(rows)] if path.suffix == ".npy" else [path.name]


def _table(labels: list[str], answer: Answer, model: Model, top: int) -> Table:
    # Names and labels come from elsewhere: what looks like markup in them is text.
    table = Table(
        title=f"{escape(model.name)}: policy {answer.policy}, members run {answer.members_run}", title_justify="left"
    )
    table.add_column("row")
    table.add_column("classes")
    table.add_column("entropy", justify="right")
    table.add_column("mutual information", justify="right")
    for label, probs, entropy, information in zip(
        labels, answer.probs, answer.entropy, answer.mutual_information, strict=True
    ):
        best = np.argsort(-probs, kind="stable")[:top]
        classes = "  ".join(f"{model.class_labels[index]} {probs[index]:.3f}" for index in best)
        table.add_row(escape(label), escape(classes), f"{entropy:.3f}", f"{information:.3f}")
    return table
