"""Each stage draws from a generator of its own, so changing one stage does not move another's random numbers."""

import hashlib

import torch


def seed_stage(seed: int, *stage: object) -> int:
    """Seeds torch's global generator for a stage, from the run's seed and the stage's name; returns that seed."""
    text = "/".join(map(str, (seed, *stage)))
    derived = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
    torch.manual_seed(derived)
    return derived
