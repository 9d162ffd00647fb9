"""The PyTorch modules that a :class:`~regnet_deploy.space.network.Network` describes, and their weights."""
