"""`thalweg-predict`: sends pictures and .npy arrays, prints classes, probabilities and uncertainty."""

import argparse
import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import grpc
import numpy as np
from rich.console import Console
from rich.progress import Progress

from serving.client import inputs, printing
from serving.client.clients import Client, Model, Tls
from serving.client.inputs import InvalidInput
from serving.client.messages import Asked
from serving.client.printing import Piece, Show
from serving.client.watched_folder import Folder

Named = tuple[list[str], np.ndarray]  # a name for each row
LOOK_SECONDS = 0.5


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0; 1 if the server refused or cannot be reached; 2 for a file that cannot be used."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if bool(options.files) == (options.watch_folder is not None):
        parser.error("expected either files or --watch-folder")
    try:
        with _client(options) as client, contextlib.ExitStack() as opened:
            show = _show(options, client, opened)
            if options.watch_folder is not None:
                _watch(client, options.watch_folder, show, _asked(options))
            with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
                files = progress.track(options.files, description="asking")
                show(_answers(client, (_read(path, client.model()) for path in files), _asked(options)))
    except KeyboardInterrupt:
        return 0 if options.watch_folder is not None else 130
    except (InvalidInput, OSError) as error:
        print(f"thalweg-predict: error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except grpc.RpcError as error:
        print(f"thalweg-predict: {options.target} answered {error.code().name}: {error.details()}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="thalweg-predict", description="Asks a running thalweg-serve.")
    parser.add_argument(
        "files", type=Path, nargs="*", metavar="FILE", help="a picture, or .npy of one row or of [B, ...]"
    )
    parser.add_argument(
        "--watch-folder", type=Path, metavar="DIR", help="ask about every file in DIR, and as more appear, until Ctrl-C"
    )
    parser.add_argument("--target", default="127.0.0.1:8001", help="HOST:PORT of the server (default %(default)s)")
    parser.add_argument("--model", required=True, help="the model's name")
    parser.add_argument("--version", default="", help="of the model (default: the one that the server chooses)")
    parser.add_argument("--policy", help="mean, members, random, … (default: the server's)")
    parser.add_argument("--members", type=_members, metavar="I,J,…", help="indices or ids of the members to ask")
    parser.add_argument("--top", type=_positive, default=3, help="classes to print for each row (default %(default)s)")
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="write each row there once it is answered; - is stdout"
    )
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds a request (default %(default)s)")
    parser.add_argument("--tls", action="store_true", help="encrypted; the system's authorities say who it is")
    parser.add_argument("--tls-authorities", type=Path, metavar="PEM", help="encrypted; these authorities say it")
    parser.add_argument("--tls-certificate", type=Path, metavar="PEM", help="our own, for a server that asks for one")
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="of our certificate")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="a bearer token to send")
    return parser


def _members(text: str) -> list[str]:
    if not all(text.split(",")):
        raise argparse.ArgumentTypeError(f"'{text}'; expected indices or ids such as 0,3")
    return text.split(",")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}'; expected 1 or more")
    return int(text)


def _client(options: argparse.Namespace) -> Client:
    tls = None
    if options.tls or options.tls_authorities or options.tls_certificate or options.tls_key:
        tls = Tls(options.tls_authorities, options.tls_certificate, options.tls_key)
    token = options.token_file.read_text().strip() if options.token_file else None
    return Client(options.target, options.model, options.timeout, version=options.version, tls=tls, token=token)


def _asked(options: argparse.Namespace) -> Asked:
    asked: Asked = {}
    if options.policy is not None:
        asked["policy"] = options.policy
    if options.members is not None:
        asked["members"] = options.members
    return asked


def _show(options: argparse.Namespace, client: Client, opened: contextlib.ExitStack) -> Show:
    if options.csv is None:
        return printing.table(client.model(), options.top, Console(highlight=False))
    file = sys.stdout if str(options.csv) == "-" else opened.enter_context(options.csv.open("w", newline=""))
    return printing.csv_file(file, client.model(), options.top)


def _watch(client: Client, folder: Path, show: Show, asked: Asked) -> None:
    """Until Ctrl-C. A file that cannot be read is told once and tried again when it changes; a server that is away is
    waited for.
    """
    model, watched = client.model(), Folder(folder)

    def readable(paths: list[Path]) -> Iterator[Named]:
        for path in paths:
            try:
                yield _read(path, model)
            except (InvalidInput, OSError) as error:
                print(f"thalweg-predict: {error}", file=sys.stderr)  # noqa: T201

    waiting: list[Path] = []
    while True:
        waiting += watched.look()
        try:
            while waiting:
                lot = waiting[: model.max_batch_rows]  # pictures for one request
                if files := list(readable(lot)):
                    show(_answers(client, files, asked))
                del waiting[: len(lot)]
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            print(f"thalweg-predict: trying again: {error.details()}", file=sys.stderr)  # noqa: T201
        time.sleep(LOOK_SECONDS)


def _read(path: Path, model: Model) -> Named:
    rows = inputs.rows(path, model)
    return printing.name_rows(path, len(rows)), rows


def _answers(client: Client, files: Iterable[Named], asked: Asked) -> Iterator[Piece]:
    """All rows of all files, as many in a request as the server takes."""
    names: deque[list[str]] = deque()

    def batches() -> Iterator[np.ndarray]:
        rows = ((name, row) for file in files for name, row in zip(*file, strict=True))
        while batch := list(islice(rows, client.model().max_batch_rows)):
            names.append([name for name, _ in batch])
            yield np.stack([row for _, row in batch])

    for answer in client.answers(batches(), **asked):
        yield names.popleft(), answer


if __name__ == "__main__":
    sys.exit(main())
