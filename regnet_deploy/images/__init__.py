"""From image files to pixels: decoding, preprocessing, image folders. Pillow and NumPy only, shared by all rooms."""
