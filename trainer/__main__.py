"""The command line: `thalweg-train run|evaluate|attack|shift|widths|sanitize|export|validate|sign|keygen|recipes`."""

import argparse
import json
import math
import os
import signal
import sys
from pathlib import Path

if os.getpid() == 1:
    # Process 1 of a container ignores a signal that it does not handle. A killed run goes on with the same command.
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))

from rich.console import Console
from rich.table import Table

from protos.ensemble_pb2 import NEXT_TOKEN
from protos.stored_ensemble import StoredEnsemble
from protos.validate import InvalidEnsemble, validate
from trainer import chosen_config, evaluation, evaluation_report, pipeline, ranks, signing, standalone, state_dicts
from trainer.attack import command as attack
from trainer.config import METHODS, Config
from trainer.errors import UserError
from trainer.evaluation_results import Evaluation, Options
from trainer.pipeline import Outcome
from trainer.progress import Progress
from trainer.recipes import RECIPES
from trainer.sanitize import command as sanitize
from trainer.scalars import RecordedProgress
from trainer.shift import command as shift
from trainer.widths import study

OUT = Console(highlight=False, markup=False)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0; 2 for what the user can mend, told in one line on stderr."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except (UserError, InvalidEnsemble, OSError) as error:
        print(f"thalweg-train: error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="thalweg-train", description="Train, calibrate and export ensembles.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="train a recipe, export its ensembles, write the report")
    chosen_config.add_arguments(run)
    run.add_argument("--out", type=Path, help="folder for the results (default: runs/RECIPE)")
    run.add_argument("--from", action="append", metavar="FILE[@EPOCH]", dest="start",
                     help="a trained network to start from, instead of training one: a state_dict of torch or "
                          "safetensors, and the epochs that went into it; may be repeated")  # fmt: skip
    run.add_argument(
        "--only", choices=[name for name in METHODS if name not in ("swa", "swag")], help="one method alone"
    )
    run.add_argument("--restart", action="store_true", help="discard the checkpoints of a run that was interrupted")
    run.add_argument("--tensorboard", type=Path, metavar="DIR", help="write each stage's loss by epoch there")
    run.set_defaults(command=_run)

    measure = commands.add_parser(
        "evaluate", help="measure a finished run as the paper does: curves, planes, ensembles"
    )
    measure.add_argument("run", type=Path, help="the folder of a finished run")
    measure.add_argument("--points", type=int, default=Options.points, help="of a path (default: %(default)s)")
    measure.add_argument("--members", type=int, nargs="+", default=Options.members, metavar="M",
                         help="sizes of ensembles of points of the curve (default: 2 3 5 11 25 50)")  # fmt: skip
    measure.add_argument("--plane", type=int, default=Options.plane, metavar="N",
                         help="points along each side of a plane; 0: no planes (default: %(default)s)")  # fmt: skip
    measure.add_argument("--plane-rows", type=int, default=Options.plane_rows, metavar="N",
                         help="rows at each point of a plane, at most; 0: all (default: %(default)s)")  # fmt: skip
    measure.add_argument("--ood", default="", metavar="SOURCE",
                         help="rows of another distribution, such as torchvision:FashionMNIST")  # fmt: skip
    measure.set_defaults(command=_evaluate)

    attack.add_parser(commands)
    shift.add_parser(commands)

    widths = commands.add_parser("widths", help="find curves for networks of several sizes (paper, Figure 3)")
    chosen_config.add_arguments(widths)
    widths.add_argument("--vary", required=True, metavar="FIELD=[VALUE,...]",
                        help="what differs, such as 'model.options.hidden=[[8,8],[32,32]]'")  # fmt: skip
    widths.add_argument("--out", type=Path, help="folder for the runs (default: runs/RECIPE-widths)")
    widths.add_argument("--points", type=int, default=Options.points, help="of the curve (default: %(default)s)")
    widths.set_defaults(command=_widths)

    sanitize.add_parser(commands)

    export = commands.add_parser("export", help="write an ensemble for other runtimes")
    export.add_argument("directory", type=Path, help="an ensemble directory")
    form = export.add_mutually_exclusive_group(required=True)
    form.add_argument("--standalone", type=Path, metavar="OUT",
                      help="new folder for plain ONNX files: one a member, and the whole ensemble")  # fmt: skip
    form.add_argument("--state-dicts", type=Path, metavar="OUT",
                      help="new folder for PyTorch's state_dicts: one safetensors file a member")  # fmt: skip
    export.set_defaults(command=_export)

    check = commands.add_parser("validate", help="check an ensemble directory and describe it")
    check.add_argument("directory", type=Path)
    check.add_argument(
        "--require-signature", type=Path, metavar="KEY", help="refuse what no key of this PEM file signed"
    )
    check.set_defaults(command=_validate)

    sign = commands.add_parser("sign", help="sign an ensemble directory: writes its manifest.sig")
    sign.add_argument("directory", type=Path)
    sign.add_argument("--key", type=Path, required=True, metavar="PEM", help="private key, as of `keygen`")
    sign.set_defaults(command=lambda options: signing.sign(options.directory, options.key))

    keygen = commands.add_parser("keygen", help="make a pair of keys: FILE, to be kept secret, and FILE.pub")
    keygen.add_argument("file", type=Path)
    keygen.set_defaults(command=lambda options: signing.generate(options.file))

    recipes = commands.add_parser("recipes", help="list the recipes")
    recipes.set_defaults(command=_recipes)
    return parser


