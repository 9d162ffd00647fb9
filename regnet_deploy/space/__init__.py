"""The design spaces in numbers: parameters of RegNet and AnyNet, closed-form complexity, candidates, published ones."""
