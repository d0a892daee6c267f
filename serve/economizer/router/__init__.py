"""Which variant and which replica answer a request: filters, scorers, predictions, one decision. Pure."""
