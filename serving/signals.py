"""SIGTERM and SIGINT: the first asks the server to stop, a second ends the process at once."""

import asyncio
import logging
import os
import signal

logger = logging.getLogger(__name__)

NUMBERS = (signal.SIGTERM, signal.SIGINT)


def stop_at_signal() -> asyncio.Event:
    """Set by the first one. The second ends the process with 128 and its number, as if it had not been handled."""
    stop = asyncio.Event()

    def received(number: signal.Signals) -> None:
        if stop.is_set():
            logger.error("%s again: ending at once, requests in flight are lost", number.name)
            # Not the default action: as process 1 of a container it would be ignored.
            os._exit(128 + number)
        logger.info("%s: stopping", number.name)
        stop.set()

    for number in NUMBERS:
        asyncio.get_running_loop().add_signal_handler(number, received, number)
    return stop


def end() -> None:
    """Exit code 0, without waiting for threads: a load or a batch in one cannot be cancelled."""
    logging.shutdown()
    os._exit(0)


def ignore() -> None:
    """From here to the end of the process: everything is answered. A loop that closes puts back the default action: a
    second SIGTERM would then end the process with another exit code than 0.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
    for number in NUMBERS:
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)
