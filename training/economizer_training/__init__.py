"""Prepares text and distils smaller variants. It lives in the compression environment, beside torch and Ray."""
