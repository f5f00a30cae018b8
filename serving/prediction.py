"""What a request's rows are answered with, on its way from the batch to the response.

Views of the batch's arrays: the response copies and rounds what was asked for, and nothing else.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Prediction:
    probs_BC: NDArray[np.float64]
    entropy_B: NDArray[np.float64]  # nats
    mutual_information_B: NDArray[np.float64]  # nats
    # Of the members that answered, in the client's order if it chose; of a cascade, 0 where one did not answer a row.
    member_probs_BMC: NDArray[np.float64]
    members_run_B: NDArray[np.int32]
    energy_B: NDArray[np.float64] | None = None  # if the choice asked for it
