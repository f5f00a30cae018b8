"""The server: request → validate → queue → policy → execute → combine → respond. Never imports torch."""

import os

# ONNX Runtime's wheels for Linux send events about sessions and models to their maker, from 1.29 on, unless they are
# told otherwise before they are imported: a server must not.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
