"""Messages of gRPC and of Triton's configuration files, in Protocol Buffers. Below serving and targets."""
