"""Conversations: their formats, chat templates, and which tokens are predicted."""
