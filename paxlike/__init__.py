"""paxlike: plan, train and account for PaLM-style language models on TPU and GPU pods."""

__version__ = "0.1.0"
