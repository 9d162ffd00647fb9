"""The model card: everything that a bundle knows about its model, as data, as text and as one HTML page."""
