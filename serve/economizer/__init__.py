"""Economizer: an OpenAI-compatible gateway that answers each request at the least cost that meets its terms."""
