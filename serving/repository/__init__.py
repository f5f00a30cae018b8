"""Which ensembles there are: on disk, being loaded, being served."""
