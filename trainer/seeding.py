"""Each stage draws from a generator of its own, so changing one stage does not move another's random numbers."""

import hashlib

import torch


def seed_stage(seed: int, *stage: object) -> None:
    """Seeds torch's global generator for a stage, from the run's seed and the stage's name."""
    text = "/".join(map(str, (seed, *stage)))
    torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]))