def _validate(options: argparse.Namespace) -> None:
    key = options.require_signature
    _describe(validate(options.directory, None if key is None else signing.trust(key)))


def configuration(arguments: list[str]) -> Config:
    """What `thalweg-train run …` would train. Raises UserError, and SystemExit for what is no such command."""
    return _configuration(_parser().parse_args(arguments))


def _configuration(options: argparse.Namespace) -> Config:
    assignments = []
    if options.start is not None:
        assignments.append(f"start={json.dumps(options.start)}")
    if options.only is not None:
        assignments.append(f"methods={json.dumps([options.only])}")
    return chosen_config.chosen(options, assignments)


def _run(options: argparse.Namespace) -> None:
    config = _configuration(options)
    with ranks.joined(pipeline.choose_device(config.device)) as joined:
        if not joined.is_first:
            progress = Progress(Console(quiet=True))
        else:
            progress = Progress() if options.tensorboard is None else RecordedProgress(options.tensorboard)
        progress.say(f"config={config}")
        out = options.out or Path("runs", options.recipe)
        outcome = pipeline.run(config, out, progress, options.restart, joined)
    if not joined.is_first:
        return
    OUT.print(_table(outcome))
    for label, path in (*outcome.ensembles.items(), ("report", outcome.report)):
        OUT.print(f"{label:<8} {path}", soft_wrap=True)


def _evaluate(options: argparse.Namespace) -> None:
    wanted = Options(options.points, options.members, options.plane, options.plane_rows, options.ood)
    outcome = evaluation.evaluate(options.run, wanted, Progress())
    found = outcome.evaluation
    if found.curve is not None:
        OUT.print(_path_table(found))
    OUT.print(_score_table(found))
    for what, why in found.absent.items():
        OUT.print(f"no {what}: {why}", soft_wrap=True)
    OUT.print(f"report   {outcome.report}", soft_wrap=True)


def _widths(options: argparse.Namespace) -> None:
    config = chosen_config.chosen(options)
    out = options.out or Path("runs", f"{options.recipe}-widths")
    table = Table(title="Curves by size of the network; train loss with the L2 term", title_justify="left")
    heads = ("value", "size", "worse end", "loss Int", "loss Max", "test error % Int", "Max", "length ratio")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=head == "value")
    for width in study(config, options.vary, Options(points=options.points).points, out, Progress()):
        loss, error = width.loss, width.test_error
        numbers = (f"{width.endpoint_loss:.4f}", f"{loss.integral:.4f}", f"{loss.maximum:.4f}")
        errors = (f"{100 * error.integral:.2f}", f"{100 * error.maximum:.2f}")
        table.add_row(json.dumps(width.value), str(width.parameters), *numbers, *errors, f"{width.length_ratio:.2f}")
    OUT.print(table)
    OUT.print(f"figure   {out / 'widths.png'}", soft_wrap=True)


