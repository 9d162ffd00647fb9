"""The model card of a bundle, as data, as text and as one HTML page."""
