"""The HTTP side: routes, the wire format, the relay, receipts and metrics."""
