"""One supervised OpenAI-compatible server process per Serve replica."""
