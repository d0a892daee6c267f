"""Turns a teacher and raw text into a smaller model that the gateway can serve, and books what that cost."""
