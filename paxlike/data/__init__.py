"""Text to token batches: tokenizers, documents, the token store, and the order of reading."""
