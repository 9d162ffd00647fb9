"""The design spaces, in numbers: RegNet and AnyNet parameters, closed-form complexity, candidates, published networks."""
