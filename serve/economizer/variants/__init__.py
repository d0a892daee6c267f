"""The variants of a logical model and what was measured of them. Pure."""
