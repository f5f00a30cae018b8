"""The server: request → validate → queue → policy → execute → combine → respond. Never imports torch."""
