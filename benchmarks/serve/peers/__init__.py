"""The servers that users would pick, a file each, `peers/NAME.py`, written as their documentation shows.

A file holds the server and how it is asked:

    PACKAGES: tuple[str, ...]       what pip installs into runs/serve/environments/NAME; not this project. ONNX Runtime
                                    is named without a version: the harness installs the version that we have, for all.
    SETUPS = ("natural", "tuned")   natural: eight sessions, as the documentation shows; tuned: the best that we found,
                                    with a comment on what was tried.
    PROTOCOL = "oip-grpc"           or "http" (POST, HTTP/1.1); a dict by set-up where they differ.
    request(rows, setup) -> Body    rows: uint8 [B, 3, 32, 32]; JSON for a natural set-up, say, and bytes for the tuned.
    probabilities(response, setup) -> ndarray       float [B, 10] from a response's message (gRPC) or body (HTTP).

`peers/oip.py` has the last two for whoever speaks the Open Inference Protocol: model `ensemble`, input `input`, output
`probs`.

The harness imports the file without the server's library being there, so that is imported inside `main`. It runs

    ENVIRONMENT/bin/python -m benchmarks.serve.peers.NAME --setup SETUP --models DIR --port PORT --threads 2

in this repository's root and with it on PYTHONPATH (`-m`: run by its path, `litserve.py` would hide the library of that
name); DIR is absolute. PORT of 127.0.0.1 is where requests go. DIR holds what `benchmarks/serve/ensemble.py`
writes: `member-0.onnx` … `member-7.onnx` (input `input` uint8 [B, 3, 32, 32], normalised inside; output `logits`
[B, 10]) and `fused.onnx` (all of them in one graph; output `probs` [B, 10], the mean of the members' softmax). The
server is ready when it gives the right answer to a request, and ends at SIGTERM as its library does.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Body(NamedTuple):
    """A request as it goes over the wire."""

    path: str  # of a gRPC method or of HTTP
    content_type: str
    data: bytes


def options(setups: Sequence[str]) -> argparse.Namespace:
    """The command line of a peer's server."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--setup", choices=setups, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    return parser.parse_args()
