"""Offline training of ensembles: endpoints, curves, FGE, BatchNorm, temperatures, export. Start at pipeline.py."""
