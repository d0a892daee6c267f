"""Raw text to packed tokens: what is read, what is dropped and why, and the card that says so."""
