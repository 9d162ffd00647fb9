"""From a compute budget to a served model: RegNets picked, trained, profiled, exported, proved and served."""

__version__ = "0.1.0"
__all__ = ["__version__"]
