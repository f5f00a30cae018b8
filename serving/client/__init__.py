"""Asking a server: `Client`, `AsyncClient`, and thalweg-predict."""

from serving.client.clients import Answer, AsyncClient, Client, Model, Tls

__all__ = ["Answer", "AsyncClient", "Client", "Model", "Tls"]
