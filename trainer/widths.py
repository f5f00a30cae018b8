"""Curves of networks of several sizes: Garipov et al. 2018, section 4.2 and Figure 3."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer import atomic_file, evaluation_figures, finished_run, paths, pipeline
from trainer.config import Config, override
from trainer.curve import Curve
from trainer.errors import InvalidConfig
from trainer.evaluation_results import Width
from trainer.progress import Progress


def study(config: Config, vary: str, points: int, out: Path, progress: Progress) -> list[Width]:
    """Trains a curve for each value of a setting, each run in a folder of its own; writes widths.json and widths.png.

    vary: "FIELD=[VALUE, …]", JSON. A run that is finished, with equal settings, is not run again. Raises UserError.
    """
    name, values = _parse(vary)
    configs = [override(config, [f"{name}={json.dumps(value)}", 'methods=["curve"]']) for value in values]
    folders = [out / _folder(name, value) for value in values]
    if len(set(folders)) < len(folders):
        raise InvalidConfig(f"--vary '{vary}' has a value twice")
    for each, folder in zip(configs, folders, strict=True):
        if not finished_run.is_finished(each, folder):
            progress.say(f"run={folder}")
            pipeline.run(each, folder, progress)
    found = [_measure(value, folder, points, progress) for value, folder in zip(values, folders, strict=True)]
    found.sort(key=lambda width: width.parameters)
    atomic_file.write_bytes(out / "widths.json", json.dumps([asdict(width) for width in found], indent=1).encode())
    atomic_file.write_bytes(out / "widths.png", evaluation_figures.widths(found))
    return found


def _parse(vary: str) -> tuple[str, Sequence[Any]]:
    name, _, text = vary.partition("=")
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, list) or len(values) < 2:
        raise InvalidConfig(f"--vary is '{vary}'; expected FIELD=[VALUE, VALUE, ...], such as sgd.batch_size=[25, 50]")
    return name, values


def _folder(name: str, value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", f"{name.rpartition('.')[2]}-{json.dumps(value)}").strip("-")


def _measure(value: Any, folder: Path, points: int, progress: Progress) -> Width:
    run = finished_run.load(folder)
    curve = run.curve()
    path = paths.along("curve", curve, points, run.answers(), run.splits, run.config.sgd.weight_decay, progress)
    segment = Curve("polygonal-chain", [curve.control_points[0], curve.control_points[-1]])
    return Width(
        value=value,
        parameters=run.network.size,
        endpoint_loss=max(path.train_loss[0], path.train_loss[-1]),
        endpoint_test_error=max(path.test_error[0], path.test_error[-1]),
        loss=path.summary("train_loss"),
        train_error=path.summary("train_error"),
        test_error=path.summary("test_error"),
        length_ratio=curve.length() / segment.length(),
    )
