"""The case study: a text classifier made the plain way and with our measures, each with what it cost."""
