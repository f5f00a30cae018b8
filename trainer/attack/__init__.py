"""`thalweg-train attack`: how an exported ensemble stands up to adversaries. Start reading at harness.py."""
