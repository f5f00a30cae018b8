"""Where a request's microseconds go: by stage as a table, by function as a flame graph."""
