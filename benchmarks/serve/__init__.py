"""Our server beside those that users would pick, on the same ensemble, the same machine, in the same rounds."""
