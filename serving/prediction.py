"""What a request's rows are answered with, on its way from the batch to the response."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Prediction:
    probs_BC: NDArray[np.float32]
    entropy_B: NDArray[np.float32]  # nats
    mutual_information_B: NDArray[np.float32]  # nats
    member_probs_BMC: NDArray[np.float32]  # of the members that answered each row; in the client's order if it chose