def _path_table(found: Evaluation) -> Table:
    """The paper's Table 2, a line a metric."""
    table = Table(title="Along the path: minimum, integral by arc length, maximum; errors in %", title_justify="left")
    for head in ("path", "length ratio", *(metric.replace("_", " ") for metric in evaluation_report.METRICS)):
        table.add_column(head)
    for name, ratio, *numbers in evaluation_report.path_lines(found):
        table.add_row(
            name, ratio, *("\n".join(numbers[i : i + 3]) for i in range(0, len(numbers), 3)), end_section=True
        )
    return table


def _score_table(found: Evaluation) -> Table:
    table = Table(title="Ensembles, test split", title_justify="left")
    table.add_column("predictor", no_wrap=True)
    for head in ("nets", "error %", "NLL", "cal. LL", "equal to", "differ %"):
        table.add_column(head, justify="right")
    for score in found.scores:
        quality = score.quality
        numbers = (f"{100 * quality.error:.2f}", f"{quality.nll:.4f}", f"{score.log_likelihood:.4f}")
        disagreement = f"{100 * score.mean_disagreement:.2f}"
        table.add_row(score.predictor, str(score.members), *numbers, str(score.equivalent or "–"), disagreement)
    return table


def _table(outcome: Outcome) -> Table:
    table = Table(title="Test split", title_justify="left")
    table.add_column("predictor")
    perplexity = ["perplexity"] if outcome.results.next_token else []
    for head in ("members", "epochs", "error %", "NLL", "Brier", "ECE", *perplexity):
        table.add_column(head, justify="right")
    for row in outcome.results.rows:
        quality = row.quality
        numbers = [f"{100 * quality.error:.2f}", f"{quality.nll:.4f}", f"{quality.brier:.4f}", f"{quality.ece:.4f}"]
        if perplexity:
            numbers.append(f"{quality.perplexity:.2f}")
        table.add_row(row.predictor, str(row.members), str(row.training_epochs), *numbers)
    return table


def _export(options: argparse.Namespace) -> None:
    stored = validate(options.directory)
    write = standalone.write if options.standalone else state_dicts.write
    for path in write(stored, options.standalone or options.state_dicts):
        OUT.print(str(path), soft_wrap=True)


def _describe(stored: StoredEnsemble) -> None:
    manifest = stored.manifest
    shape = ", ".join(map(str, manifest.input.shape))
    OUT.print(f"model        {manifest.name}, version {manifest.version}")
    OUT.print(f"input        {manifest.input.name} {manifest.input.datatype} [B, {shape}]")
    OUT.print(f"classes      {len(manifest.class_labels)}")
    OUT.print(f"members      {len(manifest.members)}, from {len(manifest.weight_sets)} weight sets")
    OUT.print(f"temperature  {manifest.temperature:.4f}")
    for entry in manifest.metrics:
        perplexity = f"  perplexity {math.exp(entry.nll):.2f}" if manifest.task == NEXT_TOKEN else ""
        numbers = f"error {100 * entry.error:.2f} %  NLL {entry.nll:.4f}{perplexity}"
        OUT.print(f"{entry.predictor:<12} {entry.split:<12} {numbers}")
    for under in manifest.robustness:
        accuracies = f"random {100 * under.expected_accuracy:.2f} %  mean {100 * under.mean_accuracy:.2f} %"
        OUT.print(f"{under.attack:<28} {under.norm} {under.epsilon:g}  {accuracies}")


def _recipes(options: argparse.Namespace) -> None:
    for name, recipe in sorted(RECIPES.items()):
        summary = (sys.modules[recipe.__module__].__doc__ or "").partition("\n")[0]
        OUT.print(f"{name:<20} {summary}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
