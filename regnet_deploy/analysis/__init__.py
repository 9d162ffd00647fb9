"""What trained populations say of their design spaces: distributions of error, ranges of good networks, fits."""
