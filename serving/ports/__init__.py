"""Where requests arrive: gRPC and HTTP, and what a connection may do."""
