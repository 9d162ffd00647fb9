"""Images: sources, decoding, preprocessing, datasets. Only Pillow and NumPy are needed."""
