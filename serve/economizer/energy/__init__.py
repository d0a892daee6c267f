"""What was metered, and what of it each request took."""
