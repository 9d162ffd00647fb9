"""From a bundle and a folder of images to trained weights: data pipeline, recipe, loop, checkpoints."""
