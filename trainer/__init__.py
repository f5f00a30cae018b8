"""Offline training of ensembles: endpoints, curves, FGE, BatchNorm, temperatures, export. Start at pipeline.py."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as in serving/__init__.py
