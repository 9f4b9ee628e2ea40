"""Text to token batches: tokenizers, documents, the on-disk token store, and the order in which it is read."""
