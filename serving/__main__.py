"""`thalweg-serve`: reads the settings and runs the server; the only place that looks at the environment."""

import asyncio
import logging
import os
import signal
import sys

if os.getpid() == 1:
    # Process 1 of a container ignores a signal that it does not handle, and what follows takes a second to import.
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))

# gRPC's core writes lines of its own to stderr, one for each failed handshake among them, and one as we stop to listen:
# they would break a log of JSON, and anybody could fill it. It asks as it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from protos.validate import InvalidEnsemble
from serving import server, settings
from serving.errors import StartupError
from serving.repository import folders
from serving.repository.trust import trust
from serving.telemetry import logs


def main(arguments: list[str] | None = None) -> int:
    """`thalweg-serve tune …`, or the server.

    Returns the exit code: 0 after SIGTERM or --check; 2 for what the user can mend, told in one line on stderr.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["tune"]:
            from serving import tune  # a server has no use for it

            return tune.main(arguments[1:])
        chosen = settings.parse(arguments)
        logs.set_up(chosen.log_level, chosen.log_format)
        logger = logging.getLogger(__name__)
        for variable in settings.unknown_variables():
            logger.warning("no setting of this server: %s", variable)
        logger.info("settings=%s", chosen)
        if chosen.check:
            _check(chosen)
        else:
            asyncio.run(server.serve(chosen))
    except (StartupError, InvalidEnsemble) as error:
        print(f"thalweg-serve: error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def _check(chosen: settings.Settings) -> None:
    """Raises InvalidEnsemble for the first that would be refused."""
    for folder in folders.find(chosen.directories):
        manifest = folder.read(trust(chosen.require_signature)).manifest
        print(f"valid {manifest.name} version={manifest.version} path={folder.path}", flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
