"""One file per architecture. A model is a plain nn.Module and knows nothing about ensembles."""
