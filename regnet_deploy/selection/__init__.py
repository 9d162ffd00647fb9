"""A budget to ranked candidates, with the reason."""
