"""Encoded images: their headers, what is refused before decoding, and the pixels that every loader must deliver."""
